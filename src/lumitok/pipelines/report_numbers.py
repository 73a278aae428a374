"""Tables of results: one a kind of evaluation and set of pictures, runs as rows, metrics as columns.

A number whose protocol is unlike that of its column carries a letter, never counts as the best, and the
letter's line under the table says what differs. What is to be known of a whole row has another sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from string import ascii_lowercase
from typing import Self

from lumitok.errors import LumitokError
from lumitok.evaluation.markup import decimals_of, scrolling, shown
from lumitok.evaluation.protocol import PictureSet, Protocol, common_lines, in_words
from lumitok.evaluation.report import Report
from lumitok.evaluation.results import Number, Results
from lumitok.pipelines.report_runs import Run

TITLES = {"latents": "Latent space", "layers": "Alignment over depth"}
"""Headings of kinds of evaluation that are not simply the kind's name."""

GENERATED = "generation"
"""The kind whose pictures are made by the runs: they differ by nature, and the reference is the set."""

STATISTICS = re.compile(r"to the statistics stored in (?P<name>.+) \((?P<sha256>[0-9a-f]+)\)")
"""How a metric's method names a file of reference statistics, which is no set of pictures."""

NOTE_SIGNS = "*\u2020\u2021\u00a7"
"""For notes on a row, which is no worse for them; letters are for numbers that do not compare."""

WIDE = 8
"""Metrics of a table from which on they stand below one another, and protocols that are folded."""

ARROWS = {"high": " \u2191", "low": " \u2193", "": ""}


@dataclass
class Group:
    """Results of one kind on one set of pictures.

    Attributes:
        kind: of the evaluation.
        data: the pictures; of generated ones what they were held against, where there is such.
        place: how ``data`` is named in the title: ``on``, ``against`` or ``of``.
        rows: (run, row's name, results) each.
    """

    kind: str
    data: PictureSet
    place: str = "on"
    rows: list[tuple[Run, str, Results]] = field(default_factory=list)

    def takes(self, kind: str, place: str, data: PictureSet) -> bool:
        """Whether results belong here: the same pictures, or others under the same name."""
        same = data.name == self.data.name or data.files == self.data.files
        return (kind, place) == (self.kind, self.place) and same

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"{TITLES.get(self.kind, self.kind.capitalize())} {self.place} {self.data.name}"


def group_results(runs: Sequence[Run]) -> list[Group]:
    """Sort all results of all runs into their tables, in the order of runs and files."""
    groups: list[Group] = []
    for run in runs:
        for stem, results in run.results.items():
            place, data = _set_of(results)
            group = next((g for g in groups if g.takes(results.kind, place, data)), None)
            if group is None:
                group = Group(results.kind, data, place)
                groups.append(group)
            group.rows.append((run, stem, results))
    for group in groups:
        often = [run.name for run, _, _ in group.rows]
        group.rows = [
            (run, f"{run.name}, {stem}" if often.count(run.name) > 1 else run.name, results)
            for run, stem, results in group.rows
        ]
    return sorted(groups, key=lambda g: [h.kind for h in groups].index(g.kind))


def _set_of(results: Results) -> tuple[str, PictureSet]:
    """Return the set that a table is of, and how its title names it; see :class:`Group`."""
    protocols = [number.protocol for number in results.numbers]
    if not protocols:
        raise LumitokError(f"the results of {results.subject} hold no number; evaluate it again")
    if results.kind != GENERATED:
        return "on", protocols[0].data
    # Not each metric has a reference: IS has none, and stored statistics are named by the method.
    for protocol in protocols:
        if protocol.reference is not None:
            return "against", protocol.reference
    for protocol in protocols:
        stored = STATISTICS.search(protocol.method or "")
        if stored is not None:
            return "against", PictureSet(stored["name"], 0, stored["sha256"])
    return "of", protocols[0].data


# ------------------------------------------------------------------------------------------------
# One table


class Marks:
    """Letters for what differs, or other signs; the same words get the same one."""

    def __init__(self, signs: str = ascii_lowercase) -> None:
        self.signs = signs
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the sign of a text, none for an empty one."""
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return self._sign(self.texts.index(text))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((self._sign(index), text) for index, text in enumerate(self.texts))

    def _sign(self, index: int) -> str:
        again, place = divmod(index, len(self.signs))
        return self.signs[place] * (1 + again)


@dataclass(frozen=True)
class Cell:
    """A number of a table, with its mark and whether it is the best of those that are alike."""

    number: Number | None
    mark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A metric: the protocol that its unmarked numbers share, and a cell a row."""

    number: Number
    cells: list[Cell]

    @property
    def marked(self) -> bool:
        """Whether any of its numbers has a mark."""
        return any(cell.mark for cell in self.cells)

    def at(self, row: int) -> Cell:
        """Return the cell of a row; an empty one for a run without results."""
        return self.cells[row] if row < len(self.cells) else Cell(None)

    @property
    def title(self) -> str:
        """Name, unit, and an arrow to where it is better."""
        unit = f", {self.number.unit}" if self.number.unit else ""
        return f"{self.number.name}{unit}{ARROWS[self.number.better]}"


def columns_of(group: Group, marks: Marks) -> list[Column]:
    """Line the metrics of a group up, mark what is unlike, and find the best of what is alike."""
    names = dict.fromkeys(n.name for _, _, results in group.rows for n in results.numbers)
    columns = []
    for name in names:
        numbers = [next((n for n in r.numbers if n.name == name), None) for _, _, r in group.rows]
        there = [number for number in numbers if number is not None]
        standard = _most_common(there, group.kind)
        differs = [
            "" if n is None else "; ".join(_unlike(n.protocol, standard.protocol, group.kind))
            for n in numbers
        ]
        alike = [n.value for n, other in zip(numbers, differs, strict=True) if n is not None and not other]
        best = None
        if len(alike) > 1 and standard.better:
            best = max(alike) if standard.better == "high" else min(alike)
        cells = [
            Cell(n, marks.mark(other), best=n is not None and not other and n.value == best)
            for n, other in zip(numbers, differs, strict=True)
        ]
        like = [n.protocol for n, other in zip(numbers, differs, strict=True) if n is not None and not other]
        columns.append(Column(replace(standard, protocol=_said_once(like, group.kind)), cells))
    return columns


def _said_once(like: Sequence[Protocol], kind: str) -> Protocol:
    """Return what is said of all numbers with like protocols; what is each one's own is left out."""
    said = like[0]
    if any(other.seed != said.seed for other in like):
        said = replace(said, seed=None)
    if kind == GENERATED and any(other.data != said.data for other in like):
        said = replace(said, data=PictureSet("each run's samples", said.data.count, "one a run"))
    return said


def _most_common(numbers: Sequence[Number], kind: str) -> Number:
    """Return the first number of the largest set of numbers with like protocols."""
    sets: list[list[Number]] = []
    for number in numbers:
        mine = next((s for s in sets if not _unlike(number.protocol, s[0].protocol, kind)), None)
        if mine is None:
            sets.append([number])
        else:
            mine.append(number)
    return max(sets, key=len)[0]  # The first of the largest.


def _unlike(one: Protocol, other: Protocol, kind: str) -> list[str]:
    if kind == GENERATED:  # What each run made is what is compared.
        one = replace(one, data=replace(one.data, files=other.data.files))
    return one.unlike(other)


def row_notes(run: Run, results: Results, fingerprint: str | None = None) -> str:
    """Say what holds for all of a row: an older checkpoint, pictures left out, warnings, what is missing.

    Args:
        run: whose row it is.
        results: of the row.
        fingerprint: of the run's tokenizer, or network, as it is now; None: not known.
    """
    notes = []
    if results.step is not None and run.step is not None and results.step != run.step:
        notes.append(f"measured at step {results.step:,}; the run is at step {run.step:,}")
    elif fingerprint and results.fingerprint and results.fingerprint != fingerprint:
        notes.append("measured on other weights than the run has now")
    notes += [f"{count:,} left out: {reason}" for reason, count in results.left_out.items()]
    notes += [str(warning) for warning in results.tables.get("warnings", [])]
    if results.tables.get("not measured"):
        notes.append(
            f"not measured, with the reason in the JSON: {', '.join(results.tables['not measured'])}"
        )
    return "; ".join(notes)


def protocol_lines(named: Sequence[tuple[str, Protocol]]) -> list[tuple[str, str]]:
    """Say how numbers were made, each with its name: what is common to all once, then name by name."""
    shared = common_lines([protocol for _, protocol in named])
    lines = [("Protocol", in_words(shared))] if shared else []
    own: dict[str, list[str]] = {}
    for name, protocol in named:
        own.setdefault(protocol.describe(without=shared), []).append(name)
    return lines + [(", ".join(names), text) for text, names in own.items() if text]


class RunsReport(Report):
    """A report with tables of results."""

    def results(
        self,
        group: Group,
        missing: Sequence[tuple[str, str]] = (),
        fingerprints: Mapping[str, str] | None = None,
    ) -> Self:
        """Add the table of a group.

        Args:
            group: at least one row.
            missing: runs without these results: (name, what the reader can do) each.
            fingerprints: of the runs' tokenizers, or networks, by the run's name, where they are known.
        """
        marks, signs, known = Marks(), Marks(NOTE_SIGNS), fingerprints or {}
        rows = [
            (name, signs.mark(row_notes(run, results, known.get(run.name))))
            for run, name, results in group.rows
        ]
        columns = columns_of(group, marks)
        table = (_tall if len(columns) > WIDE else _wide)(
            columns, [*rows, *((name, "") for name, _ in missing)]
        )
        made = protocol_lines([(column.number.name, column.number.protocol) for column in columns])
        common, *own = [(f"{title}.", text) for title, text in made] or [("", "")]
        apart = [*own, *marks]
        below = _paragraphs([common])
        if len(apart) > WIDE:
            how = f"How each of the {len(columns)} numbers was made"
            below += f"<details><summary>{how}</summary>{_paragraphs(apart)}</details>"
        else:
            below += _paragraphs(apart)
        below += _paragraphs([*signs, *((f"{name}.", text) for name, text in missing)])
        above = f'<p class="caption">{escape(group.title)}</p>'
        self._block(above + scrolling(table, group.title) + below)
        return self

    def small_print(self, label: str, text: str) -> Self:
        """Add a paragraph in the small type of protocols."""
        self._block(_paragraphs([(label, text)]))
        return self


def _wide(columns: Sequence[Column], rows: Sequence[tuple[str, str]]) -> str:
    """A table with a row a run; ``rows``: name and sign of each, those without results last."""
    head = '<th scope="col">Run</th>'
    for column in columns:
        title = escape(column.title) + _superscript("", slot=column.marked)
        head += f'<th scope="col" class="number">{title}</th>'
    body = ""
    for index, (name, sign) in enumerate(rows):
        cells = "".join(_cell(column, column.at(index)) for column in columns)
        body += f'<tr><th scope="row">{escape(name)}{_superscript(sign)}</th>{cells}</tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _tall(columns: Sequence[Column], rows: Sequence[tuple[str, str]]) -> str:
    """The same table with a row a metric: so many stand better below one another."""
    head = '<th scope="col"></th>' + "".join(
        f'<th scope="col" class="number">{escape(name)}{_superscript(sign)}</th>' for name, sign in rows
    )
    body = ""
    for column in columns:
        cells = "".join(_cell(column, column.at(index)) for index in range(len(rows)))
        body += f'<tr><th scope="row">{escape(column.title)}</th>{cells}</tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _paragraphs(notes: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f'<p class="protocol" style=margin-top:.25rem><b>{escape(label)}</b> {escape(text)}</p>'
        for label, text in notes
        if text
    )


def _cell(column: Column, cell: Cell) -> str:
    if cell.number is None:
        text = shown(None)
    else:
        decimals = decimals_of([float(c.number.value) for c in column.cells if c.number is not None])
        text = shown(float(cell.number.value), decimals)
        if cell.number.spread is not None:
            text += f" \u00b1 {shown(float(cell.number.spread), decimals)}"
    kind = "number best" if cell.best else "number"
    return f'<td class="{kind}">{text}{_superscript(cell.mark, slot=column.marked)}</td>'


def _superscript(mark: str, *, slot: bool = False) -> str:
    """A mark; where a column has any, each of its cells has the room for one, so that digits line up."""
    if not (mark or slot):
        return ""
    room = "display:inline-block;width:.9em;text-align:left;padding-left:.15em;" if slot else ""
    return f'<sup style="{room}line-height:0">{mark}</sup>'
