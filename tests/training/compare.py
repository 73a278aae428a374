"""What several training tests share: changing recipes, and comparing checkpoints bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lumitok.config import Recipe
from lumitok.evaluation.curves import read_history


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """Return the recipe with dotted keys changed, for example ``training__seed=1``."""
    tree = recipe.model_dump()
    for key, value in changes.items():
        node: Any = tree
        *path, last = key.split("__")
        for step in path:
            node = node[int(step)] if isinstance(node, list) else node[step]
        node[last] = value
    return Recipe.model_validate(tree)


def everything(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return {
        f"{path.parent.name}/{path.name}/{name}": tensor
        for path in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same(a: Path, b: Path) -> None:
    """Two checkpoints hold the same bits, and stand at the same place with the same counters."""
    ours, theirs = everything(a), everything(b)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, different
    place = "training/place.json"
    assert (a / place).read_text() == (b / place).read_text()


def assert_close(a: Path, b: Path, atol: float) -> None:
    """Two checkpoints hold the same weights but for rounding."""
    ours, theirs = everything(a), everything(b)
    assert ours.keys() == theirs.keys()
    worst = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours if ours[name].numel()}
    wrong = {name: gap for name, gap in worst.items() if "optimizer" not in name and gap > atol}
    assert not wrong, wrong


def history(run: Path) -> list[dict[str, Any]]:
    """A run's history without the speed."""
    records = read_history(run / "history.jsonl")
    for record in records:
        record["values"].pop("images_per_second", None)
    return records


def stopped_at(run: Path, step: int, folder: Path) -> Path:
    """Copy a run as it stood when it was killed just after the checkpoint of ``step``."""
    name = f"checkpoints/step-{step:08d}"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copytree(run / name, folder / name)
    shutil.copy(run / "history.jsonl", folder / "history.jsonl")
    return folder
