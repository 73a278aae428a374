"""Random numbers that depend on where the run is, not on how it came there."""

from __future__ import annotations

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """Mix whole numbers (seed, stage, step, process ...) into one seed of 63 bits."""
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0] >> 1)


def seed_step(*parts: int) -> None:
    """Seed torch's global generators for one step: a resumed run then draws what it would have drawn."""
    torch.manual_seed(derive_seed(*parts))
