"""RAE: a frozen encoder's features as the latent, and diffusers' decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lumitok import Tokenizer
from lumitok.config import RAEConfig, load_recipe
from lumitok.errors import LumitokError
from lumitok.tokenizers import RAE, build_tokenizer
from lumitok.tokenizers.base import ENCODER_WEIGHTS, WEIGHTS

HEAD = 64
"""Channels of a head of diffusers' encoders, and here their whole width."""


@pytest.fixture
def config() -> dict[str, Any]:
    """DINOv2 with registers at its smallest: one block, 16-pixel patches, a table of 32 x 32 positions."""
    shape = {"img_size": 512, "patch_size": 16, "embed_dim": HEAD, "depth": 1, "num_heads": 1}
    return {
        "encoder": {
            "name": "dinov2-base-registers",
            "layers": [-2],
            "weights": "random",
            "timm_kwargs": shape,
        },
        "image_size": 64,
        "latent_channels": HEAD,
        "decoder_width": 32,
        "decoder_depth": 2,
        "decoder_heads": 4,
        "decoder_mlp": 48,
    }


def build(config: dict[str, Any], **changes: Any) -> RAE:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(RAEConfig(**(config | changes)))
    assert isinstance(tokenizer, RAE)
    with torch.no_grad():  # Where zero, a part would not be seen.
        tokenizer.decoder.trainable_cls_token.normal_()
    return tokenizer.eval()


def theirs_of(tokenizer: RAE, image_size: int = 64) -> Any:
    """diffusers' autoencoder for pictures of a size, with our decoder's weights."""
    pytest.importorskip("transformers", minversion="5")
    from diffusers import AutoencoderRAE

    settings = tokenizer.settings
    theirs = AutoencoderRAE(
        encoder_hidden_size=HEAD,
        encoder_num_hidden_layers=1,
        encoder_patch_size=16,
        encoder_input_size=image_size,
        decoder_hidden_size=settings.decoder_width,
        decoder_num_hidden_layers=settings.decoder_depth,
        decoder_num_attention_heads=settings.decoder_heads,
        decoder_intermediate_size=settings.decoder_mlp,
    )
    theirs.decoder.load_state_dict(tokenizer.decoder.state_dict())
    return theirs.eval()


def give_encoder(tokenizer: RAE, theirs: Any) -> None:
    """Copy the weights of diffusers' encoder, which are transformers', into ours, which is timm's."""
    with torch.no_grad():
        for parameter in theirs.encoder.parameters():
            parameter.normal_(std=0.3)
    old: dict[str, Tensor] = theirs.encoder.state_dict()
    position = old["embeddings.position_embeddings"]
    model = tokenizer.encoder.model
    block = "encoder.layer.0."
    new = {
        "cls_token": old["embeddings.cls_token"] + position[:, :1],
        "reg_token": old["embeddings.register_tokens"],
        "pos_embed": position[:, 1:],
        "blocks.0.ls1.gamma": old[block + "layer_scale1.lambda1"],
        "blocks.0.ls2.gamma": old[block + "layer_scale2.lambda1"],
    }
    for kind in ("weight", "bias"):
        projections = [old[f"{block}attention.{name}_proj.{kind}"] for name in "qkv"]
        new[f"blocks.0.attn.qkv.{kind}"] = torch.cat(projections)
        names = {
            "patch_embed.proj": "embeddings.patch_embeddings.projection",
            "blocks.0.attn.proj": block + "attention.o_proj",
            "blocks.0.norm1": block + "norm1",
            "blocks.0.norm2": block + "norm2",
            "blocks.0.mlp.fc1": block + "mlp.fc1",
            "blocks.0.mlp.fc2": block + "mlp.fc2",
        }
        new |= {f"{ours}.{kind}": old[f"{name}.{kind}"] for ours, name in names.items()}
    model.load_state_dict(new)


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


# Against diffusers ------------------------------------------------------------------------------


@torch.no_grad()
def test_the_decoder_equals_diffusers(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    theirs = theirs_of(tokenizer)
    z = torch.randn(2, HEAD, 4, 4)
    wanted = 2 * theirs.decode(z).sample - 1
    torch.testing.assert_close(tokenizer.decode(z).sample, wanted, rtol=0, atol=1e-5)
    assert wanted.std() > 0.1


@torch.no_grad()
def test_another_grid_equals_diffusers_built_for_it(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    z = torch.randn(1, HEAD, 7, 7)
    wanted = 2 * theirs_of(tokenizer, image_size=112).decode(z).sample - 1
    torch.testing.assert_close(tokenizer.decode(z).sample, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_both_sides_equal_diffusers(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    theirs = theirs_of(tokenizer)
    give_encoder(tokenizer, theirs)
    x = pictures(2, 3, 64, 64)
    wanted = theirs.encode((x + 1) / 2).latent
    torch.testing.assert_close(tokenizer.encode(x).latent, wanted, rtol=0, atol=1e-4)
    again = 2 * theirs((x + 1) / 2).sample - 1
    torch.testing.assert_close(tokenizer(x).sample, again, rtol=0, atol=1e-4)


# The contract -----------------------------------------------------------------------------------


def test_it_gives_what_every_tokenizer_gives(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    x = pictures(2, 3, 64, 96)
    output = tokenizer(x)
    assert output.sample.shape == (2, 3, 64, 96)
    assert output.latent.shape == output.features.shape == (2, HEAD, 4, 6)
    assert output.logvar is None
    assert output.projected is None
    encoded = tokenizer.encode(x)
    for z in (encoded.latent, encoded.latent_dist.mode(), encoded.latent_dist.sample()):
        assert torch.equal(z, output.latent)
    assert torch.equal(tokenizer.decode(encoded.latent).sample, output.sample)
    assert tokenizer.reconstruct(pictures(1, 3, 30, 41)).shape == (1, 3, 30, 41)
    assert tokenizer.last_parameter() is tokenizer.decoder.decoder_pred.weight
    spec = tokenizer.latent_spec
    assert (spec.channels, spec.height, spec.width) == (HEAD, 4, 4)


def test_the_latent_is_the_last_block_normed_without_weights(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    z = tokenizer.encode(pictures(1, 3, 64, 64)).latent
    torch.testing.assert_close(z.mean(dim=1), torch.zeros(1, 4, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(dim=1, correction=0), torch.ones(1, 4, 4), rtol=0, atol=1e-3)
    assert not any("norm.weight" in name for name, _ in tokenizer.encoder.model.norm.named_parameters())


def test_the_frozen_encoder_is_named_and_not_copied(config: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = build(config)
    assert tokenizer.frozen is tokenizer.encoder
    assert set(tokenizer.parts()) == {"decoder"}
    tokenizer(pictures(1, 3, 64, 64)).sample.sum().backward()
    assert all(p.grad is not None for p in tokenizer.decoder.parameters())
    assert all(p.grad is None for p in tokenizer.encoder.parameters())
    tokenizer.set_latent_statistics(torch.zeros(HEAD), torch.ones(HEAD), 3)
    tokenizer.save_pretrained(tmp_path)
    assert all(name.startswith("decoder.") for name in load_file(tmp_path / WEIGHTS))
    assert (tmp_path / ENCODER_WEIGHTS).exists()  # Its weights are random: nobody else has them.
    opened = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(opened, RAE)
    assert opened.fingerprint() == tokenizer.fingerprint()
    assert opened.settings.encoder.sha256 == tokenizer.encoder.weights_hash()
    x = pictures(1, 3, 80, 64)
    assert torch.equal(opened.reconstruct(x), tokenizer.reconstruct(x))
    assert torch.equal(opened.latent_spec.whiten(z := opened.encode(x).latent), z)


def test_in_bfloat16_the_latent_stays_exact(config: dict[str, Any], tmp_path: Path) -> None:
    build(config).save_pretrained(tmp_path)
    plain = Tokenizer.from_pretrained(tmp_path)
    half = Tokenizer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    x = pictures(1, 3, 80, 64)
    assert torch.equal(half.encode(x).latent, plain.encode(x).latent)
    torch.testing.assert_close(half.reconstruct(x), plain.reconstruct(x), rtol=0, atol=0.1)


@torch.no_grad()
def test_slices_and_tiles(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    x = pictures(2, 3, 64, 64)
    whole = tokenizer.encode(x).latent
    tokenizer.enable_slicing()
    torch.testing.assert_close(tokenizer.encode(x).latent, whole)
    tokenizer.enable_tiling(64, 16, turns=1)
    assert tokenizer.reconstruct(pictures(1, 3, 100, 150)).shape == (1, 3, 100, 150)


# Noise ------------------------------------------------------------------------------------------


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_noise_comes_in_training_alone(config: dict[str, Any]) -> None:
    tokenizer = build(config)
    x = pictures(2, 3, 64, 64)
    clean = tokenizer(x, generator=generators(1, 2)).latent
    tokenizer.train()
    assert not tokenizer.encoder.training
    noisy = tokenizer(x, generator=generators(1, 2))
    assert not torch.allclose(noisy.latent, clean, atol=1e-2)
    assert torch.equal(noisy.mean, clean)
    assert torch.equal(tokenizer(x, sample_posterior=False).latent, clean)
    for slicing in (False, True):  # Encoding is for use: it never adds noise.
        tokenizer.use_slicing = slicing
        torch.testing.assert_close(tokenizer.encode(x).latent_dist.sample(), clean)
    still = build(config, noise=0.0).train()
    assert torch.equal(still(x).latent, clean)


def test_a_picture_s_noise_is_the_same_in_every_batch(config: dict[str, Any]) -> None:
    tokenizer = build(config).train()
    x = pictures(3, 3, 64, 64)
    together = tokenizer(x, generator=generators(1, 2, 3)).latent
    alone = [tokenizer(x[i : i + 1], generator=generators(1 + i)).latent for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.equal(together, tokenizer(x, generator=generators(1, 2, 4)).latent)
    with pytest.raises(LumitokError, match="2 generators for 3 pictures"):
        tokenizer(x, generator=generators(1, 2))
    torch.manual_seed(5)
    first = tokenizer(x).latent
    torch.manual_seed(5)
    assert torch.equal(tokenizer(x).latent, first)


def test_noise_has_a_strength_of_its_own_for_each_picture(config: dict[str, Any]) -> None:
    tokenizer = build(config, noise=0.5).train()
    x = pictures(1, 3, 64, 64).expand(400, -1, -1, -1)
    with torch.no_grad():
        posterior, z = tokenizer.posterior(x)
        sigma = (posterior.sample(torch.Generator().manual_seed(0)) - z).flatten(1).std(dim=1)
    assert sigma.max() < 0.53  # The estimate from 1024 numbers is off by a few hundredths.
    assert abs(sigma.mean() - 0.25) < 0.025
    assert abs(sigma.std() - 0.5 / 12**0.5) < 0.015


# Faults and the paper ---------------------------------------------------------------------------


def test_what_does_not_fit_says_why(config: dict[str, Any]) -> None:
    encoder = config["encoder"]
    with pytest.raises(LumitokError, match=r"set model\.encoder\.layers to \[-2\]"):
        build(config, encoder=encoder | {"layers": [-1]})
    with pytest.raises(LumitokError, match=r"change model\.encoder\.scale to 1"):
        build(config, encoder=encoder | {"scale": 2.0})
    with pytest.raises(LumitokError, match=r"set model\.latent_channels to 64, not 32"):
        build(config, latent_channels=32)
    with pytest.raises(LumitokError, match="frozen encoder's"):
        build(config).balance_parameter()
    with pytest.raises(ValueError, match="reads one layer"):
        RAEConfig(**(config | {"encoder": encoder | {"layers": [0, -2]}}))
    with pytest.raises(ValueError, match="nothing to add"):
        RAEConfig(**(config | {"vf_head": True}))
    with pytest.raises(ValueError, match="not a multiple of decoder_heads, 5"):
        RAEConfig(**(config | {"decoder_heads": 5}))


def test_the_recipe_has_the_authors_numbers() -> None:
    recipe = load_recipe("rae/imagenet256/dinov2-base-registers")
    model = recipe.model
    assert isinstance(model, RAEConfig)
    assert (model.noise, model.latent_channels, model.encoder.layers) == (0.8, 768, [-2])
    (stage,) = recipe.stages
    epoch = 1_281_167
    assert (stage.images, stage.batch_size, stage.losses.gan_from) == (16 * epoch, 512, 8 * epoch)
    assert (stage.generator_lr, stage.discriminator_lr, stage.betas) == (2e-4, 2e-4, (0.9, 0.95))
    assert (stage.schedule, stage.warmup_steps) == ("cosine", epoch // 512)
    assert (stage.losses.l1, stage.losses.lpips, stage.losses.gan) == (0.5, 1.0, 0.75)
    assert recipe.training.ema_decay == 0.9978
    with torch.device("meta"):
        tokenizer = build_tokenizer(model, load_weights=False)
    assert tokenizer.parts() == {"decoder": 415_056_640}
    assert tokenizer.foundation is not None
    assert tokenizer.foundation.grids(256, 256) == [(16, 16)]
