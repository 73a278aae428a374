"""What every training loop does alike: from stage to stage, from step to step, and at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from lumitok.training.checkpoint import Place
from lumitok.training.ema import EMA
from lumitok.training.guards import Guard
from lumitok.training.journal import Journal
from lumitok.training.sums import Sums


class Running(Protocol):
    """A run under way; the loops move its place on."""

    place: Place
    ema: EMA
    guard: Guard


def stages_left(run: Running, count: int) -> Iterator[int]:
    """Indices of the stages still to train, of ``count``; the run's place is moved to each beginning."""
    for index in range(run.place.stage, count):
        if index > run.place.stage:
            run.place = replace(run.place, stage=index, stage_step=0, sums={})
        yield index


def count_step(run: Running, batch_size: int, averages: Sequence[EMA]) -> None:
    """Update the averages after a step, and move the run's place past it."""
    place = run.place
    seen = place.images + batch_size
    for average in averages:
        average.update(seen, batch_size)
    run.place = replace(
        place,
        averaged=run.ema.steps,
        stage_step=place.stage_step + 1,
        step=place.step + 1,
        images=seen,
    )


def due(every: int, step: int, last: bool) -> bool:
    """Whether what a recipe asks for ``every`` so many steps (0: never) is due; always at a stage's end."""
    return last or (every > 0 and step % every == 0)


def log_means(run: Running, journal: Journal, stage: str, sums: Sums) -> None:
    """Write a log line: means since the last one, and how many steps were left out."""
    values = sums.means()
    if run.guard.skipped:
        values["skipped_steps"] = run.guard.skipped
    journal.record(run.place, stage, "train", values)


def write_final(run: Path, parts: Mapping[str, Callable[[Path], None]]) -> None:
    """Write the parts of a finished run, by their folders' names, aside; then put them in their places."""
    partials = {name: run / f"{name}.partial" for name in parts}
    for name, write in parts.items():
        shutil.rmtree(partials[name], ignore_errors=True)
        write(partials[name])
    for name, partial in partials.items():
        shutil.rmtree(run / name, ignore_errors=True)
        partial.rename(run / name)
