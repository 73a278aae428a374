"""The command line: what each verb prints, and the one sentence a mistake gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import lumitok
from lumitok.cli import app, main
from lumitok.config import load_any, load_recipe, recipe_names

STRONG = "vfm-vae/imagenet256/1-strong-alignment"


def run(*arguments: str) -> str:
    """What the command prints; it must succeed."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that must fail as a user's mistake does."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("lumitok: ")
    return printed.err


# What is printed --------------------------------------------------------------------------------


def test_version() -> None:
    assert run("--version") == f"lumitok {lumitok.__version__}\n"


def test_help_names_every_verb() -> None:
    text = run("--help")
    for verb in ("demo", "doctor", "recipes", "show", "info", "train", "reconstruct", "import-weights"):
        assert f" {verb} " in text


def test_the_module_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lumitok", "show", "nonesuch"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no recipe 'nonesuch'" in done.stderr
    assert "Traceback" not in done.stderr


def test_recipes_lists_all_with_what_they_are_for() -> None:
    text = run("recipes")
    for name in recipe_names():
        assert name in text
        assert load_any(name).about.split()[0] in text


def test_show_prints_the_resolved_recipe() -> None:
    tree = yaml.safe_load(run("show", STRONG, "training.seed=5", "data.train=photos"))
    assert tree == load_recipe(STRONG, ["training.seed=5", "data.train=photos"]).model_dump(mode="json")
    assert tree["training"]["seed"] == 5


def test_info_counts_the_papers_tokenizer() -> None:
    printed = json.loads(run("info", STRONG, "--json"))
    parameters = printed["parameters"]
    assert abs(parameters["trainable"] - 139.77e6) < 0.05e6  # The official model without the encoder.
    assert parameters["trainable"] == sum(parameters["parts"].values())
    assert abs(parameters["frozen"] - 304e6) < 2e6  # SigLIP2-Large without its pooling head.
    assert 0 < parameters["discriminator"] < parameters["trainable"]
    assert printed["latent"] == {"channels": 32, "height": 16, "width": 16}


def test_info_prints_a_table(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    text = run("info", str(tmp_path / "tiny.yaml"))
    assert "4 channels of 2 x 2" in text
    for row in ("mapping", "blocks.0", "trainable", "frozen encoder", "discriminator", "GMACs"):
        assert row in text


def test_reconstruct_prints_a_row_a_picture(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    from lumitok.config import Recipe
    from lumitok.tokenizers import build_tokenizer

    build_tokenizer(Recipe.model_validate(tiny_recipe).model).save_pretrained(tmp_path / "tokenizer")
    pictures = [tmp_path / "one.png", tmp_path / "two.png"]
    for side, path in zip((40, 70), pictures, strict=True):
        Image.new("RGB", (side, 2 * side), "teal").save(path)
    out = tmp_path / "out"
    text = run("reconstruct", str(tmp_path / "tokenizer"), *map(str, pictures), "--out", str(out))
    assert {path.name for path in out.iterdir()} == {"one-reconstruction.png", "two-reconstruction.png"}
    for word in ("one-reconstruction.png", "two-reconstruction.png", "PSNR (dB)", "SSIM", "ADM's crop"):
        assert word in text
    whole = ["--whole", "--tile", "64", "--out", str(tmp_path / "whole")]
    assert "in tiles of 64 px" in run("reconstruct", str(tmp_path / "tokenizer"), str(pictures[0]), *whole)
    with Image.open(tmp_path / "whole/one-reconstruction.png") as sheet:
        assert sheet.height > 80
    Image.new("RGB", (40, 5)).save(tmp_path / "line.png")
    text = run("reconstruct", str(tmp_path / "tokenizer"), str(tmp_path / "line.png"), *whole)
    row = next(line for line in text.splitlines() if "line-reconstruction.png" in line)
    assert row.rstrip().endswith("-")


def test_doctor_says_what_is_here() -> None:
    text = run("doctor")
    assert "precision 'auto' is" in text
    assert f"Python {sys.version.split()[0]}" in text
    assert "efficientnet-lite0" in text
    assert "VGG16" in text


def test_train_hands_over_the_resolved_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    import lumitok.training

    calls: list[Any] = []

    def record(recipe: Any, resume: bool = False) -> Path:
        calls.append((recipe, resume))
        return Path("runs/somewhere")

    monkeypatch.setattr(lumitok.training, "train", record)
    assert "runs/somewhere" in run("train", STRONG, "training.seed=3", "--resume")
    assert calls == [(load_recipe(STRONG, ["training.seed=3"]), True)]
    run("train", STRONG)
    assert calls[1] == (load_recipe(STRONG), False)


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["show", "train", "info"])
def test_a_wrong_recipe_names_the_nearest(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"did you mean '{STRONG}'?" in fail(capsys, verb, STRONG.replace("strong", "stron"))


@pytest.mark.parametrize("verb", ["show", "train"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("data.trian=photos", "there is no key 'data.trian'; did you mean 'train'?"),
        ("training.precision=fp8", "input should be 'auto', 'fp32' or 'bf16', not 'fp8'"),
        ("data.train", "'data.train' is not key=value"),
    ],
)
def test_a_wrong_change_says_what_is_right(
    verb: str, change: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in fail(capsys, verb, STRONG, change)


def test_pictures_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.png").touch()
    wrong = tmp_path / "phot.png"
    assert f"did you mean '{tmp_path / 'photo.png'}'?" in fail(capsys, "reconstruct", "some/run", str(wrong))


def test_a_folder_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no tokenizer" in fail(capsys, "info", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian", STRONG], "Did you mean 'train'?"),
        (["train", STRONG, "--resum"], "Possible options: --resume"),
    ],
)
def test_a_wrong_verb_or_option_is_answered(arguments: list[str], hint: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert hint in result.stderr


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import lumitok.config

    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(lumitok.config, "load_any", broken)
    with pytest.raises(KeyError, match="ours"):
        main(["show", STRONG])
