"""Any height and width, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.tokenizers import build_tokenizer
from lumitok.tokenizers.autoencoder import Autoencoder
from tests.tokenizers.kinds import KINDS, settings

MULTIPLES = dict.fromkeys(KINDS, 16) | {"vfm-vae, pyramid": 32, "ldm, f8": 8}


@pytest.fixture
def build(tiny_recipe: dict[str, Any]) -> Callable[[str], Autoencoder]:
    def built(kind: str) -> Autoencoder:
        torch.manual_seed(0)
        tokenizer = build_tokenizer(settings(kind, tiny_recipe)).eval()
        assert isinstance(tokenizer, Autoencoder)
        return tokenizer

    return built


def pictures(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(40, 112), (33, 17), (1, 40)])
@torch.no_grad()
def test_any_height_and_width(
    build: Callable[[str], Autoencoder], kind: str, height: int, width: int
) -> None:
    tokenizer, x = build(kind), pictures(height, width)
    multiple, factor = MULTIPLES[kind], tokenizer.config.downsampling
    assert tokenizer.encoded_multiple == multiple
    padded = [side + -side % multiple for side in (height, width)]
    z = tokenizer.encode(x).latent_dist.mode()
    assert list(z.shape) == [1, 4, *(side // factor for side in padded)]
    decoded = tokenizer.decode(z).sample
    assert list(decoded.shape) == [1, 3, *padded]
    again = tokenizer.reconstruct(x)
    assert torch.equal(again, decoded[..., :height, :width].clamp(-1, 1))
    assert torch.isfinite(again).all()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_sixteen_times_the_area_it_was_trained_on(build: Callable[[str], Autoencoder], kind: str) -> None:
    tokenizer = build(kind)
    side = 4 * tokenizer.config.image_size
    first, second = pictures(side, side), pictures(side, side).flip(3)
    a, b = tokenizer.reconstruct(first), tokenizer.reconstruct(second)
    assert a.shape == first.shape
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_latents_that_the_decoder_s_grid_would_cut(build: Callable[[str], Autoencoder], kind: str) -> None:
    tokenizer = build(kind)
    factor = tokenizer.config.downsampling
    for rows, columns in ((1, 3), (5, 2)):
        output = tokenizer.decode(torch.randn(2, 4, rows, columns))
        assert output.sample.shape == (2, 3, rows * factor, columns * factor)
        assert output.pyramid[-1] is output.sample


def test_padding_mirrors_as_often_as_need_be(build: Callable[[str], Autoencoder]) -> None:
    tokenizer = build("aligntok")
    x = torch.arange(3.0).view(1, 1, 1, 3).expand(1, 3, 16, 3)
    assert tokenizer.pad(x)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    large = pictures(20, 30)
    wanted = torch.nn.functional.pad(large, (0, 2, 0, 12), mode="reflect")
    assert torch.equal(tokenizer.pad(large), wanted)
    fits = pictures(16, 32)
    assert tokenizer.pad(fits) is fits


def test_what_is_no_picture_or_latent_is_refused(build: Callable[[str], Autoencoder]) -> None:
    tokenizer = build("vfm-vae")
    for wrong in ((3, 32, 32), (1, 1, 32, 32), (1, 3, 0, 32)):
        with pytest.raises(LumitokError, match=r"must be \(batch, 3, height, width\)"):
            tokenizer.encode(torch.zeros(wrong))
    for wrong in ((4, 2, 2), (1, 5, 2, 2), (1, 4, 0, 2)):
        with pytest.raises(LumitokError, match=r"latents must be \(batch, 4, height, width\)"):
            tokenizer.decode(torch.zeros(wrong))
