"""Attention by whole matrices, where a processor is trained on in bfloat16."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lumitok.diffusion import attention
from lumitok.diffusion.attention import attend

SHAPE = (3, 2, 40, 16)
PAIRS = 3 * 2 * 40 * 40


@pytest.fixture(autouse=True)
def _units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor is one that multiplies bfloat16, whichever it is."""
    monkeypatch.setattr(attention, "HAS_UNITS", True)


def drawn(spread: float, *, offset: float = 0.0) -> list[Tensor]:
    """Queries, keys, values and a gradient in bfloat16; ``spread`` squared is that of the scores.

    ``offset`` is what all values share; the gradient then shares a tenth of it.
    """
    draw = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(SHAPE, generator=draw) for _ in range(4))
    return [x.bfloat16() for x in (spread * q, spread * k, v + offset, g + offset / 10)]


def with_gradients(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    q, k, v = (tensor.to(dtype).detach().requires_grad_() for tensor in inputs[:3])
    y = attend(q, k, v)
    y.backward(inputs[3].to(dtype))
    return [y.detach(), *(tensor.grad for tensor in (q, k, v) if tensor.grad is not None)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("spread", [1.0, 3.0, 5.0])
def test_large_scores_and_shared_values_are_not_rounded(spread: float, offset: float, autocast: bool) -> None:
    inputs = drawn(spread, offset=offset)
    exact = with_gradients(inputs, torch.float64)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        found = with_gradients(inputs, torch.bfloat16)
    for name, a, b in zip(("y", "dq", "dk", "dv"), found, exact, strict=True):
        assert a.dtype == torch.bfloat16
        # A bfloat16 has steps of 1/256; scores rounded to it would be wrong by 0.02 to 0.06 here, and
        # gradients that see what all values share by 0.1 and more.
        assert float((a - b).norm() / b.norm()) < 0.01, name


def test_a_sample_does_not_see_its_batch() -> None:
    inputs = drawn(3.0)
    together = with_gradients(inputs, torch.bfloat16)
    for index in range(SHAPE[0]):
        alone = with_gradients([tensor[index : index + 1] for tensor in inputs], torch.bfloat16)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[index], rtol=2**-7, atol=1e-3)


def by_matrices(inputs: list[Tensor]) -> bool:
    y = attend(*(tensor.detach().requires_grad_() for tensor in inputs[:3]))
    return "MatrixAttention" in type(y.grad_fn).__name__


def test_where_it_is_torchs_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = drawn(1.0)
    assert by_matrices(inputs)
    assert not by_matrices([tensor.float() for tensor in inputs])
    with torch.no_grad():  # There and not back, it is no quicker.
        assert torch.equal(attend(*inputs[:3]), F.scaled_dot_product_attention(*inputs[:3]))
    for most, whole in ((PAIRS, True), (PAIRS - 1, False)):
        monkeypatch.setattr(attention, "MOST_PAIRS", most)
        assert by_matrices(inputs) is whole
    monkeypatch.setattr(attention, "MOST_PAIRS", PAIRS)
    monkeypatch.setattr(attention, "HAS_UNITS", False)
    assert not by_matrices(inputs)


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in drawn(1.0)[:3])
    (gradient,) = torch.autograd.grad(attend(q, k, v).float().square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.float().sum().backward()


@pytest.mark.filterwarnings("ignore")  # The compiler's own.
def test_it_compiles_whole() -> None:
    inputs = drawn(3.0)
    plain = with_gradients(inputs, torch.bfloat16)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    q, k, v = (tensor.detach().requires_grad_() for tensor in inputs[:3])
    y = compiled(q, k, v)
    y.backward(inputs[3])
    for a, b in zip((y.detach(), q.grad, k.grad, v.grad), plain, strict=True):
        assert a is not None
        torch.testing.assert_close(a, b, rtol=2**-7, atol=2e-2)
