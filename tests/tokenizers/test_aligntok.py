"""AlignTok: a foundation encoder that is trained, an adapter, a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lumitok import Tokenizer
from lumitok.config import AlignTokConfig
from lumitok.errors import LumitokError
from lumitok.tokenizers import AlignTok, build_tokenizer
from lumitok.tokenizers.aligntok import HybridDecoder, sine_cosine_position
from lumitok.tokenizers.base import ENCODER_WEIGHTS, WEIGHTS


@pytest.fixture
def config(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    encoder: dict[str, Any] = tiny_recipe["model"]["encoder"]
    return {
        "encoder": encoder | {"layers": [-1]},
        "image_size": 32,
        "latent_channels": 4,
        "adapter_channels": 8,
        "decoder_channels": 32,
        "decoder_multipliers": [1, 1, 1, 1, 2],
        "decoder_blocks": 1,
        "hybrid_depth": 2,
        "hybrid_width": 64,
    }


def build(config: dict[str, Any], **changes: Any) -> AlignTok:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(AlignTokConfig(**(config | changes)))
    assert isinstance(tokenizer, AlignTok)
    return tokenizer.eval()


def test_it_gives_what_every_tokenizer_gives(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    output = tokenizer(x)
    assert output.sample.shape == (2, 3, 32, 48)
    assert output.latent.shape == (2, 4, 2, 3)
    assert output.logvar is None
    assert output.projected is None
    assert output.features.shape == (2, 32, 2, 3)
    encoded = tokenizer.encode(x)
    for z in (encoded.latent, encoded.latent_dist.mode(), encoded.latent_dist.sample()):
        assert torch.equal(z, output.latent)  # The latent is deterministic.
    assert torch.equal(tokenizer.decode(encoded.latent).sample, output.sample)
    assert torch.equal(tokenizer.encode(x, return_dict=False)[0].mean, output.latent)
    assert tokenizer.reconstruct(torch.rand(1, 3, 30, 41)).shape == (1, 3, 30, 41)


def test_the_encoder_is_trained_and_lies_in_the_weights_file(config: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = build(config)
    assert tokenizer.frozen is None
    assert tokenizer.foundation is tokenizer.encoder
    assert set(tokenizer.parts()) == {"encoder", "adapter", "decoder"}
    before = tokenizer.fingerprint()
    with torch.no_grad():
        tokenizer.encoder.model.blocks[0].mlp.fc1.weight.add_(0.1)
    assert tokenizer.fingerprint() != before
    tokenizer.save_pretrained(tmp_path)
    assert any(name.startswith("encoder.model.blocks.0") for name in load_file(tmp_path / WEIGHTS))
    assert not (tmp_path / ENCODER_WEIGHTS).exists()
    opened = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(opened, AlignTok)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(opened.encode(x).latent, tokenizer.encode(x).latent)
    with pytest.raises(LumitokError, match="has no frozen encoder"):
        Tokenizer.from_pretrained(tmp_path, encoder_weights="other.safetensors")


def test_opening_needs_no_pretrained_weights(config: dict[str, Any], tmp_path: Path) -> None:
    build(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"weights": "random"', '"weights": "nowhere.safetensors"'))
    assert isinstance(Tokenizer.from_pretrained(tmp_path), AlignTok)


def test_the_encoder_trains_in_training_mode_alone(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    tokenizer.train()
    assert tokenizer.encoder.training
    tokenizer.eval()
    assert not tokenizer.encoder.training
    tokenizer(torch.rand(2, 3, 32, 32)).sample.sum().backward()
    reached = {name.split(".")[0] for name, p in tokenizer.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "adapter", "decoder"}


def test_the_adapter_is_two_layers_at_every_position(config: dict[str, Any]) -> None:
    adapter = build(config).adapter
    features = torch.randn(1, 32, 2, 2)
    whole = adapter(features)
    one = adapter(features[:, :, 1:, :1])
    torch.testing.assert_close(whole[:, :, 1:, :1], one)
    a, b = torch.randn(2, 1, 32, 1, 1)
    bent = adapter(a + b) - adapter(a) - adapter(b) + adapter(torch.zeros_like(a))
    assert bent.abs().max() > 1e-3


def test_gradients_are_compared_where_the_paper_compares_them(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    assert tokenizer.balance_parameter() is tokenizer.adapter.last.weight
    assert tokenizer.last_parameter() is tokenizer.decoder.conv_out.weight
    hybrid = build(config, decoder="hybrid")
    assert isinstance(hybrid.decoder, HybridDecoder)
    assert hybrid.last_parameter() is hybrid.decoder.convolutional.conv_out.weight


def test_the_hybrid_decoder_sees_the_whole_latent_and_where_each_place_is(config: dict[str, Any]) -> None:
    decoder = build(config, decoder="hybrid").decoder
    z = torch.randn(1, 4, 2, 3)
    assert decoder(z).shape == (1, 3, 32, 48)
    flat = torch.zeros(1, 4, 4, 4)
    tokens = decoder.blocks(decoder.embed(flat.flatten(2).transpose(1, 2)) + sine_cosine_position(4, 4, 64))
    assert not torch.allclose(tokens[0, 0], tokens[0, 5], atol=1e-4)


def test_positions_differ_and_do_not_depend_on_the_other_side() -> None:
    table = sine_cosine_position(3, 5, 16).reshape(3, 5, 16)
    assert len({tuple(row) for row in table.reshape(15, 16).tolist()}) == 15
    assert torch.equal(table[:2, :2], sine_cosine_position(2, 2, 16).reshape(2, 2, 16))
    assert torch.equal(table[1, 2, :8], table[1, 4, :8])  # The first half speaks of the row.
    assert torch.equal(table[0, 2, 8:], table[2, 2, 8:])


def test_low_rank_updates_begin_at_nothing_and_are_saved(config: dict[str, Any], tmp_path: Path) -> None:
    plain, updated = build(config), build(config, lora={"rank": 2, "alpha": 4, "dropout": 0.0})
    own = {
        n.replace(".base_layer", ""): t for n, t in updated.encoder.state_dict().items() if "lora_" not in n
    }
    plain.encoder.load_state_dict(own)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(plain.features(x), updated.features(x))
    names = [name for name in updated.trainable_names() if "lora_" in name]
    assert len(names) == 8  # A and B of qkv, proj, fc1 and fc2 in the one block.
    with torch.no_grad():
        dict(updated.named_parameters())[next(n for n in names if "lora_B" in n)].normal_()
    assert not torch.allclose(plain.features(x), updated.features(x))
    updated.save_pretrained(tmp_path)
    opened = Tokenizer.from_pretrained(tmp_path)
    assert torch.equal(opened.encode(x).latent, updated.encode(x).latent)
    with pytest.raises(LumitokError, match=r"model\.lora\.targets"):
        build(config, lora={"targets": ["nothing"]})


def test_what_does_not_fit_says_why(config: dict[str, Any]) -> None:
    with pytest.raises(LumitokError, match=r"change model\.encoder\.scale to 1"):
        build(config, encoder=config["encoder"] | {"scale": 2.0})
    with pytest.raises(ValueError, match="reads one layer"):
        AlignTokConfig(**(config | {"encoder": config["encoder"] | {"layers": [0, -1]}}))
    with pytest.raises(ValueError, match="decoder_multipliers has 2 entries"):
        AlignTokConfig(**(config | {"decoder_multipliers": [1, 1]}))
