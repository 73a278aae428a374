"""Checkpoints: folders of safetensors and JSON that hold all a run needs to go on.

    RUN/checkpoints/step-00001000/
        tokenizer/      averaged weights and config; Tokenizer.from_pretrained opens it
        training/       raw weights, average, discriminators, both optimizers, place in the run
        recipe.yaml     the resolved recipe
    RUN/checkpoints/best.json     which of them measured best

A folder is written under another name, brought to the disk and renamed when it is whole, so one with
the right name is always good. Random numbers and the place in the data follow from the step
(``training.seeds``).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from lumitok.errors import LumitokError
from lumitok.foundation import trained_state

BEST = "best.json"
DISCRIMINATOR, IDENTITY = "discriminator.safetensors", "identity.json"
"""In ``training/``; an imported tokenizer's folder may have them too."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Place:
    """Where a run stands: the next step to take, and what it has counted on the way."""

    stage: int = 0
    """Index of the stage."""
    stage_step: int = 0
    """Steps done in this stage."""
    step: int = 0
    """Steps done in the whole run."""
    images: int = 0
    """Images seen, those of the runs it started from included."""
    stages_before: int = 0
    """Stages of the runs it started from."""
    images_before: int = 0
    """Images of the runs it started from."""
    averaged: int = 0
    """Steps that the average has followed since it began."""
    skipped: int = 0
    """Steps left out because a number was not finite."""
    sums: dict[str, list[float]] = field(default_factory=dict)
    """Sum and count of each value since the last log line."""

    def of_next_run(self) -> Place:
        """Where a run begins that starts from this one's weights: its own steps at 0, the counts kept."""
        return Place(
            images=self.images,
            images_before=self.images,
            stages_before=self.stages_before + self.stage + 1,
            averaged=self.averaged,
        )


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(p for p in found if p.is_dir() and p.suffix != ".partial")


@dataclass(frozen=True)
class Best:
    """The best measurement of a run, and the step of its checkpoint."""

    metric: str
    value: float
    step: int

    def beaten_by(self, value: float) -> bool:
        """Whether ``value`` is better: lower for L1, else higher."""
        return value < self.value if self.metric == "l1" else value > self.value


def load_best(run: Path) -> Best | None:
    """The best checkpoint of a run, where it is marked and still there."""
    path = run / "checkpoints" / BEST
    if not path.is_file():
        return None
    best = Best(**json.loads(path.read_text()))
    return best if (path.parent / _name(best.step)).is_dir() else None


def save_best(run: Path, best: Best) -> None:
    """Mark a checkpoint as the best."""
    path = run / "checkpoints" / BEST
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(best)) + "\n")
    partial.replace(path)


def write_checkpoint(run: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Let ``fill`` write a checkpoint's files into an empty folder, then give it its name.

    Raises:
        LumitokError: the disk is full or fails; the checkpoints from before are untouched.
    """
    whole = run / "checkpoints" / _name(step)
    if whole.is_dir():  # The same step of the same run is the same checkpoint.
        return whole
    partial = whole.with_name(f"{whole.name}.partial")
    try:
        for old in whole.parent.glob("*.partial"):  # Left by a run that was killed.
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        (partial / "training").mkdir(parents=True)
        fill(partial)
        _to_disk(partial)
        partial.rename(whole)
        _flush(whole.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise LumitokError(_cannot_write(run, step, error)) from error
    return whole


def remove_old(run: Path, keep: int, keep_every: int = 0) -> None:
    """Remove all checkpoints but the ``keep`` newest, the best, and those at a multiple of ``keep_every``."""
    best = load_best(run)
    for old in checkpoints(run)[:-keep]:
        step = int(old.name.removeprefix("step-"))
        kept = keep_every > 0 and step % keep_every == 0
        if not kept and (best is None or best.step != step):
            _remove(old)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; killed half way, what is left has no checkpoint's name."""
    going = folder.with_name(f"{folder.name}.going.partial")
    shutil.rmtree(going, ignore_errors=True)
    folder.rename(going)
    shutil.rmtree(going)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def is_full(error: Exception) -> bool:
    """Whether an error says that there is no more room on the disk."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(sign in str(error) for sign in ("No space left", "File too large", "quota"))


@contextmanager
def room_is_told(run: Path) -> Iterator[None]:
    """Turn a full disk, whatever was written, into a LumitokError that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        raise LumitokError(
            f"the disk of {run} is full; the checkpoints in it are whole. Make room, then go on with --resume"
        ) from error


def _cannot_write(run: Path, step: int, error: Exception) -> str:
    what = "the disk is full" if is_full(error) else f"the disk failed ({error})"
    kept = checkpoints(run)
    last = f"the last whole one is {kept[-1]}" if kept else "there is none yet"
    return (
        f"the checkpoint of step {step} could not be written to {run}: {what}; {last}. Make room (fewer "
        "training.keep need less), then go on with --resume"
    )


def _to_disk(folder: Path) -> None:
    """See that what was written is on the disk before the folder gets its name."""
    for path in sorted(folder.rglob("*"), reverse=True):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


# ------------------------------------------------------------------------------------------------
# What is in a checkpoint


def save_place(folder: Path, place: Place) -> None:
    """Write where the run stands."""
    (folder / "place.json").write_text(json.dumps(asdict(place), indent=2) + "\n")


def load_place(folder: Path) -> Place:
    """Read where the run stood."""
    return Place(**json.loads((folder / "place.json").read_text()))


def save_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Write what a run must find again to go on: its pictures, frozen encoders and their layers."""
    (folder / IDENTITY).write_text(json.dumps(identity, indent=2) + "\n")


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Raise a LumitokError where pictures, frozen encoders or their layers are not those of the checkpoint.

    What an older checkpoint does not say is not compared.
    """
    saved = json.loads((folder / IDENTITY).read_text())
    for name, value in identity.items():
        if name in saved and saved[name] != value:
            raise LumitokError(
                f"{name} changed since {folder.parent} was written: {saved[name]} then, {value} now; put the "
                "old ones back, or begin a new run from its weights with init="
            )


def save_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, path)


def load_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Read tensors written by :func:`save_tensors`."""
    if not path.is_file():
        raise LumitokError(f"{path} is missing from the checkpoint; resume from another, or start anew")
    # By way of the processor: several processes name it cpu:0, which safetensors does not know.
    return {name: tensor.to(device) for name, tensor in load_file(path).items()}


def load_trained_state(
    module: nn.Module, state: dict[str, Tensor], source: Path, new: tuple[str, ...] = ()
) -> None:
    """Put back what :func:`trained_state` gave; every key must be there and no other.

    Args:
        module: what to fill.
        state: names and tensors.
        source: where they are from, for the error.
        new: prefixes of names that may be missing or left over: parts that one of the two has not.
    """
    wanted = trained_state(module)
    faults = [f"missing {n}" for n in wanted if n not in state and not n.startswith(new)]
    faults += [f"left over {n}" for n in state if n not in wanted and not n.startswith(new)]
    faults += [
        f"{n} is {tuple(t.shape)}, not {tuple(wanted[n].shape)}"
        for n, t in state.items()
        if n in wanted and t.shape != wanted[n].shape
    ]
    if faults:
        more = f"; and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise LumitokError(f"the weights of {source} do not fit this model: {'; '.join(faults[:6])}{more}")
    module.load_state_dict({n: t for n, t in state.items() if n in wanted}, strict=False)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Flatten an optimizer's state: ``<index>.<name>`` -> tensor."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(v) for index, values in state.items() for name, v in values.items()
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # Fused optimizers pair raw memory, so moments lie as their parameter does (channels last).
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
