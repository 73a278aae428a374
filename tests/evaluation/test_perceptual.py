"""DISTS against torchmetrics' own on made-up weights of VGG16; what stands beside each distance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError
from lumitok.evaluation import perceptual
from lumitok.evaluation.perceptual import (
    DISTS,
    obtain_vgg16,
    open_dists,
    open_feature_distance,
    open_lpips,
)
from lumitok.losses.lpips import LPIPS
from tests.evaluation.made_up_vgg16 import made_up_vgg16


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_vgg16(tmp_path_factory.mktemp("vgg") / "made-up.pth")


@pytest.fixture(scope="module")
def dists(vgg16: Path) -> DISTS:
    return DISTS(vgg16)


def levels(seed: int, count: int = 3, size: int = 40) -> Tensor:
    """Soft blobs with noise on them: their maps have means and structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    soft = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    noise = 0.1 * torch.randn(soft.shape, generator=generator)
    return ((soft + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def pair() -> tuple[Tensor, Tensor]:
    one = levels(0)
    other = one.clone()
    other[1:] = levels(1)[1:]
    other[0] = (one[0] * 0.9).to(torch.uint8)
    return other.float() / 127.5 - 1, one.float() / 127.5 - 1


def test_dists_equals_torchmetrics_on_the_same_weights(
    dists: DISTS, vgg16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("torchmetrics.functional.image.dists")
    from torchvision.models import vgg16 as torchvisions

    def filled(weights: object) -> torch.nn.Module:
        with torch.device("meta"):
            network = torchvisions()
        state = torch.load(vgg16, weights_only=True)
        found = network.load_state_dict(state, strict=False, assign=True)
        assert all(name.startswith("classifier") for name in found.missing_keys + found.unexpected_keys)
        return network

    monkeypatch.setattr(module, "vgg16", filled)
    theirs = module.DISTSNetwork()
    image, target = pair()
    expected = theirs((image + 1) / 2, (target + 1) / 2)
    assert expected.shape == (3,)
    assert expected[0] < 0.5 * expected[1:].min()
    torch.testing.assert_close(dists(image, target), expected, rtol=2e-4, atol=2e-6)


def test_dists_of_equal_pictures_is_nothing_and_grows_with_the_noise(dists: DISTS) -> None:
    _, target = pair()
    assert dists(target, target).abs().max() < 1e-5
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(target.shape, generator=generator)
    distances = [dists((target + s * noise).clamp(-1, 1), target) for s in (0.05, 0.2, 0.8)]
    assert (distances[0] > 1e-4).all()
    assert (distances[1] > distances[0]).all()
    assert (distances[2] > distances[1]).all()


def test_dists_is_each_pairs_own(dists: DISTS) -> None:
    image, target = pair()
    alone = torch.cat([dists(image[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(dists(image, target), alone, rtol=1e-4, atol=1e-6)


def test_dists_is_frozen_and_gradients_reach_the_picture(dists: DISTS) -> None:
    image, target = pair()
    image.requires_grad_()
    dists(image, target).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in dists.parameters())


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(LumitokError, match=r"'features.0.bias' is missing"):
        DISTS(tmp_path / "other.pth")


def test_another_file_of_heads_is_refused(vgg16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "DISTS_SHA256", "0" * 64)
    with pytest.raises(LumitokError, match="not hold DISTS's published weights"):
        DISTS(vgg16)


def test_lpips_and_dists_take_8_bit_pictures_and_say_what_they_are(vgg16: Path, dists: DISTS) -> None:
    image, target = pair()
    one, other = ((x * 127.5 + 127.5).round().to(torch.uint8) for x in (image, target))
    opened = open_lpips(vgg16), open_dists(vgg16)
    assert [distance.name for distance in opened] == ["LPIPS", "DISTS"]
    assert [distance.extractor for distance in opened] == ["vgg16", "vgg16"]
    lpips = LPIPS(vgg16, verify=False)
    torch.testing.assert_close(opened[0](one, other), lpips(image, target), rtol=1e-5, atol=0)
    torch.testing.assert_close(opened[1](one, other), dists(image, target), rtol=1e-5, atol=1e-7)
    assert "0.1" in opened[0].method
    # The two share a backbone; each one's hash is of all that enters it.
    assert opened[0].weights != opened[1].weights
    assert {len(distance.weights) for distance in opened} == {64}


def test_the_hash_tells_two_backbones_apart(vgg16: Path, tmp_path: Path) -> None:
    state = torch.load(vgg16, weights_only=True)
    state["features.28.bias"][7] += 1e-3
    torch.save(state, tmp_path / "changed.pth")
    assert open_dists(vgg16).weights == open_dists(vgg16).weights
    assert open_dists(vgg16).weights != open_dists(tmp_path / "changed.pth").weights


def test_the_file_is_checked_and_its_absence_says_what_to_do(vgg16: Path, tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match=r"is not torchvision's vgg16-397923af\.pth"):
        obtain_vgg16(vgg16)
    with pytest.raises(LumitokError, match="no such file"):
        obtain_vgg16(tmp_path / "nowhere.pth")


TINY = EncoderConfig(
    name="timm:vit_tiny_patch16_224",
    layers=[0, 1],
    weights="random",
    timm_kwargs={"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2},
)


def test_an_encoders_distance_is_named_for_it() -> None:
    torch.manual_seed(0)
    distance = open_feature_distance(TINY)
    assert distance.name == "feature distance, timm:vit_tiny_patch16_224"
    assert "LPIPS" not in distance.name + distance.method
    assert "layers 0, 1" in distance.method
    one = levels(0, size=32)
    other = one.clone()
    other[0] = levels(1, size=32)[0]
    found = distance(other, one)
    assert found[0] > 1e-3
    assert found[1:].tolist() == [0.0, 0.0]
    assert distance.weights == distance.network.get_submodule("encoder").weights_hash()


def test_a_name_is_read_at_the_layers_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EncoderConfig] = []

    def opened(config: EncoderConfig) -> None:
        seen.append(config)
        raise LumitokError("enough")

    monkeypatch.setattr(perceptual, "FoundationEncoder", opened)
    with pytest.raises(LumitokError, match="enough"):
        open_feature_distance("efficientnet-lite0")
    assert seen[0].layers == [1, 2, 3, 4]
