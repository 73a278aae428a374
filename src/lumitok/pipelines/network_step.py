"""At which training step a diffusion network was saved."""

from __future__ import annotations

import re
from pathlib import Path

from lumitok.diffusion import find_network
from lumitok.evaluation.curves import read_history
from lumitok.training.journal import HISTORY


def network_step(checkpoint: str | Path) -> int | None:
    """Training step of a run's or a checkpoint's network, where the folder tells it; None for a hub id."""
    if not Path(checkpoint).is_dir():
        return None
    owner = find_network(checkpoint).resolve().parent
    named = re.fullmatch(r"step-(\d+)", owner.name)
    if named:
        return int(named[1])
    history = owner / HISTORY
    records = read_history(history) if history.is_file() else []
    return int(records[-1]["step"]) if records else None
