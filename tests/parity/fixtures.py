"""Reading the parity files; README.md here says what they hold."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


class Fixture:
    """One parity file: weights under official names, inputs, outputs, and the tolerance."""

    def __init__(self, name: str) -> None:
        groups: dict[str, dict[str, Tensor]] = {"weight": {}, "input": {}, "output": {}}
        with safe_open(Path(__file__).parent / f"{name}.safetensors", "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                group, rest = key.split(".", 1)
                groups[group][rest] = file.get_tensor(key)
            meta = file.metadata()
        self.weights, self.inputs, self.outputs = groups["weight"], groups["input"], groups["output"]
        self.arguments = json.loads(meta["arguments"])
        (self.tolerance,) = json.loads(meta["tolerance"]).values()

    def check(self, **ours: Tensor) -> None:
        """Hold our outputs against the file's of the same names."""
        for name, value in ours.items():
            error = relative_error(value, self.outputs[name])
            assert error <= self.tolerance, f"{name}: {error:.2e}"


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference divided by the largest reference value."""
    assert ours.shape == reference.shape
    return float((ours.detach() - reference).abs().max() / reference.abs().max())
