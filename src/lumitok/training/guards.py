"""Numbers that are not finite: found before they reach the weights, named, and never set to zero."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lumitok.errors import LumitokError, some
from lumitok.training.checkpoint import checkpoints

FOLDER = "not-finite"


@dataclass
class Guard:
    """Looks at every loss, gradient and weight of a run.

    A step whose loss or gradient is not finite may be left out up to ``allowed`` times in a run; one
    more raises a LumitokError. What was seen is written to ``not-finite/`` either way. All processes
    see the same values, so all decide alike.
    """

    run: Path
    rank: int
    allowed: int
    skipped: int = 0
    """Steps left out so far."""
    step: int = 0
    pixels: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    _counted: int = -1
    """The last step that was counted: two networks that fail in one step are one step left out."""

    def watch(self, step: int, pixels: list[Tensor], names: list[str]) -> None:
        """Keep hold of the batch of the coming step: 8-bit pixels part by part, and the pictures' names."""
        self.step, self.pixels, self.names = step, pixels, names

    def passes(self, values: dict[str, float], network: nn.Module, title: str) -> bool:
        """Whether a network may take its step: its losses and gradient norms are finite.

        ``title`` names the network in what is written: ``generator`` or ``discriminators``.

        Raises:
            LumitokError: they are not, for the last time allowed.
        """
        wrong = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if wrong is None:
            return True
        found = _not_finite((name, p.grad) for name, p in network.named_parameters() if p.grad is not None)
        self.skipped += self.step != self._counted
        self._counted = self.step
        place = self._write(title, wrong, values, found)
        if self.skipped > self.allowed:
            left_out = f" after {self.allowed} steps left out" if self.allowed else ""
            raise LumitokError(
                f"'{wrong}' is {values[wrong]} at step {self.step}{left_out}{_listed(found)}; "
                f"{self._checkpoint()}; the batch is in {place}. Go on with --resume and a lower "
                "stages.N.generator_lr, training.precision=fp32, stages.N.clip_norm=1, or "
                "training.skip_not_finite=10 to leave out such steps"
            )
        return False

    def check_weights(self, network: nn.Module, parameters: list[nn.Parameter]) -> None:
        """Raise a LumitokError where a step has made a weight infinite or not a number."""
        norms = torch._foreach_norm([p.detach() for p in parameters])
        if bool(torch.isfinite(torch.stack(norms)).all()):
            return
        if all(bool(torch.isfinite(p).all()) for p in parameters):
            return  # The squares of large weights overflow before these do.
        found = _not_finite((name, p.detach()) for name, p in network.named_parameters())
        place = self._write("weights", "weights", {}, found)
        raise LumitokError(
            f"step {self.step} made weights infinite or not a number{_listed(found)}; {self._checkpoint()}; "
            f"the batch is in {place}. Go on with --resume and a lower stages.N.generator_lr"
        )

    def _checkpoint(self) -> str:
        found = checkpoints(self.run)
        return f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"

    def _write(self, title: str, term: str, values: dict[str, float], parameters: list[str]) -> Path:
        folder = self.run / FOLDER / f"step-{self.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        said = {
            "term": term,
            "values": {name: repr(value) for name, value in values.items()},
            "parameters": parameters,
            "pictures": self.names,
        }
        (folder / f"{title}-{self.rank}.json").write_text(json.dumps(said, indent=2) + "\n")
        save_file({"pixels": torch.cat(self.pixels)}, folder / f"batch-{self.rank}.safetensors")
        return folder


def part_of(name: str) -> str:
    """The part of a network that a parameter belongs to: its first module, with its number in a list."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first


def gradient_norms(network: nn.Module, title: str) -> dict[str, Tensor]:
    """L2 norm of a network's gradients, whole (``title``) and part by part (``title/PART``)."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            parts.setdefault(part_of(name), []).append(parameter.grad)
    norms = {part: torch.nn.utils.get_total_norm(gradients) for part, gradients in parts.items()}
    whole = torch.stack(list(norms.values())).norm() if norms else torch.zeros(())
    return {title: whole} | {f"{title}/{part}": norm for part, norm in norms.items()}


def _not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())]


def _listed(names: list[str]) -> str:
    if not names:
        return ""
    return f" (parameters: {some(names, 4)})"
