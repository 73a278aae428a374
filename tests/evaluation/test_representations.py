"""What has a representation, and its features over a set of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lumitok.config import EncoderConfig, Recipe
from lumitok.errors import LumitokError
from lumitok.evaluation import representations
from lumitok.evaluation.perturbations import names as change_names
from lumitok.evaluation.perturbations import perturb
from lumitok.evaluation.picture_sets import PictureSource, open_picture_set
from lumitok.evaluation.representations import (
    UNCHANGED,
    EncoderLayers,
    Gathered,
    RawPixels,
    TokenizerLatent,
    gather_features,
    open_encoder,
)
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers import Tokenizer, build_tokenizer

SIDE = 32


@pytest.fixture
def tokenizer(tiny_recipe: dict[str, Any]) -> Tokenizer:
    torch.manual_seed(0)
    return build_tokenizer(Recipe.model_validate(tiny_recipe).model).eval()


@pytest.fixture
def encoder(tiny_recipe: dict[str, Any]) -> FoundationEncoder:
    torch.manual_seed(1)
    return FoundationEncoder(EncoderConfig.model_validate(tiny_recipe["model"]["encoder"]))


@pytest.fixture
def pictures(tmp_path: Path) -> PictureSource:
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return open_picture_set(tmp_path)


class ToyNetwork(nn.Module):
    """Any network that hands out its blocks' tokens; like a diffusion network it draws noise."""

    name, weights, detail = "toy", None, ""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.second = nn.Linear(3 * 8 * 8, 6), nn.Linear(6, 4)

    def blocks(self, pixels: Tensor, draws: Sequence[int]) -> list[tuple[str, Tensor]]:
        noise = [torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(draw)) for draw in draws]
        patches = nn.functional.unfold(pixels + torch.stack(noise), 8, stride=8).transpose(1, 2)
        first = self.embed(patches)
        return [("toy block 1", first), ("toy block 2", self.second(first))]


def gathered(pictures: PictureSource, networks: Sequence[Any], **options: Any) -> Gathered:
    return gather_features(pictures, range(len(pictures)), networks, **{"batch_size": 4, **options})


def test_a_tokenizers_latent_is_the_mean_over_positions_of_raw_z(
    tokenizer: Tokenizer, pictures: PictureSource
) -> None:
    found = gathered(pictures, [TokenizerLatent(tokenizer, "mean")])
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(pictures.path / name))) for name in pictures.names]
    )
    with torch.no_grad():
        z = tokenizer.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    assert torch.allclose(found.features[UNCHANGED]["latent"], z.mean(dim=(2, 3)), atol=1e-5)
    assert found.places == list(range(9))


def test_the_samples_noise_is_the_pictures_own(tokenizer: Tokenizer, pictures: PictureSource) -> None:
    one = gathered(pictures, [TokenizerLatent(tokenizer)], batch_size=4).features[UNCHANGED]["latent"]
    again = gathered(pictures, [TokenizerLatent(tokenizer)], batch_size=9).features[UNCHANGED]["latent"]
    mean = gathered(pictures, [TokenizerLatent(tokenizer, "mean")]).features[UNCHANGED]["latent"]
    other = gathered(pictures, [TokenizerLatent(tokenizer, seed=1)]).features[UNCHANGED]["latent"]
    assert torch.allclose(one, again, atol=1e-5)
    assert not torch.allclose(one, mean, atol=1e-2)
    assert not torch.allclose(one, other, atol=1e-2)
    noise = one - mean
    assert not torch.allclose(noise[0], noise[1], atol=1e-2)


def test_another_view_of_a_picture_has_other_noise(tokenizer: Tokenizer) -> None:
    latent = TokenizerLatent(tokenizer)
    x = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        first, second, same = (latent.blocks(x, [draw])[0][1] for draw in (0, 1, 0))
    assert torch.equal(first, same)
    assert not torch.allclose(first, second, atol=1e-2)


def test_an_encoders_layers_are_its_patch_tokens(encoder: FoundationEncoder) -> None:
    layers = EncoderLayers(encoder, SIDE)
    x = torch.rand(2, 3, SIDE, SIDE)
    (first, tokens), (last, end) = layers.blocks(x, [0, 1])
    assert (first, last) == ("timm:vit_tiny_patch16_224 layer 0", "timm:vit_tiny_patch16_224")
    assert layers.block_names == [first, last]
    assert tokens.shape == end.shape == (2, 4, 32)
    maps = encoder(x).maps
    assert torch.equal(end.mean(dim=1), maps[1].flatten(2).mean(dim=2))
    assert torch.equal(tokens[:, 1], maps[0][:, :, 0, 1])  # Row by row.
    assert layers.weights == encoder.weights_hash()


def test_pixels_are_their_own_representation() -> None:
    x = torch.rand(2, 3, 4, 4)
    ((name, tokens),) = RawPixels().blocks(x, [0, 1])
    assert name == "pixels"
    assert torch.equal(tokens.transpose(1, 2).reshape(2, 3, 4, 4), x)


def test_any_network_that_hands_out_its_blocks(pictures: PictureSource) -> None:
    toy = ToyNetwork()
    found = gathered(pictures, [toy, RawPixels()], batch_size=2)
    again = gathered(pictures, [toy], batch_size=9)
    assert {name: x.shape for name, x in found.features[UNCHANGED].items()} == {
        "toy block 1": (9, 6),
        "toy block 2": (9, 4),
        "pixels": (9, 3),
    }
    assert torch.allclose(
        found.features[UNCHANGED]["toy block 2"], again.features[UNCHANGED]["toy block 2"], atol=1e-5
    )


def test_all_networks_see_the_same_changed_pictures(pictures: PictureSource) -> None:
    seen: dict[str, list[Tensor]] = {"one": [], "other": []}
    drawn: list[int] = []

    class Eye(RawPixels):
        def __init__(self, name: str) -> None:
            self.name = name

        def blocks(self, pixels: Tensor, draws: Sequence[int]) -> list[tuple[str, Tensor]]:
            seen[self.name].append(pixels)
            drawn.extend(draws if self.name == "one" else ())
            return super().blocks(pixels, draws)

    found = gathered(pictures, [Eye("one"), Eye("other")], changed={"one", "other"}, batch_size=3)
    assert len(seen["one"]) == 3 * 6
    assert len(set(drawn)) == len(drawn) == 9 * 6  # A draw stands for one view of one picture.
    assert all(torch.equal(a, b) for a, b in zip(seen["one"], seen["other"], strict=True))
    assert list(found.features) == [UNCHANGED, *change_names()]
    # The i-th picture of the list is changed as picture i, in whatever batch.
    pixels, _ = next(pictures.batches(range(9), 9))
    wanted = perturb(pixels, range(9))["noise 0.20"][0].pixels.float() / 255
    assert torch.allclose(found.features["noise 0.20"]["one"], wanted.mean(dim=(2, 3)), atol=1e-6)
    some = gather_features(pictures, [5, 2], [Eye("one")], batch_size=1, changed={"one"})
    wanted = perturb(pixels[[5, 2]], [0, 1])["noise 0.20"][0].pixels.float() / 255
    assert torch.allclose(some.features["noise 0.20"]["one"], wanted.mean(dim=(2, 3)), atol=1e-6)
    assert some.places == [5, 2]


def test_only_the_wanted_blocks_are_kept_of_changed_pictures(pictures: PictureSource) -> None:
    found = gathered(pictures, [ToyNetwork(), RawPixels()], changed={"toy block 2"})
    assert set(found.features["noise 0.05"]) == {"toy block 2"}
    assert set(found.features[UNCHANGED]) == {"toy block 1", "toy block 2", "pixels"}
    assert set(gathered(pictures, [RawPixels()]).features) == {UNCHANGED}


def test_smaller_pictures_keep_their_rows(pictures: PictureSource) -> None:
    back = gathered(pictures, [RawPixels()], changed={"pixels"}, batch_size=9)
    small = gathered(pictures, [RawPixels()], changed={"pixels"}, batch_size=9, scaled="smaller")
    turned = change_names()[-1]
    # The mean colour hardly changes by scaling, and noise does not at all.
    assert torch.allclose(small.features[turned]["pixels"], back.features[turned]["pixels"], atol=0.02)
    assert not torch.allclose(small.features[turned]["pixels"], back.features[turned]["pixels"], atol=1e-6)
    assert torch.equal(small.features["noise 0.05"]["pixels"], back.features["noise 0.05"]["pixels"])


def test_several_processes_gather_what_one_does(
    pictures: PictureSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures.path / "4.png").write_bytes(b"no picture")
    toy, parts = ToyNetwork(), []
    alone = gathered(pictures, [toy], changed={"toy block 1"})
    monkeypatch.setattr(representations, "together", lambda work: parts.append(work()) or [])
    for mine in (range(3), range(3, 9), range(9, 9)):
        monkeypatch.setattr(representations, "share", lambda _, mine=mine: mine)
        with pytest.raises(LumitokError, match="none of the pictures could be read"):  # Of no process.
            gathered(pictures, [toy], changed={"toy block 1"})
    monkeypatch.setattr(representations, "together", lambda _: parts)
    together = gathered(pictures, [toy], changed={"toy block 1"})
    assert together.places == alone.places == [0, 1, 2, 3, 5, 6, 7, 8]
    assert together.bad == alone.bad
    assert [bad.name for bad in alone.bad] == ["4.png"]
    for view, blocks in alone.features.items():
        for name, values in blocks.items():
            assert torch.allclose(together.features[view][name], values, atol=1e-5)


def test_two_blocks_of_one_name(pictures: PictureSource) -> None:
    with pytest.raises(LumitokError, match="two representations have a block called 'pixels'"):
        gathered(pictures, [RawPixels(), RawPixels()])


@pytest.mark.parametrize(
    ("name", "side", "wanted"),
    [
        ("timm:vit_tiny_patch16_224", None, 256),  # 16 patches a side.
        ("timm:vit_tiny_patch16_224", 64, 64),
        ("timm:test_efficientnet", None, 160),  # What the pyramid was trained at.
        ("efficientnet-lite1", None, 256),  # 240 does not fit its stride of 32.
    ],
)
def test_the_size_at_which_an_encoder_sees_pictures(name: str, side: int | None, wanted: int) -> None:
    config = EncoderConfig(name=name, weights="random")
    assert representations._usual_side(config) == (
        wanted if side is None else representations._usual_side(config)
    )
    encoder = open_encoder(f"{name}=random", SIDE, side=side, layers=[1, -1])
    assert encoder.config.layers == [1, -1]
    assert encoder.config.scale * SIDE == wanted
    assert EncoderLayers(encoder, SIDE).detail == f"seen at {wanted} px"


def test_a_size_that_does_not_fit_the_encoder() -> None:
    with pytest.raises(LumitokError, match=r"multiples of 16.*a multiple of 16, with --encoder-side"):
        open_encoder("timm:vit_tiny_patch16_224=random", SIDE, side=40)


def test_an_unknown_encoder_and_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match="did you mean 'dinov2-large'"):
        open_encoder("dinov2-larg", SIDE)
    with pytest.raises(LumitokError, match=r"none\.pth': no such file"):
        open_encoder(f"dinov2-small={tmp_path}/none.pth", SIDE)
