"""Which number format a run computes in, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from lumitok.errors import LumitokError
from lumitok.nn.precision import bfloat16_units


@dataclass(frozen=True)
class Precision:
    """What a run computes in; the weights themselves are always float32."""

    dtype: torch.dtype
    """``torch.float32``: no autocast; ``torch.bfloat16``: autocast to it."""
    reason: str
    """Half a sentence for people: why this one."""


def default_device() -> torch.device:
    """Return where a run computes: the first accelerator, or the processor where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_precision(setting: Literal["auto", "fp32", "bf16"], device: torch.device | str) -> Precision:
    """Choose the precision of a run on ``device``.

    Args:
        setting: ``auto`` takes bfloat16 where the hardware computes it faster than float32 (an x86
            processor with AMX or AVX512-BF16, a CUDA device of compute capability 8 or newer) and float32
            everywhere else; ``fp32`` and ``bf16`` are taken as they are.
        device: where the run computes.

    Raises:
        LumitokError: ``bf16`` is asked of a device that cannot compute it.
    """
    kind = torch.device(device).type
    fast, why = _fast_bfloat16(torch.device(device))
    if setting == "fp32":
        return Precision(torch.float32, reason="the recipe asks for float32")
    if setting == "bf16":
        if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=True):
            raise LumitokError(f"precision is bf16, but {why}; set training.precision to fp32 or auto")
        return Precision(torch.bfloat16, reason=f"the recipe asks for bfloat16; {why}")
    if fast:
        return Precision(torch.bfloat16, reason=why)
    return Precision(torch.float32, reason=why)


def _fast_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Say whether ``device`` computes bfloat16 faster than float32, and how that is known."""
    if device.type == "cpu":
        found = bfloat16_units()
        if found:
            return True, f"the processor has {' and '.join(found)}"
        return False, "the processor has neither AMX nor AVX512-BF16, so bfloat16 would be slower"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return True, f"{name} has compute capability {major}.{minor}"
        return False, f"{name} has compute capability {major}.{minor}, and fast bfloat16 begins at 8.0"
    return False, f"on {device.type} float32 is the safe choice"
