"""Random numbers that depend on where the run is, not on how it came there.

What is drawn for a picture follows from (seed, stage, step, its place in the whole batch): neither the
number of processes, nor accumulation, nor a restart changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch


class Draw(IntEnum):
    """What a random number is for; each use has its own."""

    POSTERIOR = 0
    REAL = 1
    """The discriminators' view of real pictures."""
    FAKE = 2
    """Their view of reconstructions in their own step."""
    FOOLED = 3
    """Their view of reconstructions in the generator's step."""
    EQUIVARIANCE = 4
    DIFFUSION = 5
    """Time, dropped label and noise."""


@dataclass(frozen=True)
class StepDraws:
    """The random numbers of one part of a step's batch on one process."""

    seed: int
    stage: int
    step: int
    """Steps done in the stage."""
    first: int
    """Place of this part's first picture in the whole batch."""
    count: int
    """Pictures in this part."""

    def pictures(self, use: Draw) -> list[torch.Generator]:
        """One generator a picture."""
        places = range(self.first, self.first + self.count)
        return [_generator(self.seed, self.stage, self.step, int(use), 1 + place) for place in places]

    def shared(self, use: Draw) -> torch.Generator:
        """One generator for what all pictures of the step share, on every process."""
        return _generator(self.seed, self.stage, self.step, int(use), 0)

    def numpy(self, use: Draw) -> np.random.Generator:
        """As :meth:`shared`, numpy's."""
        return np.random.default_rng(derive_seed(self.seed, self.stage, self.step, int(use), 0))


def derive_seed(*parts: int) -> int:
    """Mix whole numbers (seed, stage, step, process ...) into one seed of 63 bits."""
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0] >> 1)


def seed_step(*parts: int) -> None:
    """Seed torch's global generators for one step: a resumed run then draws what it would have drawn."""
    torch.manual_seed(derive_seed(*parts))


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))
