"""Number formats: full precision inside an autocast region or beside TF32, and who multiplies bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

# Flags of x86 processors that multiply bfloat16 matrices in hardware, as Linux and torch name them.
FAST_BFLOAT16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off on the device of ``x``; on devices without autocast do nothing."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch TF32 off: with it a GPU's convolutions and products have 10 bits, not float32's 23.

    Neither are a processor's products rounded to bfloat16, whatever training has chosen.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    chosen = torch.get_float32_matmul_precision()
    convolutions.allow_tf32 = products.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        # In this order: switching TF32 on makes a choice of "medium" into "high".
        convolutions.allow_tf32, products.allow_tf32 = before
        torch.set_float32_matmul_precision(chosen)


def bfloat16_units() -> list[str]:
    """What this processor multiplies bfloat16 matrices with, by name; empty: it emulates them, slowly."""
    flags = _cpu_flags()
    return [name for flag, name in FAST_BFLOAT16.items() if flag in flags]


def _cpu_flags() -> frozenset[str]:
    """Return which of the processor's features are known, by the names Linux gives them."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # Older torch has none.
    if capabilities is not None:
        return frozenset(name for name, present in capabilities().items() if present is True)
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return frozenset()
    for line in listing.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
