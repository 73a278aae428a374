from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.losses.lpips import LPIPS, VGG16

package = pytest.importorskip("lpips")

# The convolutions of VGG16: (place in `features`, input channels, output channels).
CONVOLUTIONS = [
    (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256),
    (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512),
]  # fmt: skip


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Made-up weights of VGG16's shape, with a scale that keeps the features alive."""
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.6.bias": torch.zeros(1000)}  # The real file has a classifier too.
    for place, before, after in CONVOLUTIONS:
        noise = torch.randn(after, before, 3, 3, generator=generator)
        state[f"features.{place}.weight"] = noise * (2 / (9 * before)) ** 0.5
        state[f"features.{place}.bias"] = torch.randn(after, generator=generator) * 0.1
    return state


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "made-up.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def ours(file: Path) -> LPIPS:
    return LPIPS(file, verify=False)


def pictures(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_lpips_equals_the_package(ours: LPIPS, state: dict[str, Tensor]) -> None:
    with torch.device("meta"):  # The package's heads are loaded by the package itself below.
        theirs = package.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
    theirs = theirs.to_empty(device="cpu")
    theirs.scaling_layer = package.ScalingLayer()
    heads = Path(package.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    assert not theirs.load_state_dict(torch.load(heads, map_location="cpu"), strict=False).unexpected_keys
    for key, value in theirs.net.state_dict().items():
        value.copy_(state["features." + key.split(".", 1)[1]])
    x, y = pictures(0), pictures(1)
    distance = ours(x, y)
    assert distance.shape == (2,)
    torch.testing.assert_close(distance, theirs(x, y).flatten(), rtol=1e-5, atol=0)
    assert ours(x, x).tolist() == [0.0, 0.0]


def test_lpips_is_frozen_and_stays_in_eval(ours: LPIPS) -> None:
    x, y = pictures(0).requires_grad_(), pictures(1)
    before = ours(x, y)
    ours.train()
    torch.testing.assert_close(ours(x, y), before, rtol=0, atol=0)  # Dropout would change it.
    before.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_lpips_under_autocast_is_close_and_float32(ours: LPIPS) -> None:
    x = pictures(0)
    y = x + 0.2 * pictures(1)
    plain = ours(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = ours(x, y)
    assert under.dtype == torch.float32
    torch.testing.assert_close(under, plain, rtol=0.03, atol=0)


def test_other_weights_are_refused(file: Path) -> None:
    with pytest.raises(
        LumitokError, match=r"is not torchvision's vgg16-397923af.pth: its sha256 starts with"
    ):
        LPIPS(file)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(LumitokError, match=r"'features.0.bias' is missing"):
        LPIPS(tmp_path / "other.pth", verify=False)


def test_a_file_that_is_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(LumitokError, match="cannot be read"):
        LPIPS(tmp_path / "text.pth", verify=False)


@pytest.mark.parametrize("download", [True, False])
def test_missing_weights_say_what_to_do(nothing_at_hand: Path, download: bool) -> None:
    with pytest.raises(LumitokError) as caught:
        LPIPS(download=download)
    message = str(caught.value)
    for part in (
        "vgg16-397923af.pth",
        "553 MB",
        "torchvision.models.vgg16",
        "IMAGENET1K_V1",
        str(nothing_at_hand / "checkpoints" / "vgg16-397923af.pth"),
        "LUMITOK_VGG16",
        "feature_distance",
        "no network" if download else "switched off",
    ):
        assert part in message


def test_weights_are_found_by_argument_then_variable_then_cache(
    nothing_at_hand: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VGG16.find() is None
    cached = nothing_at_hand / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir()
    named, argument = nothing_at_hand / "a.pth", nothing_at_hand / "b.pth"
    for path in (cached, named, argument):
        path.touch()
    assert VGG16.find() == cached
    monkeypatch.setenv("LUMITOK_VGG16", str(named))
    assert VGG16.find() == named
    assert VGG16.find(argument) == argument


def test_a_named_file_that_is_not_there_is_an_error(
    nothing_at_hand: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LumitokError, match=r"the argument names 'nowhere.pth'"):
        LPIPS("nowhere.pth")
    monkeypatch.setenv("LUMITOK_VGG16", "elsewhere.pth")
    with pytest.raises(LumitokError, match=r"LUMITOK_VGG16 names 'elsewhere.pth'"):
        LPIPS()
