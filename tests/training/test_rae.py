"""RAE's training: the decoder alone learns, on noise that a resumed run draws again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lumitok.config import Recipe
from lumitok.tokenizers import RAE, Tokenizer
from lumitok.training import train
from lumitok.training.checkpoint import checkpoints
from tests.training.compare import assert_close, assert_same, changed, history, stopped_at


@pytest.fixture
def rae(recipe: Recipe) -> Recipe:
    """Four steps of four pictures, the second half against a discriminator."""
    tree = recipe.model_dump()
    encoder = tree["model"]["encoder"] | {"layers": [-2]}
    tree["model"] = {
        "type": "rae",
        "encoder": encoder,
        "image_size": 32,
        "latent_channels": 32,
        "decoder_width": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "decoder_mlp": 32,
    }
    tree["stages"] = [
        {
            "name": "decoder",
            "images": 16,
            "batch_size": 4,
            "generator_lr": 1e-3,
            "trainable": ["decoder.*"],
            "losses": {"l1": 0.5, "gan": 0.75, "gan_from": 8},
        }
    ]
    tree["training"] |= {"ema_decay": 0.9978, "validate_every": 0, "log_every": 1, "checkpoint_every": 1}
    return Recipe.model_validate(tree)


def test_the_decoder_alone_learns(rae: Recipe) -> None:
    run = train(rae)
    states = [load_file(folder / "training/generator.safetensors") for folder in checkpoints(run)]
    assert len(states) == 4
    assert all(name.startswith("decoder.") for name in states[0])
    assert all(not torch.equal(states[0][name], states[-1][name]) for name in states[0])
    lines = [record["values"] for record in history(run) if record["kind"] == "train"]
    assert ["gan" in values for values in lines] == [False, False, True, True]
    assert all("kl" not in values for values in lines)
    tokenizer = Tokenizer.from_pretrained(run)
    assert isinstance(tokenizer, RAE)
    assert tokenizer.settings.latents_count == 8


@pytest.mark.parametrize("step", [1, 3])
def test_resume_is_bit_for_bit(rae: Recipe, tmp_path: Path, step: int) -> None:
    whole = train(rae)
    stopped = stopped_at(whole, step, tmp_path / "stopped")
    train(changed(rae, out=str(stopped)), resume=True)
    assert_same(whole / "checkpoints/step-00000004", stopped / "checkpoints/step-00000004")
    assert history(whole) == history(stopped)


def test_the_noise_does_not_depend_on_the_parts_of_a_step(rae: Recipe, tmp_path: Path) -> None:
    rae = changed(rae, stages__0__losses={"l1": 0.5}, discriminator=None)
    whole = train(rae)
    parts = train(changed(rae, out=str(tmp_path / "parts"), training__accumulation=2))
    last = "checkpoints/step-00000004"
    assert_close(whole / last, parts / last, atol=1e-5)
    still = train(changed(rae, out=str(tmp_path / "still"), model__noise=0.0))
    with pytest.raises(AssertionError):
        assert_close(whole / last, still / last, atol=1e-4)
