"""What the shapes of a file's tensors say of the model they are from.

Every size has many witnesses (a block's channels stand in each of its layers), and the most frequent
answer holds. So a file with a tensor missing or of another shape still gives the right config, and the
comparison with that config names the tensor that is wrong and no other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import torch

Shapes = Mapping[str, torch.Size]


class Witnesses:
    """Asks the shapes of a file."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def count(self, pattern: str) -> int:
        """One more than the largest number that the pattern's group finds; 0 where it finds none."""
        return max(self.numbers(pattern), default=-1) + 1

    def numbers(self, pattern: str) -> set[int]:
        """Every number that the pattern's group finds at the beginning of a key."""
        found = (re.match(pattern, key) for key in self.shapes)
        return {int(match[1]) for match in found if match}

    def most(self, pattern: str, axis: int) -> int | None:
        """The most frequent length of an axis over all keys of the pattern; None where there are none."""
        lengths = Counter(
            shape[axis]
            for key, shape in self.shapes.items()
            if re.fullmatch(pattern, key) and -len(shape) <= axis < len(shape) and shape[axis]
        )
        return lengths.most_common(1)[0][0] if lengths else None
