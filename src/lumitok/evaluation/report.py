"""A report as one HTML file: pictures, plots and numbers, with nothing to load from elsewhere.

The builder knows neither runs nor metrics; what it is given it lays out, escapes and writes::

    report = Report("VFM-VAE, 256 px", "After 5000 steps")
    report.cards([("PSNR", 22.99, "dB", "500 held-out pictures")])
    report.section("Reconstructions", "One row a picture.")
    report.comparison(["Picture", "Step 500"], [("cat.png", [picture, reconstruction])])
    report.write("report.html")

The page has no script, and a content security policy that forbids one and every outside address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Literal

from lumitok.errors import LumitokError
from lumitok.evaluation.markup import (
    Figure,
    Source,
    Value,
    caption_markup,
    cell_markup,
    data_table,
    drawing_markup,
    image_markup,
    scrolling,
    shown,
)

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_BRAND = (  # The decoder's pyramid: the same picture at three resolutions.
    '<svg width="34" height="18" viewBox="0 0 34 18" fill="currentColor" aria-hidden="true">'
    '<rect y="14" width="4" height="4" opacity=".45"/><rect x="6" y="9" width="9" height="9" opacity=".7"/>'
    '<rect x="17" y="1" width="17" height="17"/></svg>'
)


class Report:
    """Builds a page from top to bottom; each method adds one block and returns the report.

    Blocks before the first section stand under the title. The same calls give the same bytes.
    """

    def __init__(self, title: str, subtitle: str = "", *, footer: str = "Made with lumitok.") -> None:
        self.title, self.subtitle, self.footer = title, subtitle, footer
        self._sections: list[tuple[str, str]] = []  # (identifier, title)
        self._body: list[str] = []
        self._drawings = 0

    # --------------------------------------------------------------------------------------------
    # Blocks

    def section(self, title: str, text: str = "") -> Report:
        """Begin a section; it is listed in the contents. Blank lines in ``text`` part paragraphs."""
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        taken = {identifier for identifier, _ in self._sections}
        identifier = next(
            candidate
            for candidate in (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
            if candidate not in taken
        )
        if self._sections:
            self._body.append("</section>")
        self._sections.append((identifier, title))
        self._body.append(f'<section id="{identifier}"><h2>{escape(title)}</h2>')
        return self.text(text)

    def text(self, text: str) -> Report:
        """Add paragraphs, parted by blank lines."""
        parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
        self._body += [f'<p class="text">{escape(part)}</p>' for part in parts]
        return self

    def cards(self, cards: Sequence[tuple[str, Value, str, str]]) -> Report:
        """Add the few numbers that matter, large: (label, value, unit, note) each."""
        items = "".join(
            f'<div class="card"><dt>{escape(label)}</dt><dd><div class="value">{shown(value)}'
            + (f'<span class="unit">{escape(unit)}</span>' if unit else "")
            + "</div>"
            + (f'<div class="note">{escape(note)}</div>' if note else "")
            + "</dd></div>"
            for label, value, unit, note in cards
        )
        return self._block(f'<dl class="cards">{items}</dl>')

    def facts(self, facts: Mapping[str, Value]) -> Report:
        """Add names with their values: what was run, on what, with which version."""
        items = "".join(f"<div><dt>{escape(k)}</dt><dd>{shown(v)}</dd></div>" for k, v in facts.items())
        return self._block(f'<dl class="facts">{items}</dl>')

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Value]],
        caption: str,
        protocol: str,
        *,
        best: Mapping[str, Literal["high", "low"]] | None = None,
    ) -> Report:
        """Add a table of numbers with its protocol under it.

        Args:
            columns: the headings; the first column names the rows.
            rows: cells. Floats are shown with as many decimals as the column needs for four digits.
            caption: what the table shows.
            protocol: how the numbers were made: data set and count, resize and crop, extractor and
                weights, seed. Never empty: a number without it cannot be compared.
            best: for each named column whether the highest or the lowest value is set in bold.

        Raises:
            LumitokError: no protocol, a row of another length than the headings, an unknown column.
        """
        if not protocol.strip():
            raise LumitokError(f"the table '{caption}' has no protocol; say how its numbers were made")
        for row in rows:
            if len(row) != len(columns):
                raise LumitokError(
                    f"the table '{caption}' has {len(columns)} columns, a row has {len(row)} cells"
                )
        unknown = [name for name in best or {} if name not in columns]
        if unknown:
            raise LumitokError(
                f"the table '{caption}' has no column '{unknown[0]}', only {', '.join(columns)}"
            )
        table = data_table(columns, rows, best or {})
        above = f'<p class="caption">{escape(caption)}</p>' if caption else ""
        below = f'<p class="protocol"><b>Protocol.</b> {escape(protocol)}</p>'
        return self._block(above + scrolling(table, caption or "Table") + below)

    def figure(
        self,
        source: Source,
        caption: str = "",
        *,
        alt: str = "",
        pixelated: bool = False,
        width: int | None = None,
    ) -> Report:
        """Add one picture or plot; the arguments are those of :class:`Figure`."""
        return self._block(self._figure(Figure(source, caption, alt, pixelated, width), alone=True))

    def figures(self, figures: Sequence[Figure], *, columns: int | None = None) -> Report:
        """Add figures side by side.

        Args:
            figures: in reading order.
            columns: how many in a row, for example one a run: they stay in these columns on every
                screen and scroll sideways on a narrow one. ``None``: as many as fit.
        """
        inside = "".join(self._figure(figure) for figure in figures)
        if columns is None:
            return self._block(f'<div class="several">{inside}</div>')
        return self._block(
            scrolling(f'<div class="several fixed" style="--count:{columns}">{inside}</div>', "Figures")
        )

    def comparison(
        self,
        columns: Sequence[str],
        rows: Sequence[tuple[str, Sequence[Source | Figure | None]]],
        caption: str = "",
    ) -> Report:
        """Add rows of pictures under common headings, to be compared by eye.

        Args:
            columns: a heading a column: a moment of training, or a run.
            rows: (label, pictures) each; the label may be empty. A :class:`Figure` has its caption
                under the picture; ``None`` leaves a place empty.
            caption: under the whole.

        Raises:
            LumitokError: a row of another length than the headings.
        """
        cells = [
            f'<div class="heading{" first" * (i == 0)}">{escape(n)}</div>' for i, n in enumerate(columns)
        ]
        for label, pictures in rows:
            if len(pictures) != len(columns):
                raise LumitokError(f"{len(columns)} columns, but row '{label}' has {len(pictures)} pictures")
            cells.append(f'<div class="row">{f"<span>{escape(label)}</span>" if label else ""}</div>')
            for index, picture in enumerate(pictures):
                cells.append(cell_markup(picture, f"{label}, {columns[index]}".strip(", "), first=index == 0))
        inside = f'<div class="comparison" style="--count:{len(columns)}">{"".join(cells)}</div>'
        return self._block(
            f"<figure>{scrolling(inside, caption or 'Comparison')}{caption_markup(caption)}</figure>"
        )

    def strip(self, pictures: Sequence[Source | Figure], caption: str = "") -> Report:
        """Add pictures at their own sizes in one line, standing on it: the pyramid of a decoder."""
        inside = "".join(cell_markup(picture, caption) for picture in pictures)
        block = scrolling(f'<div class="strip">{inside}</div>', caption or "Pictures")
        return self._block(f"<figure>{block}{caption_markup(caption)}</figure>")

    def code(self, text: str, *, title: str = "", folded: bool = False) -> Report:
        """Add text as it stands, such as a recipe; folded, it opens when its title is pressed."""
        block = f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
        if folded:
            return self._block(f"<details><summary>{escape(title or 'Show')}</summary>{block}</details>")
        return self._block((f'<p class="caption">{escape(title)}</p>' if title else "") + block)

    # --------------------------------------------------------------------------------------------
    # The page

    def html(self) -> str:
        """Return the whole page."""
        style = resources.files("lumitok.evaluation").joinpath("report.css").read_text(encoding="utf-8")
        links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in self._sections)
        contents = (
            f'<nav class="contents" aria-label="Contents"><ol>{links}</ol></nav>' if links else "<div></div>"
        )
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        body = "\n".join(self._body) + ("\n</section>" if self._sections else "")
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f'<div class="page">\n<header class="top"><div class="brand">{_BRAND}<span>lumitok</span></div>'
            f"<h1>{escape(self.title)}</h1>{subtitle}</header>\n{contents}\n<main>\n{body}\n</main>\n"
            f"<footer>{escape(self.footer)}</footer>\n</div>\n</body>\n</html>\n"
        )

    def write(self, path: Path | str) -> Path:
        """Write the page, its folder too where there is none, and return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8", newline="\n")
        return path

    # --------------------------------------------------------------------------------------------

    def _block(self, inside: str) -> Report:
        self._body.append(f'<div class="block">{inside}</div>')
        return self

    def _figure(self, figure: Figure, *, alone: bool = False) -> str:
        below = caption_markup(figure.caption)
        if isinstance(figure.source, str):
            self._drawings += 1
            drawing = drawing_markup(
                figure.source, figure.alt or figure.caption, f"drawing-{self._drawings}-"
            )
            return f'<figure><div class="plot{" alone" if alone else ""}">{drawing}</div>{below}</figure>'
        return f"<figure>{image_markup(figure, figure.alt or figure.caption)}{below}</figure>"
