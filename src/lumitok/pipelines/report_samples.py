"""Sections of a report that show what diffusion networks draw: samples over the training, and sweeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lumitok.data import evenly
from lumitok.errors import LumitokError
from lumitok.evaluation.markup import Figure, Value
from lumitok.evaluation.pictures import to_pil
from lumitok.evaluation.protocol import common_lines, in_words
from lumitok.evaluation.report import Report
from lumitok.evaluation.results import Number, Results
from lumitok.pipelines.report_album import read_examples
from lumitok.pipelines.report_networks import side_of_network
from lumitok.pipelines.report_runs import Run
from lumitok.pipelines.sample import describe

PLACES = 6
"""Samples side by side."""
MOMENTS_ALONE, MOMENTS_BESIDE_OTHERS = 5, 3
"""Moments of the training that are shown: of one run alone, and of each of several."""


def add_samples(report: Report, runs: Sequence[Run]) -> None:
    """Add the samples that runs drew on the way: some of them at several moments, then the last sheet."""
    drawn = [run for run in runs if run.samples]
    if not drawn:
        return
    report.section(
        "Samples over the training",
        "Drawn with the averaged weights. A column has the same noise and the same class at every moment; "
        "the columns are spread evenly over all samples, and none was chosen.",
    )
    most = MOMENTS_ALONE if len(runs) == 1 else MOMENTS_BESIDE_OTHERS
    for run in drawn:
        moments = _moments(run.samples, most)
        pictures = [read_examples(folder) for folder in moments]
        count = len(pictures[-1])
        places = evenly(count, PLACES)
        names = class_names(run, count)
        rows = [
            (
                f"step {_step(folder):,}",
                [Figure(to_pil(shown[place]), alt=f"sample {place + 1}", pixelated=True) for place in places],
            )
            for folder, shown in zip(moments, pictures, strict=True)
        ]
        headings = [names[place] if names else f"{place + 1}" for place in places]
        recipe = side_of_network(run)
        how = "" if recipe is None else f": {describe(recipe.samples.sampling)}"
        report.comparison(headings, rows, f"{run.name}{how}.")
        last = [sheet for sheet in run.sheets if sheet.stem == moments[-1].name]
        if last and count > len(places):
            report.figure(last[0], f"{run.name}: all {count} samples of step {_step(moments[-1]):,}.")


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _moments(folders: Sequence[Path], most: int) -> list[Path]:
    """The first, the last and some between of those with as many samples as the last."""
    counts = {folder: len(list(folder.glob("*.png"))) for folder in folders}
    alike = [folder for folder in folders if counts[folder] == counts[folders[-1]]]
    return [alike[place] for place in evenly(len(alike), most)]


def class_names(run: Run, count: int) -> list[str]:
    """The classes of a run's samples, as training takes them; none where that cannot be known."""
    recipe = side_of_network(run)
    if recipe is None or run.latents is None or not recipe.network.classes:
        return []
    names, wanted = run.latents.classes, recipe.samples
    if not names or wanted.count != count:  # Samples drawn before the recipe was changed.
        return []
    return [names[label] for label in wanted.labels(len(names))]


# ------------------------------------------------------------------------------------------------
# Sweeps


def add_sweeps(report: Report, runs: Sequence[Run]) -> None:
    """Add the sweeps that lie in the runs' folders: table and plot of each."""
    if not any(run.sweeps for run in runs):
        return
    report.section("Sweeps", "Samples of many settings, each point measured by itself.")
    for run in runs:
        for path in run.sweeps:
            _add_sweep(report, run, path)


def _add_sweep(report: Report, run: Run, path: Path) -> None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        over, points = list(values["over"]), list(values["points"])
        found = [_results(path.parent / point["results"]) for point in points]
        rows = [_row(point, over) for point in points]
        names = list(points[0]["numbers"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise LumitokError(f"{path} is damaged: {error!r}; run the sweep again, or remove it") from None
    kept = [results for results in found if results is not None]
    numbers = [number for results in kept for number in results.numbers]
    protocol = in_words(common_lines([number.protocol for number in numbers]))
    title = f"{run.name}: sweep of {', '.join(_named(key) for key in over)}"
    report.table(
        ["Network", *(_named(key) for key in over), *names],
        rows,
        title,
        protocol or "The points' results do not lie beside the table, so how they were made is not known.",
        best=_best(names, numbers) if len(kept) == len(points) > 1 else None,
    )
    plot = path.with_suffix(".png")
    if plot.is_file():
        report.figure(plot, alt=title)


def _results(path: Path) -> Results | None:
    return Results.load(path) if path.is_file() else None


def _row(point: dict[str, Any], over: Sequence[str]) -> list[Value]:
    settings = [point["values"][key] for key in over]
    return [
        str(point["model"]),
        *(value if isinstance(value, (str, int, float)) else str(value) for value in settings),
        *(float(value) for value in point["numbers"].values()),
    ]


def _best(names: Sequence[str], numbers: Sequence[Number]) -> dict[str, Any]:
    """Which way is better, of numbers that have a better."""
    ways = {number.name: number.better for number in numbers}
    return {name: ways[name] for name in names if ways.get(name)}


def _named(key: str) -> str:
    return key.replace("_", " ")
