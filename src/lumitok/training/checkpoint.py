"""Checkpoints: folders of safetensors and JSON that hold all a run needs to go on.

    RUN/checkpoints/step-00001000/
        tokenizer/      averaged weights and config; Tokenizer.from_pretrained opens it
        training/       raw weights, discriminator, both optimizers, place in the run
        recipe.yaml     the resolved recipe

A folder is written under another name and renamed when it is whole, so one with the right name is
always good. Random numbers and the place in the data follow from the step (``training.seeds``).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from lumitok.errors import LumitokError


@dataclass
class Place:
    """Where a run stands: the next step to take."""

    stage: int = 0
    """Index of the stage."""
    stage_step: int = 0
    """Steps done in this stage."""
    step: int = 0
    """Steps done in the whole run."""
    images: int = 0
    """Images seen in the whole run."""


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(p for p in found if p.is_dir() and p.suffix != ".partial")


class CheckpointWriter:
    """Writes checkpoints of a run and removes the oldest beyond ``keep``."""

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.keep = run, keep

    def begin(self, step: int) -> Path:
        """Return an empty folder to write the checkpoint of ``step`` into."""
        partial = self.run / "checkpoints" / f"step-{step:08d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "training").mkdir(parents=True)
        return partial

    def commit(self, partial: Path) -> Path:
        """Give a fully written folder its name, then remove old ones."""
        whole = partial.with_suffix("")
        shutil.rmtree(whole, ignore_errors=True)
        partial.rename(whole)
        for old in checkpoints(self.run)[: -self.keep]:
            shutil.rmtree(old)
        return whole


def save_place(folder: Path, place: Place) -> None:
    """Write where the run stands."""
    (folder / "place.json").write_text(json.dumps(asdict(place), indent=2) + "\n")


def load_place(folder: Path) -> Place:
    """Read where the run stood."""
    return Place(**json.loads((folder / "place.json").read_text()))


def save_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, path)


def load_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Read tensors written by :func:`save_tensors`."""
    state: dict[str, Tensor] = load_file(path, device=str(device))
    return state


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state without frozen encoders, which are named in the recipe."""
    return {name: t for name, t in module.state_dict().items() if not name.startswith("encoder.")}


def load_trained_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what :func:`trained_state` gave; every key must be there and no other."""
    wanted, got = set(trained_state(module)), set(state)
    if wanted != got:
        raise LumitokError(
            f"the checkpoint's weights do not fit: {sorted(wanted ^ got)[:6]} missing or left over"
        )
    module.load_state_dict(state, strict=False)


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
