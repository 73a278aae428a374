"""What ``lumitok sweep`` does: samples of many settings, each measured; a table, a plot (AlignTok, Fig. 4).

A point is drawn into a folder of its own and measured into a file beside its samples, so a sweep that was
stopped, or that is asked for more points, goes on; the same samples can be measured by another network later.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lumitok.diffusion.sampling import evaluations
from lumitok.errors import LumitokError
from lumitok.evaluation.curves import Series
from lumitok.evaluation.extractors import INCEPTION, open_extractor
from lumitok.evaluation.picture_sets import holds_statistics, open_picture_set, open_reference_statistics
from lumitok.evaluation.points_plot import points_plot
from lumitok.evaluation.processes import here, is_main, together
from lumitok.evaluation.protocol import common_lines, in_words
from lumitok.evaluation.results import Number, Results
from lumitok.pipelines.evaluate_generation import evaluate_generation
from lumitok.pipelines.report_runs import SWEEP
from lumitok.pipelines.sample import PICTURES, Precision, Wanted, sample_pictures
from lumitok.pipelines.sweep_plan import (
    CHECKPOINT,
    Over,
    Point,
    digits_of,
    line_of,
    make_points,
    parse_over,
    parse_settings,
    slug,
)

__all__ = ["SweepReport", "is_main", "parse_settings", "run_sweep"]

POINTS, PLOT = "points", "sweep.png"
DEFAULT_COUNT = 5_000


@dataclass(frozen=True)
class Measured:
    """A point and what was found there.

    Attributes:
        point: checkpoint and settings.
        folder: its samples, sheet and results.
        results: of :func:`~lumitok.pipelines.evaluate_generation.evaluate_generation`.
        read: whether it had been finished before, and was read.
    """

    point: Point
    folder: Path
    results: Results
    read: bool


@dataclass(frozen=True)
class SweepReport:
    """What a sweep found.

    Attributes:
        out: the folder.
        over: what was swept.
        points: in the order of checkpoints and settings.
        table: JSON of all points.
        plot: PNG; None where nothing that is a number was swept.
        warnings: of the measurements, each once.
        how: what the protocols of all points share, in words.
    """

    out: Path
    over: Over
    points: list[Measured]
    table: Path
    plot: Path | None
    warnings: list[str]
    how: str


@dataclass(frozen=True)
class _Measure:
    """What the samples are judged by."""

    reference: str
    encoder: str
    weights: Path | None
    metrics: Sequence[str]
    size: int | None
    batch_size: int
    identity: str


def run_sweep(
    checkpoints: Sequence[str],
    over: Sequence[str],
    reference: str | Path,
    out: Path,
    *,
    count: int | None = None,
    per_class: int | None = None,
    classes: Sequence[int | str] | None = None,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    encoder: str = INCEPTION,
    weights: Path | None = None,
    metrics: Sequence[str] | None = None,
    size: int | None = None,
    batch_size: int = 32,
    precision: Precision = "fp32",
    keep_samples: bool = True,
) -> SweepReport:
    """Draw and measure every combination of what is swept, for every checkpoint.

    Args:
        checkpoints: diffusion runs, checkpoints, network folders, saved pipelines, or hub ids.
        over: ``guidance=1,1.5,2``, ``steps=10,30``, ``solver=euler,heun``, ``checkpoint`` and so on, see
            :func:`~lumitok.pipelines.sweep_plan.parse_over`. The first that is a number is the plot's
            horizontal axis. ``checkpoint`` is the training step: a run stands for all of its checkpoints.
        reference: real pictures, or ADM's statistics.
        out: folder; what is finished in it is read.
        count: samples a point; None: 5,000, or as ``per_class`` says.
        per_class: exactly so many of each class.
        classes: names or numbers, taken in turn.
        seed: of samples and labels, the same at all points.
        sampling: settings that hold for all points, as in ``SamplingConfig``.
        tokenizer: run, checkpoint or folder, for all checkpoints; None: what each one's recipe names.
        encoder: network to judge by: ``inception`` (FID), or a registered encoder (FD-NAME).
        weights: its file.
        metrics: as ``evaluate_generation`` knows them; None: the Fréchet distance. The first is plotted.
        size: side that samples and reference are cropped to; None: as stored.
        batch_size: samples at a time.
        precision: of the network that is sampled.
        keep_samples: False: each point's pictures are deleted once it is measured, all but the sheet.

    Raises:
        LumitokError: settings or parts that do not fit; found before anything is drawn, where that can be.
    """
    swept = parse_over(over)
    points = make_points(checkpoints, swept, sampling or {})
    if count is None and per_class is None:
        count = DEFAULT_COUNT
    if count is not None and count < 2:
        raise LumitokError(f"a Fréchet distance needs at least 2 samples a point; got {count}")
    wanted = Wanted(count, classes, per_class, seed)
    chosen = list(metrics or (["fid"] if encoder == INCEPTION else ["fd"]))
    identity = digits_of([_reference_hash(reference, encoder, size), encoder, str(weights), chosen, size])
    measure = _Measure(str(reference), encoder, weights, chosen, size, batch_size, identity)
    folders = [_folder(out, point, wanted, tokenizer, str(precision)) for point in points]
    # One process looks, so that all of them do the same.
    finished = together(lambda: [_file(f, measure).is_file() for f in folders] if is_main() else [])[0]
    if not all(finished):
        with here().local_main_process_first():  # What cannot be had is found out before the work.
            open_extractor(encoder, weights)
    found: list[Measured] = []
    for number, (point, folder, done) in enumerate(zip(points, folders, finished, strict=True), start=1):
        if not done:
            _say(f"{number} of {len(points)}: {folder.name}")
            _finish(point, folder, wanted, tokenizer, precision, measure, keep_samples)
        together(lambda: None)  # The main process has written by then.
        found.append(Measured(point, folder, Results.load(_file(folder, measure)), done))
        if is_main():
            _write_table(out / SWEEP, found, swept, wanted, measure)
    return _report(out, found, swept)


# ------------------------------------------------------------------------------------------------
# One point


def _finish(
    point: Point,
    folder: Path,
    wanted: Wanted,
    tokenizer: str | None,
    precision: Precision,
    measure: _Measure,
    keep_samples: bool,
) -> None:
    """Draw what a point lacks, and measure it."""
    report = sample_pictures(
        point.checkpoint,
        folder,
        wanted,
        tokenizer=tokenizer,
        sampling=point.sampling.model_dump(exclude=set(point.sampling.unheeded)),
        batch_size=measure.batch_size,
        precision=precision,
    )
    labels, drawn, _ = report.how.split("; ")
    solver, guidance = _parted(drawn)
    results = evaluate_generation(
        folder / PICTURES,
        measure.reference,
        encoder=measure.encoder,
        weights=measure.weights,
        metrics=measure.metrics,
        size=measure.size,
        batch_size=measure.batch_size,
        seed=wanted.seed,
        labels=labels,
        solver=solver,
        guidance=guidance,
        steps=evaluations(point.sampling),
    )
    results.step = point.step
    if not is_main():
        return
    path = _file(folder, measure)
    # Under its name only when it is whole.
    results.save(path.with_suffix(".partial")).replace(path)
    if not keep_samples:
        shutil.rmtree(folder / PICTURES)


def _parted(drawn: str) -> tuple[str, str]:
    """The solver's part and the guidance's of what :func:`~lumitok.pipelines.sample.describe` says."""
    words = drawn.split(", ")
    place = next(index for index, word in enumerate(words) if "guidance" in word)
    return ", ".join(words[:place]), ", ".join(words[place:])


def _folder(out: Path, point: Point, wanted: Wanted, tokenizer: str | None, precision: str) -> Path:
    """Where a point's samples lie: other weights, settings, labels or seeds have another folder."""
    drawn = {
        "weights": point.weights,
        "sampling": point.sampling.model_dump(mode="json"),
        "wanted": {**asdict(wanted), "classes": None if wanted.classes is None else list(wanted.classes)},
        "tokenizer": tokenizer,
        "precision": precision,
    }
    return out / POINTS / slug(point, digits_of(drawn))


def _file(folder: Path, measure: _Measure) -> Path:
    return folder / f"measured-{measure.identity}.json"


def _reference_hash(reference: str | Path, encoder: str, size: int | None) -> str:
    if encoder == INCEPTION and holds_statistics(reference):
        return str(open_reference_statistics(reference).sha256)
    return open_picture_set(reference, size=size).protocol_set().files


def _say(text: str) -> None:
    if is_main():
        Console(stderr=True).print(text, markup=False, highlight=False)


# ------------------------------------------------------------------------------------------------
# All of them


def _report(out: Path, found: list[Measured], over: Over) -> SweepReport:
    warnings = [text for one in found for text in one.results.tables.get("warnings", [])]
    plot = _plot(out / PLOT, found, over)
    how = in_words(common_lines([number.protocol for one in found for number in one.results.numbers]))
    return SweepReport(out, over, found, out / SWEEP, plot, list(dict.fromkeys(warnings)), how)


def _plot(path: Path, found: Sequence[Measured], over: Over) -> Path | None:
    """Draw the first number of all points over the first setting that is a number."""
    axis = next((key for key in over if key != "solver"), None)
    if axis is None:
        return None
    models = len({one.point.model for one in found})
    lines: dict[str, list[tuple[float, float]]] = {}
    for one in found:
        value = (float(one.point.values[axis]), first_number(one.results).value)
        lines.setdefault(line_of(one.point, axis, models), []).append(value)
    series = [
        Series(label, [x for x, _ in sorted(line)], [y for _, y in sorted(line)])
        for label, line in lines.items()
    ]
    if is_main():
        number = first_number(found[0].results)
        title = f"{number.name} over {_named(axis)}"
        note = f"{number.protocol.data.count:,} samples"
        path.write_bytes(points_plot(series, title=title, xlabel=_named(axis), note=note).png())
    return path


def first_number(results: Results) -> Number:
    """What is plotted."""
    return results.numbers[0]


def _named(axis: str) -> str:
    return "training step" if axis == CHECKPOINT else axis.replace("_", " ")


def _write_table(
    path: Path, found: Sequence[Measured], over: Over, wanted: Wanted, measure: _Measure
) -> None:
    """Write what is known so far, each number with its protocol's file."""
    values = {
        "over": list(over),
        "count": wanted.count,
        "per_class": wanted.per_class,
        "seed": wanted.seed,
        "reference": measure.reference,
        "encoder": measure.encoder,
        "points": [
            {
                "checkpoint": one.point.checkpoint,
                "model": one.point.model,
                "step": one.point.step,
                "values": one.point.values,
                "sampling": one.point.sampling.model_dump(mode="json"),
                "numbers": {number.name: number.value for number in one.results.numbers},
                "results": _file(one.folder, measure).relative_to(path.parent).as_posix(),
            }
            for one in found
        ],
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
