"""What ``lumitok info`` says of a diffusion network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lumitok.cli import app
from lumitok.config.networks import LightningDiTConfig
from lumitok.diffusion.base import build_network
from lumitok.pipelines.network_information import inform_network, network_config


def info(*arguments: str) -> str:
    """Return what ``lumitok info`` prints."""
    done = CliRunner().invoke(app, ["info", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_recipe_counts_as_the_papers_do() -> None:
    said = json.loads(info("lightningdit/imagenet256/xl-64-epochs", "--json"))
    assert said["parameters"] == pytest.approx(674.96e6, abs=1e4)
    assert sum(said["parts"].values()) == said["parameters"]
    assert said["tokens"] == 256
    # DiT-XL's count at 256 tokens; attention's own products come on top of 118.6 for the linear layers.
    assert said["gmacs"] == pytest.approx(118.6, rel=0.05)


def test_a_folder_is_described_without_its_weights(tmp_path: Path) -> None:
    config = LightningDiTConfig(depth=1, width=16, heads=2, in_channels=4, input_size=4, patch=2, classes=0)
    build_network(config).save_pretrained(tmp_path / "network")
    (tmp_path / "network" / "diffusion_pytorch_model.safetensors").unlink()
    text = info(str(tmp_path))
    assert "lightningdit, no classes" in text
    assert "4 channels of 4 x 4, 4 tokens" in text


def test_a_tokenizer_is_no_network(tmp_path: Path) -> None:
    assert network_config("vfm-vae/demo") is None
    assert network_config(str(tmp_path)) is None


def test_patches_make_it_cheaper() -> None:
    one, two = (
        inform_network("x", LightningDiTConfig(depth=1, width=16, heads=2, input_size=4, patch=patch))
        for patch in (1, 2)
    )
    assert one.tokens == 4 * two.tokens
    assert one.gmacs > 2 * two.gmacs
