"""What every kind of run begins with: its accelerator, and the checkpoint that it is taken up from."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration

from lumitok.config import AnyRecipe, DiffusionTrainingConfig, Section, TrainingConfig, load_any
from lumitok.errors import LumitokError
from lumitok.training.checkpoint import checkpoints, load_place
from lumitok.training.memory import keep_freed_memory
from lumitok.training.precision import choose_precision, default_device


@dataclass(frozen=True)
class Changeable:
    """Settings, by section, that may differ when a run is taken up again.

    Attributes:
        free: they do not change what is learnt.
        mended: they do, but are what a run that has gone wrong is taken up with; a change is said.
    """

    free: Mapping[str, set[str]]
    mended: Mapping[str, set[str]]


def start_accelerator(training: TrainingConfig | DiffusionTrainingConfig, folder: Path) -> Accelerator:
    """The accelerator of a run, on this process's device, in the precision that was asked for.

    Raises:
        LumitokError: the tracker is not installed.
    """
    if training.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise LumitokError("training.tracker is wandb, which is not installed: pip install 'lumitok[wandb]'")
    device = default_device()
    precision = choose_precision(training.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    return accelerator_in(
        precision.dtype,
        device,
        log_with=None if training.tracker == "none" else training.tracker,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder)),
        # Spectral norms evolve alike on every process; broadcasting them would break the two passes.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def accelerator_in(dtype: torch.dtype, device: torch.device, **options: Any) -> Accelerator:
    """An accelerator that computes in ``dtype``, whatever the last one of this process computed in.

    Accelerate keeps the precision of a process's first accelerator and refuses any other, and a notebook may
    well train one network in bfloat16 and the next in float32. Accelerators share what they know, so none
    from before may be used any more, and the device is the first one's.
    """
    precision = "bf16" if dtype == torch.bfloat16 else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", **options)


def number_format(accelerator: Accelerator) -> str:
    """What an accelerator computes in, for people."""
    return "bfloat16" if accelerator.mixed_precision == "bf16" else "float32"


def start_trackers(accelerator: Accelerator, tracker: str) -> None:
    """Open the tracker that was asked for."""
    if tracker != "none":
        accelerator.init_trackers("log" if tracker == "tensorboard" else "lumitok")


def take_up(folder: Path, recipe: AnyRecipe, resume: bool, changeable: Changeable) -> tuple[Path | None, str]:
    """Find the checkpoint to go on from, see that it belongs to this recipe, and say what was changed."""
    found = checkpoints(folder)
    if not found:
        return None, ""
    if not resume:
        raise LumitokError(
            f"{folder} holds a run already; go on with --resume, or choose another folder with out="
        )
    saved = load_any(str(found[-1] / "recipe.yaml"))
    if type(saved) is not type(recipe):
        raise LumitokError(f"{folder} holds another kind of run; choose another folder with out=")
    for section in type(recipe).model_fields:
        old, new = _fixed(saved, section, changeable), _fixed(recipe, section, changeable)
        if section not in ("name", "about", "out") and old != new:
            raise LumitokError(
                f"the run in {folder} was started with another '{section}'; resume it with the recipe "
                f"{folder / 'recipe.yaml'}, or start a new run with out="
            )
    return found[-1], _mended(saved, recipe, changeable)


def _fixed(recipe: AnyRecipe, section: str, changeable: Changeable) -> Any:
    """What of a section may not change when a run is taken up."""
    value = getattr(recipe, section)
    left_out = changeable.free.get(section, set()) | changeable.mended.get(section, set())
    if section == "stages":
        return [stage.model_dump(exclude=left_out) for stage in value]
    return value.model_dump(exclude=left_out) if left_out else value


def _mended(saved: Any, recipe: Any, changeable: Changeable) -> str:
    """Say which settings that change what is learnt are not those of the checkpoint."""
    pairs: list[tuple[str, Section, Section]] = [("training", saved.training, recipe.training)]
    pairs += [
        (f"stages.{index}", old, new)
        for index, (old, new) in enumerate(zip(saved.stages, recipe.stages, strict=True))
    ]
    changes = [
        f"{where}.{key} {getattr(old, key)} -> {getattr(new, key)}"
        for where, old, new in pairs
        for key in sorted(changeable.mended[where.split(".")[0]])
        if getattr(old, key) != getattr(new, key)
    ]
    return f", with {', '.join(changes)}" if changes else ""


def check_finished(run: Path, last: Path) -> None:
    """Raise where a run that another shall begin with has stages or steps to go.

    Args:
        run: its folder, as the user named it.
        last: its newest checkpoint.

    Raises:
        LumitokError: it is not at its end.
    """
    steps = sum(stage.images // stage.batch_size for stage in load_any(str(last / "recipe.yaml")).stages)
    step = load_place(last / "training").step
    if step < steps:
        raise LumitokError(
            f"init: the run {run} is at step {step} of {steps}; finish it with --resume, or name the "
            f"checkpoint to begin with, init={last}"
        )
