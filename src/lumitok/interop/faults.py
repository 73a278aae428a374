"""A foreign file compared with what it should hold: every difference is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lumitok.errors import LumitokError, some

SHOWN = 5
"""How many faults of one kind the message spells out before it only counts them."""
Faults = dict[str, list[str]]
"""Kind of fault -> what has it, such as ``"missing"`` -> keys."""


def told(faults: Faults) -> str:
    """The first faults of each kind, and how many there are."""
    return "; ".join(f"{len(found)} {kind} ({some(found, SHOWN)})" for kind, found in faults.items() if found)


def every_fault(faults: Faults) -> list[str]:
    """All faults, one line each."""
    return [f"{kind}: {what}" for kind, found in faults.items() for what in found]


class WrongFileError(LumitokError):
    """A file that does not hold what it should; the message names the first faults of each kind.

    Attributes:
        faults: all of them, one line each.
    """

    def __init__(self, source: str, faults: Faults) -> None:
        self.faults = every_fault(faults)
        super().__init__(f"{source}: {told(faults)}")


def compare(state: Mapping[str, Any], wanted: Mapping[str, torch.Size | None]) -> Faults:
    """Compare a state with the shapes it should have; None: any shape.

    On the meta device only names, types and shapes are looked at.
    """
    known = {key: value for key, value in state.items() if key in wanted}
    strangers = [f"{key}, a {type(value).__name__}" for key, value in known.items() if not _is_float(value)]
    tensors = {key: value for key, value in known.items() if _is_float(value)}
    return {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "not a tensor of floating-point numbers": strangers,
        "of another shape": [
            f"{key} {list(value.shape)}, wanted {list(shape)}"
            for key, value in tensors.items()
            if (shape := wanted[key]) is not None and value.shape != shape
        ],
        "not finite": [key for key, value in tensors.items() if not _is_finite(value)],
    }


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_finite(value: Tensor) -> bool:
    return value.is_meta or bool(value.isfinite().all())
