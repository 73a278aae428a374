"""At which training step a tokenizer or a diffusion network was saved, where its folder tells."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lumitok.diffusion import find_network
from lumitok.evaluation.curves import read_history
from lumitok.training import find_tokenizer
from lumitok.training.journal import HISTORY


def network_step(checkpoint: str | Path) -> int | None:
    """Training step of a run's or a checkpoint's network; None for a hub id."""
    return _step(checkpoint, find_network)


def tokenizer_step(checkpoint: str | Path) -> int | None:
    """Training step of a run's or a checkpoint's tokenizer; None for a hub id."""
    return _step(checkpoint, find_tokenizer)


def _step(checkpoint: str | Path, find: Callable[[str | Path], Path]) -> int | None:
    if not Path(checkpoint).is_dir():
        return None
    owner = find(checkpoint).resolve().parent
    named = re.fullmatch(r"step-(\d+)", owner.name)
    if named:
        return int(named[1])
    history = owner / HISTORY
    records = read_history(history) if history.is_file() else []
    return int(records[-1]["step"]) if records else None
