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
from tests.interop import official
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
        (("vfm-vae", "vfmvae"), "lumitok imports vfm-vae, not 'vfmvae'; did you mean 'vfm-vae'?"),
        (("0,1,-1", "first"), "--layers are whole numbers such as 0,12,-1, not 'first'"),
    ],
)
def test_wrong_words(change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [change[1] if word == change[0] else word for word in arguments(Path("none.pth"))]
    assert message in refuse(capsys, *given)
