"""PSNR, SSIM and MS-SSIM against formulas written out here with SciPy; rounding level by level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.image_quality import (
    METRICS,
    MS_SSIM_SIDE,
    PSNR_LIMIT,
    ReconstructionQuality,
    l1,
    ms_ssim,
    psnr,
    ssim,
    ssim_range_2,
    to_uint8,
)


def pair(count: int = 5, size: int = 24, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    strength = torch.linspace(0.1, 1.0, count)[:, None, None, None]
    image = target + noise * strength * torch.randn(target.shape, generator=generator)
    return image.clamp(-1, 1), target


def test_every_level_survives_and_halves_go_to_the_nearest() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1).long(), levels)
    assert torch.equal(to_uint8(levels / 255, low=0.0).long(), levels)
    above = (levels[:-1] + 0.6) / 127.5 - 1  # Truncation would give `levels`.
    assert torch.equal(to_uint8(above).long(), levels[1:])


def test_legacy_rounding_is_the_published_truncation() -> None:
    levels = torch.arange(256)
    truncated = to_uint8(levels / 127.5 - 1, rounding="legacy").long()
    assert int((truncated != levels).sum()) == 63
    assert set((levels - truncated).tolist()) == {0, 1}
    between = (levels[:-1] + 0.6) / 127.5 - 1
    assert torch.equal(to_uint8(between, rounding="legacy").long(), levels[:-1])
    assert to_uint8(torch.tensor([-1.5, 1.5]), rounding="legacy").tolist() == [0, 255]


def test_values_out_of_range_are_clipped_not_wrapped() -> None:
    assert to_uint8(torch.tensor([-1.5, 1.5, -9.0, 9.0])).tolist() == [0, 255, 0, 255]


def test_bfloat16_is_widened_before_it_is_scaled() -> None:
    values = torch.linspace(-1, 1, 300).bfloat16()
    assert torch.equal(to_uint8(values), to_uint8(values.float()))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_diverged_picture_is_refused(wrong: float) -> None:
    with pytest.raises(LumitokError, match="1 of 4 pixel values"):
        to_uint8(torch.tensor([0.0, wrong, 0.0, 0.0]))


def test_psnr_of_a_known_error() -> None:
    target = torch.full((2, 3, 8, 8), 0.5)
    image = target + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert psnr(image, target).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_psnr_is_each_images_own_as_skimage_has_it() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    image, target = pair()
    expected = [
        metrics.peak_signal_noise_ratio(t.double().numpy(), i.double().numpy(), data_range=1.0)
        for i, t in zip(image, target, strict=True)
    ]
    assert psnr(image, target).tolist() == pytest.approx(expected, rel=1e-9)


def test_equal_images_have_the_limit_and_nothing_exceeds_it() -> None:
    target = torch.rand(1, 3, 8, 8)
    nearly = target.double() + 1e-9
    assert psnr(target, target).item() == PSNR_LIMIT
    assert psnr(nearly, target.double()).item() == PSNR_LIMIT


def reference_ssim(image: np.ndarray, target: np.ndarray, data_range: float = 1.0) -> float:
    """Gaussian 11, sigma 1.5, mirrored borders that count, no correction of the covariance."""
    filters = pytest.importorskip("scipy.ndimage")

    def blur(x: np.ndarray) -> np.ndarray:
        return np.stack([filters.gaussian_filter(c, 1.5, mode="mirror", truncate=3.5) for c in x])

    mean_x, mean_y = blur(image), blur(target)
    var_x, var_y = blur(image**2) - mean_x**2, blur(target**2) - mean_y**2
    covariance = blur(image * target) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    upper = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((upper / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def test_ssim_is_the_convention_it_names() -> None:
    image, target = ((x.double() + 1) / 2 for x in pair())
    expected = [reference_ssim(i.numpy(), t.numpy()) for i, t in zip(image, target, strict=True)]
    assert ssim(image, target).tolist() == pytest.approx(expected, abs=1e-7)
    assert max(expected) - min(expected) > 0.05


def test_ssim_on_the_symmetric_range_is_another_number() -> None:
    on_two, on_one = pair(), tuple((x.double() + 1) / 2 for x in pair())
    expected = [
        reference_ssim(i.double().numpy(), t.double().numpy(), 2.0) for i, t in zip(*on_two, strict=True)
    ]
    assert ssim_range_2(*on_one).tolist() == pytest.approx(expected, abs=1e-7)
    assert (ssim_range_2(*on_one) - ssim(*on_one)).abs().max() > 0.01


@pytest.mark.parametrize("measure", [ssim, ssim_range_2])
def test_ssim_of_an_image_with_itself_is_one(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    image, _ = pair(2)
    assert measure(image, image).tolist() == pytest.approx([1.0, 1.0])


def reference_ms_ssim(image: np.ndarray, target: np.ndarray) -> float:
    """Wang et al. 2003: windows that lie inside the image alone, contrast of four scales, all of the last."""
    filters = pytest.importorskip("scipy.ndimage")
    score = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):

        def blur(x: np.ndarray) -> np.ndarray:
            smooth = [filters.gaussian_filter(c, 1.5, mode="mirror", truncate=3.5) for c in x]
            return np.stack(smooth)[:, 5:-5, 5:-5]

        mean_x, mean_y = blur(image), blur(target)
        var_x, var_y = blur(image**2) - mean_x**2, blur(target**2) - mean_y**2
        contrast = (2 * (blur(image * target) - mean_x * mean_y) + 0.03**2) / (var_x + var_y + 0.03**2)
        if scale == 4:
            contrast = contrast * (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        score *= contrast.mean() ** weight
        image, target = (
            x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
            .reshape(3, x.shape[1] // 2, 2, x.shape[2] // 2, 2)
            .mean(axis=(2, 4))
            for x in (image, target)
        )
    return float(score)


def test_ms_ssim_is_the_published_one() -> None:
    coarse, _ = pair(2, 12)
    target = torch.nn.functional.interpolate(coarse, 192, mode="bicubic").double().clamp(-1, 1) / 2 + 0.5
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
    image = (target + torch.tensor([0.05, 0.4])[:, None, None, None] * noise).clamp(0, 1)
    expected = [reference_ms_ssim(i.numpy(), t.numpy()) for i, t in zip(image, target, strict=True)]
    # The borders of the last, smallest scale count in torchmetrics, and not in the paper.
    assert ms_ssim(image, target).tolist() == pytest.approx(expected, abs=0.01)
    assert expected[0] - expected[1] > 0.1
    assert (ms_ssim(image, target) - ssim(image, target)).abs().min() > 0.05
    assert ms_ssim(target, target).tolist() == pytest.approx([1.0, 1.0])


def test_the_similarities_are_torchmetrics_to_rounding() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    coarse, _ = pair(2, 12)
    target = torch.nn.functional.interpolate(coarse[:1], (181, 177), mode="bicubic").double() / 2 + 0.5
    image = (target + 0.2 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    expected = functional.multiscale_structural_similarity_index_measure(image, target, data_range=1.0)
    assert ms_ssim(image, target).item() == pytest.approx(expected.item(), abs=1e-8)
    # Where one scale is anticorrelated, here the finest, there is no power to take.
    grain = 0.4 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).repeat(88, 88)[None, None]
    smooth = torch.full((1, 3, 176, 176), 0.5, dtype=torch.float64)
    assert ms_ssim(smooth + grain, smooth - grain).item() == 0.0
    assert ms_ssim(smooth + grain, smooth + 0.9 * grain).item() > 0.5
    image, target = image[..., :31, :20], target[..., :31, :20]
    expected = functional.structural_similarity_index_measure(image, target, data_range=1.0)
    assert ssim(image, target).item() == pytest.approx(expected.item(), abs=1e-12)
    expected = functional.structural_similarity_index_measure(2 * image - 1, 2 * target - 1, data_range=2.0)
    assert ssim_range_2(image, target).item() == pytest.approx(expected.item(), abs=1e-12)


def test_ms_ssim_says_which_side_it_needs() -> None:
    enough = torch.rand(1, 3, MS_SSIM_SIDE, MS_SSIM_SIDE, generator=torch.Generator().manual_seed(0))
    assert ms_ssim(enough, enough).tolist() == pytest.approx([1.0])
    with pytest.raises(LumitokError, match="at least 176 pixels"):
        ms_ssim(enough[..., 1:], enough[..., 1:])


def test_l1_is_the_mean_difference() -> None:
    target = torch.full((2, 3, 8, 8), 0.5)
    image = target + torch.tensor([0.25, -0.125])[:, None, None, None]
    assert l1(image, target).tolist() == [0.25, 0.125]


def test_ssim_says_which_side_is_too_short() -> None:
    with pytest.raises(LumitokError, match="at least 6 pixels"):
        ssim(torch.rand(1, 3, 5, 16), torch.rand(1, 3, 5, 16))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(LumitokError, match=r"\(2, 3, 8, 8\) and \(1, 3, 8, 8\)"):
        psnr(torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8))


def gathered(image: Tensor, target: Tensor, size: int) -> dict[str, float]:
    quality = ReconstructionQuality()
    for one, other in zip(image.split(size), target.split(size), strict=True):
        quality.update(one, other)
    return dict(quality.results())


def test_the_split_into_batches_changes_nothing() -> None:
    image, target = pair()
    whole = gathered(image, target, 5)
    assert whole == gathered(image, target, 1) == gathered(image, target, 2)
    assert list(whole) == ["psnr", "ssim", "l1", "count"]
    assert whole["count"] == 5


def test_order_and_merging_change_nothing() -> None:
    image, target = pair()
    first, second = ReconstructionQuality(), ReconstructionQuality()
    first.update(image[3:], target[3:])
    second.update(image[:3], target[:3])
    first.merge(second)
    assert dict(first.results()) == gathered(image, target, 5)
    assert len(first) == 5


def test_scores_are_of_the_rounded_pictures_and_images_count_alike() -> None:
    image, target = pair()
    rounded = [to_uint8(x).double() / 255 for x in (image, target)]
    results = gathered(image, target, 5)
    assert results["psnr"] == pytest.approx(psnr(*rounded).mean().item(), rel=1e-12)
    pooled = -10 * (rounded[0] - rounded[1]).square().mean().log10().item()
    assert results["psnr"] - pooled > 1
    assert results["l1"] == pytest.approx((rounded[0] - rounded[1]).abs().mean().item(), rel=1e-12)
    slight = target + 0.3 / 127.5 * torch.ones_like(target)
    assert gathered(slight.clamp(-1, 1), target, 5)["l1"] < 0.5 / 255


def test_more_is_measured_where_it_is_asked_for() -> None:
    image, target = pair(2, 192)
    quality = ReconstructionQuality(METRICS)
    quality.update_levels(to_uint8(image), to_uint8(target))
    pixels = [to_uint8(x).double() / 255 for x in (image, target)]
    assert list(quality.scores) == ["psnr", "ssim", "l1", "ssim_range_2", "ms_ssim"]
    for name, measure in METRICS.items():
        assert quality.scores[name] == measure(*pixels).tolist()
    assert list(ReconstructionQuality().scores) == ["psnr", "ssim", "l1"]
    with pytest.raises(LumitokError, match="'ms-ssim'; did you mean 'ms_ssim'"):
        ReconstructionQuality(["ms-ssim"])


def test_no_image_is_no_result() -> None:
    with pytest.raises(LumitokError, match="no image"):
        dict(ReconstructionQuality().results())
