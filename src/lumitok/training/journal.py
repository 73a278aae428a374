"""What a run tells: a progress bar, lines of history, TensorBoard or W&B."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from lumitok.evaluation.pictures import grid, to_pil
from lumitok.training.checkpoint import Place

HISTORY = "history.jsonl"
SAMPLE_SHEETS = "sample-grids"
"""Sheets of samples where ``grids`` holds reconstructions."""
DRAWN = ("examples", "samples", "grids", SAMPLE_SHEETS)


class Journal:
    """Writes a run's history and shows its progress; only the main process says anything.

    ``history.jsonl`` holds one object a line: step, images, stage, kind (``train`` or
    ``validation``) and values. Lines past the place where a run is taken up again are dropped.
    """

    def __init__(self, run: Path, accelerator: Accelerator, place: Place, total_steps: int) -> None:
        self.run, self.accelerator, self.total = run, accelerator, total_steps
        self.active = accelerator.is_main_process
        self.console = Console(stderr=True, quiet=not self.active)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
            console=self.console,
            disable=not self.active or not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=total_steps, completed=place.step, speed="", memory="")
        if self.active:
            _truncate(run / HISTORY, place.step)
        self._since, self._images_since, self._rate = time.monotonic(), place.images, 0.0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.accelerator.end_training()

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def advance(self, place: Place, stage: str) -> None:
        """Move the bar by a step."""
        self.progress.update(self.task, completed=place.step, description=stage)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what is done inside (drawing, measuring, saving) out of the speed."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def record(self, place: Place, stage: str, kind: str, values: dict[str, float]) -> None:
        """Write values to the history and the tracker, and print the main ones."""
        if not self.active:
            return
        speed = memory = ""
        if kind == "train":
            elapsed = time.monotonic() - self._since
            if place.images > self._images_since and elapsed > 0:
                self._rate = (place.images - self._images_since) / elapsed
            values = {**values, "images_per_second": round(self._rate, 2)}
            speed, memory = f"{self._rate:.1f} img/s", f"{memory_in_use() / 2**30:.1f} GiB"
            self.progress.update(self.task, speed=speed, memory=memory)
            self._since, self._images_since = time.monotonic(), place.images
        line = {"step": place.step, "images": place.images, "stage": stage, "kind": kind, "values": values}
        with (self.run / HISTORY).open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.accelerator.log({f"{kind}/{name}": v for name, v in values.items()}, step=place.step)
        shown = "  ".join(f"{name} {v:.4g}" for name, v in values.items() if _is_headline(name, kind))
        left = "" if kind != "train" else f"  {speed}  {self._left(place)} left  {memory}"
        self.say(f"{stage}  step {place.step}/{self.total}  {kind}: {shown}{left}")

    def examples(self, place: Place, inputs: Tensor, outputs: Tensor) -> None:
        """Save held-out pictures and their reconstructions, both uint8 (N, 3, H, W).

        A labelled sheet goes to ``grids/`` and to the tracker, single pictures to ``examples/``, where a
        report finds them.
        """
        if not self.active:
            return
        name = f"step-{place.step:08d}"
        for folder, pictures in (("input", inputs), (name, outputs)):
            path = self.run / "examples" / folder
            path.mkdir(parents=True, exist_ok=True)
            for index, picture in enumerate(pictures):
                to_pil(picture).save(path / f"{index}.png")
        self._sheet(
            place, "reconstructions", grid([list(inputs), list(outputs)], labels=["input", "reconstruction"])
        )

    def samples(self, place: Place, pictures: Tensor, classes: Sequence[str], sheets: str = "grids") -> None:
        """Save samples, uint8 (N, 3, H, W), with the names of their classes, if they have any.

        A sheet goes to the folder ``sheets`` and to the tracker, single pictures to ``samples/``.
        """
        if not self.active:
            return
        path = self.run / "samples" / f"step-{place.step:08d}"
        path.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pictures):
            to_pil(picture).save(path / f"{index}.png")
        width = math.ceil(math.sqrt(len(pictures)))
        rows = [list(pictures[first : first + width]) for first in range(0, len(pictures), width)]
        first_names = [
            ", ".join(dict.fromkeys(classes[i : i + width])) for i in range(0, len(classes), width)
        ]
        self._sheet(place, "samples", grid(rows, labels=first_names), sheets)

    def _sheet(self, place: Place, title: str, sheet: Image.Image, folder: str = "grids") -> None:
        (self.run / folder).mkdir(exist_ok=True)
        sheet.save(self.run / folder / f"step-{place.step:08d}.png")
        pixels = np.asarray(sheet)[None]
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({title: pixels}, step=place.step, **layout)

    def _left(self, place: Place) -> str:
        if self._rate <= 0 or place.step == 0:
            return "?"
        seconds = (self.total - place.step) * (place.images - place.images_before) / place.step / self._rate
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def memory_in_use() -> int:
    """Peak memory in bytes: the accelerator's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _truncate(path: Path, step: int) -> None:
    if path.is_file():
        # A process that was killed may have left half a line, and examples of steps still to come.
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
    for old in (p for name in DRAWN for p in path.parent.glob(f"{name}/step-*")):
        if int(old.stem.removeprefix("step-")) > step:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


_HEADLINES: tuple[str, ...] = (
    "total",
    "l1",
    "lpips",
    "ssim",
    "vf",
    "preservation",
    "kl",
    "gan",
    "patchgan",
    "discriminator",
    "skipped_steps",
)
_HEADLINES += ("velocity", "cosine", "alignment", "class_token", "tokenizer_alignment")


def _is_headline(name: str, kind: str) -> bool:
    if kind == "train":
        return name in _HEADLINES or name.startswith("feature-distance")
    return name.endswith(("psnr", "ssim", "vf"))
