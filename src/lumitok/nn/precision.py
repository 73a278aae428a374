"""Computing in full precision: inside an autocast region, or on a GPU that would take TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


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
