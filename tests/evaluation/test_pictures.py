"""Latents of known directions, and sheets whose every pixel can be foretold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation.pictures import align_colors, grid, latent_pca, pyramid_sheet, resized, to_pil

SCORES = torch.tensor([9.0, 3.0, 1.0])[:, None] * torch.randn(
    3, 4 * 6 * 6, generator=torch.Generator().manual_seed(3)
)


def constructed(channels: int = 7, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Latents (4, C, 6, 6) that are three known signals along orthonormal directions, and the directions."""
    generator = torch.Generator().manual_seed(seed)
    signals = SCORES - SCORES.mean(dim=1, keepdim=True)
    signals = torch.linalg.svd(signals.double(), full_matrices=False).Vh * torch.tensor([[9.0], [3.0], [1.0]])
    directions = torch.linalg.qr(torch.randn(channels, 3, generator=generator).double()).Q
    latents = (directions @ signals).reshape(channels, 4, 6, 6).transpose(0, 1) + 2.5
    return latents.float(), directions


def test_the_components_are_the_directions_it_was_made_of() -> None:
    latents, directions = constructed()
    shown = latent_pca(latents, percentiles=(0.0, 100.0)).double()
    signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    signals = torch.einsum("nchw,ck->nkhw", latents.double() - 2.5, directions * signs)
    low, high = signals.amin(dim=(0, 2, 3)), signals.amax(dim=(0, 2, 3))
    expected = (signals - low[:, None, None]) / (high - low)[:, None, None]
    assert torch.allclose(shown, expected, atol=1e-4)
    assert shown.shape == (4, 3, 6, 6)
    assert shown.min() == 0
    assert shown.max() == 1


def test_colours_do_not_depend_on_the_order_of_channels_or_images() -> None:
    latents, _ = constructed()
    shown = latent_pca(latents)
    channels, images = torch.tensor([3, 0, 6, 1, 5, 2, 4]), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(latent_pca(latents[:, channels]), shown, atol=1e-5)
    assert torch.allclose(latent_pca(latents[images]), shown[images], atol=1e-5)


def test_one_image_keeps_its_colours_when_the_fit_is_shared() -> None:
    latents, _ = constructed()
    shared = latent_pca(latents[1:2], fit_on=latents)
    assert torch.allclose(shared, latent_pca(latents)[1:2], atol=1e-6)
    assert not torch.allclose(shared, latent_pca(latents[1:2]), atol=1e-2)


def test_percentiles_stretch_and_clip() -> None:
    latents, _ = constructed()
    share = (latent_pca(latents, percentiles=(10.0, 90.0)) == 0).float().mean().item()
    assert share == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("channels", [1, 2])
def test_too_few_channels_leave_the_rest_grey(channels: int) -> None:
    shown = latent_pca(torch.randn(2, channels, 4, 4))
    assert (shown[:, channels:] == 0.5).all()
    assert shown[:, :channels].std() > 0.1


def test_a_constant_latent_is_grey_and_not_noise() -> None:
    assert (latent_pca(torch.full((1, 5, 4, 4), 0.3)) == 0.5).all()


def test_latents_that_cannot_be_shown_are_refused() -> None:
    with pytest.raises(LumitokError, match="equal C"):
        latent_pca(torch.randn(1, 4, 2, 2), fit_on=torch.randn(1, 5, 2, 2))
    with pytest.raises(LumitokError, match="NaN"):
        latent_pca(torch.full((1, 4, 2, 2), torch.nan))


def plain(color: tuple[int, int, int], size: int = 32) -> Image.Image:
    return Image.new("RGB", (size, size), color)


RED, BLUE, GREEN = (200, 20, 20), (20, 20, 200), (20, 160, 20)


def area(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Pixels of a colour, and the left and top of the first."""
    rows, columns = np.nonzero((np.asarray(sheet) == color).all(axis=-1))
    return len(rows), int(columns.min()), int(rows.min())


def test_a_sheet_has_each_picture_in_its_place() -> None:
    sheet = grid([[plain(RED), plain(BLUE)], [None, plain(GREEN, 16)]], columns=["a", "b"], labels=["x", "y"])
    red, blue, green = (area(sheet, color) for color in (RED, BLUE, GREEN))
    assert red[0] == blue[0] == green[0] == 32 * 32  # The small one is scaled to the cell.
    assert red[1] < blue[1] == green[1]
    assert red[2] == blue[2] < green[2]
    assert green[1] - red[1] > 32
    assert sheet.width >= green[1] + 32


def test_labels_take_room_and_leave_ink() -> None:
    bare, labelled = grid([[plain(RED)]]), grid([[plain(RED)]], columns=["Step 500"], labels=["cat.png"])
    assert labelled.width > bare.width
    assert labelled.height > bare.height
    assert len(labelled.getcolors(1 << 16) or []) > 2 == len(bare.getcolors(1 << 16) or [])


def test_the_dark_sheet_is_dark_and_both_are_neutral() -> None:
    for scheme, level in (("light", 250), ("dark", 24)):
        assert grid([[plain(RED)]], scheme=scheme).getpixel((0, 0)) == (level,) * 3
    with pytest.raises(LumitokError, match="unknown scheme"):
        grid([[plain(RED)]], scheme="night")


def test_a_picture_keeps_its_shape_in_its_cell() -> None:
    sheet = grid([[Image.new("RGB", (32, 8), RED)]], cell=64)
    assert area(sheet, RED)[0] == 64 * 16
    full = area(grid([[plain(RED)]], cell=64), RED)
    tall = area(grid([[Image.new("RGB", (8, 32), RED)]], cell=64), RED)
    assert (tall[1] - full[1], tall[2] - full[2]) == (24, 0)
    assert area(sheet, RED)[2] - full[2] == 24


def test_a_sheet_of_nothing_or_with_wrong_labels_is_refused() -> None:
    with pytest.raises(LumitokError, match="at least one"):
        grid([[None]])
    with pytest.raises(LumitokError, match="1 labels for 2 columns"):
        grid([[plain(RED), plain(BLUE)]], columns=["one"])


def test_the_pyramid_stands_on_one_line_at_true_size_or_all_alike() -> None:
    pictures = [plain(RED, 8), plain(GREEN, 16), plain(BLUE, 64)]
    areas = [area(pyramid_sheet(pictures), color) for color in (RED, GREEN, BLUE)]
    assert [count for count, _, _ in areas] == [64, 256, 4096]
    assert len({top + side for (_, _, top), side in zip(areas, (8, 16, 64), strict=True)}) == 1
    alike = [area(pyramid_sheet(pictures, same_size=True), color)[0] for color in (RED, GREEN, BLUE)]
    assert alike == [4096] * 3


def test_growing_repeats_pixels() -> None:
    tensor = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    grown = torch.from_numpy(np.array(resized(tensor, 12, 12))).permute(2, 0, 1)
    assert torch.equal(grown, tensor.repeat_interleave(3, 1).repeat_interleave(3, 2))


def test_a_float_picture_is_refused_and_told_what_to_do() -> None:
    with pytest.raises(LumitokError, match="to_uint8"):
        to_pil(torch.rand(3, 4, 4))


def test_colours_are_exchanged_and_inverted_back() -> None:
    wanted = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    changed = torch.stack([wanted[:, 2], 1 - wanted[:, 0], wanted[:, 1]], dim=1)
    torch.testing.assert_close(align_colors(changed, wanted), wanted)
    torch.testing.assert_close(align_colors(wanted, wanted), wanted)
    # Against finer pictures of the same; a colour that does not vary takes the place that is left.
    finer = wanted.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    flat = changed.clone()
    flat[:, 0] = 0.5
    aligned = align_colors(flat, finer)
    torch.testing.assert_close(aligned[:, :2], wanted[:, :2])
    assert bool((aligned[:, 2] == 0.5).all())
    for other in (wanted[:1], wanted[:, :2], wanted[0]):
        with pytest.raises(LumitokError, match=r"two batches \(N, 3, h, w\)"):
            align_colors(wanted, other)


def test_a_label_may_have_two_lines() -> None:
    one, two = (
        grid([[Image.new("RGB", (64, 64))]], labels=[label]) for label in ("a long name", "a long name\nand")
    )
    assert two.size == one.size
