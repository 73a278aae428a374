from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lumitok.errors import LumitokError
from lumitok.losses.vf import adaptive_weight, vf_loss


def cosine(a: list[float], b: list[float]) -> float:
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length


def by_loops(p: Tensor, a: Tensor, distance_margin: float, cosine_margin: float) -> tuple[float, float]:
    """The two terms for maps on one grid, pair by pair."""
    distances, cosines = [], []
    for sample_p, sample_a in zip(p, a, strict=True):
        rows_p = sample_p.flatten(1).T.tolist()
        rows_a = sample_a.flatten(1).T.tolist()
        for i in range(len(rows_p)):
            cosines.append(max(0.0, 1 - cosine_margin - cosine(rows_p[i], rows_a[i])))
            for j in range(len(rows_p)):
                gap = abs(cosine(rows_p[i], rows_p[j]) - cosine(rows_a[i], rows_a[j]))
                distances.append(max(0.0, gap - distance_margin))
    return sum(distances) / len(distances), sum(cosines) / len(cosines)


def block_mean(x: Tensor, rows: int, columns: int) -> Tensor:
    """Average pooling by whole blocks."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // rows, rows, w // columns, columns).mean(dim=(3, 5))


@pytest.mark.parametrize("margins", [(0.0, 0.0), (0.25, 0.5)])
def test_vf_loss_against_loops(margins: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(2, 5, 2, 3, generator=generator)
    a = torch.randn(2, 5, 4, 6, generator=generator)
    loss = vf_loss(p, a, *margins)
    distance, cos = by_loops(p, block_mean(a, 2, 2), *margins)
    assert loss.distance.item() == pytest.approx(distance, rel=1e-5)
    assert loss.cosine.item() == pytest.approx(cos, rel=1e-5)
    assert loss.total.item() == pytest.approx(distance + cos, rel=1e-5)


def test_vf_loss_pools_both_to_the_coarser_grid() -> None:
    generator = torch.Generator().manual_seed(2)
    p = torch.randn(1, 4, 6, 2, generator=generator)  # Rows finer, columns coarser than the features.
    a = torch.randn(1, 4, 3, 4, generator=generator)
    loss = vf_loss(p, a)
    distance, cos = by_loops(block_mean(p, 2, 1), block_mean(a, 1, 2), 0.0, 0.0)
    assert loss.distance.item() == pytest.approx(distance, rel=1e-5)
    assert loss.cosine.item() == pytest.approx(cos, rel=1e-5)


def test_vf_loss_does_not_see_the_length_of_a_vector() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(1, 4, 3, 3, generator=generator)
    assert vf_loss(a * 7.0, a).total.item() == pytest.approx(0.0, abs=1e-5)


def test_vf_loss_gradient() -> None:
    generator = torch.Generator().manual_seed(4)
    p = torch.randn(1, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    a = torch.randn(1, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: vf_loss(x, a.detach(), 0.1, 0.1).total, p)
    vf_loss(p, a).total.backward()
    assert a.grad is None  # The frozen encoder's side.


def test_vf_loss_stays_in_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(5)
    p, a = torch.randn(1, 8, 4, 4, generator=generator), torch.randn(1, 8, 4, 4, generator=generator)
    plain = vf_loss(p, a).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = vf_loss(p, a).total
    assert under.dtype == torch.float32
    assert under.item() == plain.item()


def test_vf_loss_names_both_shapes() -> None:
    with pytest.raises(LumitokError, match=r"\(1, 4, 2, 2\).*\(1, 5, 2, 2\)"):
        vf_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 5, 2, 2))


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    w = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    reconstruction = (w * torch.tensor([[3.0, 4.0]])).sum()  # gradient of length 5
    loss = (w * torch.tensor([[0.0, 2.0]])).sum()  # of length 2
    weight = adaptive_weight(reconstruction, loss, w, scale=3.0, eps=0.5)
    assert weight.item() == pytest.approx(3.0 * 5.0 / 2.5)
    assert not weight.requires_grad
    assert w.grad is None
    (reconstruction + weight * loss).backward()  # The graph is still there.


def test_adaptive_weight_is_bounded() -> None:
    w = nn.Parameter(torch.ones(1))
    weight = adaptive_weight((w * 1e6).sum(), (w * 0.0).sum(), w, scale=2.0, eps=1e-4, maximum=1e8)
    assert weight.item() == pytest.approx(2e8)  # 1e10 without the bound


def test_adaptive_weight_at_a_frozen_layer_says_what_to_do() -> None:
    w = nn.Parameter(torch.ones(1), requires_grad=False)
    x = torch.ones(1, requires_grad=True)
    with pytest.raises(LumitokError, match="train it, or set the loss's _adaptive key to false"):
        adaptive_weight((w * x).sum(), (w * x).sum(), w, scale=1.0)
