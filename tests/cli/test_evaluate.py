"""``lumitok evaluate``: what is printed and where results go; the measuring is the pipelines'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lumitok.cli import main
from lumitok.evaluation.protocol import PictureSet, Protocol
from lumitok.evaluation.results import Number, Results

HOW = Protocol(data=PictureSet("photos", 3, "a" * 64), size=64)


def found(subject: str) -> Results:
    alike = replace(HOW, method="each picture by itself")
    return Results(
        kind="reconstruction",
        subject=subject,
        numbers=[
            Number("PSNR", 21.5, alike, "dB", "high"),
            Number("SSIM", 0.5, alike, better="high"),
            Number("rFID", 3.25, replace(HOW, method="Fréchet"), better="low", spread=0.5),
        ],
        left_out={"unreadable": 2},
        tables={"not measured": {"LPIPS": "needs VGG16"}, "warnings": ["few pictures"]},
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the pipeline was called with."""
    given: dict[str, Any] = {}

    def measure(checkpoint: str, data: str, **options: Any) -> Results:
        given.update(options, checkpoint=checkpoint, data=data)
        return found(checkpoint)

    monkeypatch.setattr("lumitok.pipelines.evaluate_reconstruction.evaluate_reconstruction", measure)
    return given


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", *arguments])
    assert left.value.code in (0, None)


def test_numbers_are_printed_with_how_they_were_made_and_kept(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run("reconstruction", str(folder), "--data", "photos", "--metric", "psnr", "--metric", "rfid")
    said = capsys.readouterr()
    assert asked["metrics"] == ["psnr", "rfid"]
    assert asked["latent"] == "mean"
    assert "21.5" in said.out
    assert "3.25 ± 0.5" in said.out
    assert said.out.count("each picture by itself") == 1  # Once, however many numbers it is said of.
    assert "All of them: data: photos, 3 pictures" in said.out
    assert "Not measured: LPIPS: needs VGG16" in said.out
    assert "Left out: 2 (unreadable)" in said.out
    assert "Warning: few pictures" in said.err
    (kept,) = (folder / "evaluation").glob("*.json")
    assert f"Kept in {kept}" in said.out.replace("\n", "")
    assert Results.load(kept)["rFID"] == 3.25


def test_what_has_no_folder_is_kept_where_it_is_told(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("reconstruction", "someone/model", "--data", "photos")
    assert "Not kept: name a file with --json" in capsys.readouterr().out
    run("reconstruction", "someone/model", "--data", "photos", "--json", str(tmp_path / "kept.json"))
    assert Results.load(tmp_path / "kept.json").subject == "someone/model"


def test_a_target_that_cannot_be_is_refused_before_the_work(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "reconstruction", "someone/model", "--data", "photos", "--json", str(tmp_path)])
    assert left.value.code == 2
    assert asked == {}
    assert "lumitok: " in capsys.readouterr().err


def test_layers_that_are_no_numbers_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "representation", "pixels", "--data", "photos", "--layers", "one"])
    assert left.value.code == 2
    assert "--layers is numbers parted by commas" in capsys.readouterr().err
