"""Attention by whole matrices, where a processor multiplies bfloat16."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lumitok.diffusion import attention
from lumitok.diffusion.attention import attend

SHAPE = (3, 2, 40, 16)


def drawn(spread: float, *, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    """Queries, keys, values and a gradient in bfloat16; ``spread`` squared is that of the scores."""
    draw = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(shape, generator=draw)).bfloat16() for scale in (spread, spread, 1, 1)]


def with_gradients(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    q, k, v = (tensor.to(dtype).requires_grad_() for tensor in inputs[:3])
    y = attend(q, k, v)
    y.backward(inputs[3].to(dtype))
    return [y, *(tensor.grad for tensor in (q, k, v) if tensor.grad is not None)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("spread", [1.0, 3.0, 5.0])
def test_large_scores_are_not_rounded(spread: float, autocast: bool) -> None:
    inputs = drawn(spread)
    exact = with_gradients(inputs, torch.float64)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        found = with_gradients(inputs, torch.bfloat16)
    for name, a, b in zip(("y", "dq", "dk", "dv"), found, exact, strict=True):
        assert a.dtype == torch.bfloat16
        # A bfloat16 has steps of 1/256; scores rounded to it would be wrong by 0.02 to 0.06 here.
        assert float(((a - b).norm() / b.norm()).detach()) < 0.008, name


def test_a_sample_does_not_see_its_batch() -> None:
    inputs = drawn(3.0)
    together = attend(*inputs[:3])
    for index in range(SHAPE[0]):
        alone = attend(*(tensor[index : index + 1] for tensor in inputs[:3]))
        assert torch.equal(alone[0], together[index])


def test_all_pairs_of_many_tokens_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, _ = drawn(3.0)
    fused = F.scaled_dot_product_attention(q, k, v)
    assert not torch.equal(attend(q, k, v), fused)
    monkeypatch.setattr(attention, "MOST_TOKENS", SHAPE[2] - 1)
    assert torch.equal(attend(q, k, v), fused)


def test_float32_takes_the_fused_kernel() -> None:
    q, k, v = (tensor.float() for tensor in drawn(1.0)[:3])
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
