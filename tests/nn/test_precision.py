"""Full precision, whatever training has chosen."""

from __future__ import annotations

import pytest
import torch

from lumitok.nn.precision import exact_float32


@pytest.mark.parametrize("chosen", ["medium", "high", "highest"])
@pytest.mark.parametrize("convolutions", [True, False])
def test_float32_is_exact_inside_and_as_before_outside(chosen: str, convolutions: bool) -> None:
    def state() -> tuple[bool, bool, str]:
        flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        return (*flags, torch.get_float32_matmul_precision())

    untouched = state()
    try:
        torch.set_float32_matmul_precision(chosen)
        torch.backends.cudnn.allow_tf32 = convolutions
        before = state()

        @exact_float32()
        def fail() -> None:
            assert state() == (False, False, "highest")
            raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert state() == before
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = untouched[:2]
        torch.set_float32_matmul_precision(untouched[2])
