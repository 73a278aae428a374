"""``lumitok import-weights``: what it prints, and the one sentence a wrong file gets."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lumitok.cli import app, main
from lumitok.pipelines import import_weights
from lumitok.tokenizers import Tokenizer
from tests.interop import kl, official
from tests.parity.fixtures import Fixture


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An official file around a tiny encoder, which no name on the command line has."""
    tiny = functools.partial(import_weights.Options, timm_kwargs=official.TIMM)
    monkeypatch.setattr(import_weights, "Options", tiny)
    state = official.generator(Fixture("vfmvae_decoder_noise"))
    return official.checkpoint(tmp_path / "official.pth", state)


def arguments(file: Path, *more: str) -> list[str]:
    out = str(file.with_name("out"))
    return ["import-weights", "vfm-vae", str(file), "--out", out, "--layers", "0,1,-1", *more]


def refuse(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(given)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_the_table_says_what_was_done(file: Path, tmp_path: Path) -> None:
    torch.save({"mean": torch.zeros(1, 8, 1, 1), "std": torch.ones(1, 8, 1, 1)}, tmp_path / "stats.pt")
    stats = ["--latents-stats", str(tmp_path / "stats.pt"), "--latents-count", "77"]
    chosen = ["--scale", "2", "--image-size", "256", "--encoder", "siglip2-large-patch16-512"]
    result = CliRunner().invoke(app, arguments(file, *stats, *chosen), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "read 590 G_ema of official.pth, blocks numbered" in words
    assert "dropped 17 " in words
    assert "encoder 29 siglip2-large-patch16-512: the file's own" in words
    assert "statistics 2 the latent's statistics, over 77 pictures" in words
    assert "A VFM-VAE for 256 px, f16d8," in words
    assert "at layers [0, 1, -1] and scale 2, with the constant noise of the released weights" in words
    assert result.stdout.endswith(f"\nThe tokenizer: {tmp_path / 'out'}\n")
    assert Tokenizer.from_pretrained(tmp_path / "out").settings.latents_count == 77


def test_unknown_discriminators_do_not_stand_in_the_way(file: Path, tmp_path: Path) -> None:
    content = torch.load(file)
    torch.save(content | {"D": {"stranger": torch.zeros(1)}}, file)
    result = CliRunner().invoke(app, arguments(file), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "discriminators 1 left out, for lumitok does not know them: 1 unexpected (stranger)" in words
    assert "the file's G, training_set_kwargs" in words
    assert Tokenizer.from_pretrained(tmp_path / "out").settings.image_size == 256


def test_all_faults_go_to_a_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"synthesis.x": torch.zeros(1)}, file)
    error = refuse(capsys, *arguments(file, "--faults", str(tmp_path / "faults.txt")))
    assert "missing (ldm_adapter.patch_quants.0.0.blocks.0." in error
    assert "1 unexpected (synthesis.x)" in error
    listed = (tmp_path / "faults.txt").read_text().splitlines()
    assert "missing: synthesis.blocks.5.torgb.bias" in listed
    assert f"and {len(listed) - 1 - 5} more" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("vfm-vae", "vfmvae"),
            "lumitok imports vfm-vae, diffusers, va-vae, lightningdit, sit, repa, reg, not 'vfmvae'; did you "
            "mean 'vfm-vae'?",
        ),
        (("0,1,-1", "first"), "--layers are whole numbers such as 0,12,-1, not 'first'"),
    ],
)
def test_wrong_words(change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [change[1] if word == change[0] else word for word in arguments(Path("none.pth"))]
    assert message in refuse(capsys, *given)


# Latent diffusion's autoencoders ------------------------------------------------------------------


def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    kl.autoencoder_kl(scaling_factor=0.5).save_pretrained(tmp_path / "vae")
    out = ["--out", str(tmp_path / "out"), "--image-size", "64"]
    given = ["import-weights", "diffusers", str(tmp_path / "vae"), *out]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "AutoencoderKL in diffusion_pytorch_model.safetensors" in words
    assert "deviation 2 for every channel" in words
    assert "A latent diffusion autoencoder for 64 px, f8d4." in words
    assert result.stdout.endswith(f"\nThe tokenizer: {tmp_path / 'out'}\n")
    assert Tokenizer.from_pretrained(tmp_path / "out").settings.image_size == 64


def test_a_va_vae(tmp_path: Path) -> None:
    torch.save(kl.va_vae()[1], tmp_path / "vavae.pt")
    torch.save({"mean": torch.zeros(4), "std": torch.ones(4)}, tmp_path / "stats.pt")
    given = ["import-weights", "va-vae", str(tmp_path / "vavae.pt"), "--out", str(tmp_path / "out")]
    given += ["--latents-stats", str(tmp_path / "stats.pt"), "--latents-count", "77"]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "A VA-VAE for 256 px, f16d4." in result.stdout
    assert Tokenizer.from_pretrained(tmp_path / "out").settings.latents_count == 77


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        (
            "diffusers",
            ["--latents-stats", "x"],
            "--latents-stats is an option of vfm-vae and va-vae; diffusers",
        ),
        ("diffusers", ["--encoder-weights", "x"], "--encoder-weights is an option of vfm-vae; diffusers"),
        ("va-vae", ["--encoder", "x"], "--encoder is an option of vfm-vae; va-vae does not take it"),
        ("va-vae", ["--layers", "0"], "--layers is an option of vfm-vae; va-vae does not take it"),
        ("va-vae", ["--scale", "1"], "--scale is an option of vfm-vae; va-vae does not take it"),
        ("va-vae", ["--latents-count", "7"], "--latents-count counts the pictures of --latents-stats"),
    ],
)
def test_options_of_another_kind_are_refused_by_name(
    kind: str, option: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refuse(capsys, "import-weights", kind, "none", "--out", "none", *option)
