"""What anything beyond a tokenizer may know of its latents."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from lumitok.errors import LumitokError


@dataclass(frozen=True)
class LatentSpec:
    """Shape and statistics of a tokenizer's latents, for a picture of the size it was trained on.

    Latents come out of a tokenizer raw. A diffusion network learns them whitened, channel by channel;
    this object alone applies the whitening and takes it back, so it cannot be done on one side only.

    Attributes:
        channels: channels of z.
        height: rows of z.
        width: columns of z.
        mean: mean of each channel over pictures and positions; None while unmeasured.
        std: unbiased standard deviation of each channel; None while unmeasured.
        tokenizer: fingerprint of the tokenizer that makes these latents.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tokenizer: str | None = None

    def whiten(self, z: Tensor) -> Tensor:
        """Return (z - mean) / std; z is (B, channels, h, w), raw."""
        mean, std = self._statistics(z)
        # In place, for of large batches half the time goes into new memory; and no division of each number,
        # which takes as long as the whole pass.
        return (z - mean).mul_(1 / std)

    def unwhiten(self, z: Tensor) -> Tensor:
        """Return z * std + mean, the inverse of :meth:`whiten`."""
        mean, std = self._statistics(z)
        return z * std + mean

    def require_statistics(self) -> None:
        """Raise a LumitokError where there are no statistics: nothing can learn or draw these latents yet."""
        if self.mean is None or self.std is None:
            raise LumitokError(
                "this tokenizer carries no latent statistics: they are measured at the end of a training "
                "run; `lumitok statistics CHECKPOINT PICTURES` measures and stores them"
            )

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.require_statistics()
        assert self.mean is not None
        assert self.std is not None
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise LumitokError(f"latents of shape {tuple(z.shape)} do not fit (B, {self.channels}, h, w)")
        return _by_channel(self.mean, z.dtype, z.device), _by_channel(self.std, z.dtype, z.device)


@lru_cache(maxsize=64)
def _by_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, C, 1, 1); made once, for a step that makes it anew waits for it."""
    with torch.inference_mode(False):  # What is made there cannot be used in a training later.
        return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


ORIGIN = "latents.json"


@dataclass(frozen=True)
class LatentOrigin:
    """What a diffusion network must know of the latents it learnt; kept beside its weights.

    Attributes:
        spec: their shape and statistics, and which tokenizer made them.
        classes: names of the classes, in the order of their labels; empty where there are none.
    """

    spec: LatentSpec
    classes: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write it to a network's folder."""
        text = json.dumps({**asdict(self.spec), "classes": self.classes}, indent=1, ensure_ascii=False)
        (folder / ORIGIN).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read it from a network's folder; None where there is none, as with an imported network.

        Raises:
            LumitokError: the file is damaged.
        """
        path = folder / ORIGIN
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            classes = tuple(values.pop("classes"))
            for name in ("mean", "std"):
                values[name] = None if values[name] is None else tuple(values[name])
            return cls(LatentSpec(**values), classes)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LumitokError(f"{path} is damaged: {error}") from None
