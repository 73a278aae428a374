"""Results: what is kept of an evaluation."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lumitok.errors import LumitokError
from lumitok.evaluation.protocol import PictureSet, Protocol
from lumitok.evaluation.results import Number, Results, check_target, default_path

HOW = Protocol(data=PictureSet("photos", 3, "a" * 64), size=64)


def made(**changes: object) -> Results:
    numbers = [
        Number("PSNR", 21.5, replace(HOW, method="PSNR"), "dB", "high"),
        Number("KID", -0.001, replace(HOW, method="KID"), better="low", spread=0.002),
    ]
    values = {"kind": "reconstruction", "subject": "runs/a", "numbers": numbers, "step": 7, **changes}
    return Results(**values)  # type: ignore[arg-type]


def test_they_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    results = made(per_image={"psnr": [20.0, 23.0]}, images=["a.png", "b.png"], left_out={"unreadable": 1})
    path = results.save(tmp_path / "new" / "results.json")
    assert Results.load(path) == results
    assert Results.load(path)["PSNR"] == 21.5
    with pytest.raises(KeyError):
        results["FID"]


def test_what_all_numbers_share(tmp_path: Path) -> None:
    assert made().common() == HOW
    with pytest.raises(LumitokError, match="holds no number"):
        made(numbers=[]).common()


def test_how_they_were_made_is_said_once_and_then_number_by_number() -> None:
    assert made().how() == (HOW.describe(), ["method: PSNR", "method: KID"])
    other = replace(HOW, data=PictureSet("train", 9, "b" * 64))
    several = made(numbers=[Number("PSNR", 21.5, HOW), Number("probe", 0.5, other)])
    assert several.how() == ("size: 64 px", [f"data: {name}" for name in (
        "photos, 3 pictures, list aaaaaaaaaaaa", "train, 9 pictures, list bbbbbbbbbbbb")])  # fmt: skip
    with pytest.raises(LumitokError, match="several sets of pictures"):
        several.common()
    assert made(numbers=[]).how() == ("", [])


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(LumitokError, match="FID came out as nan"):
        Number("FID", float("nan"), HOW)


def test_files_that_hold_no_results_say_so(tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match="there are no results at"):
        Results.load(tmp_path / "none.json")
    for text in ("{", "[]", '{"kind": "x"}', '{"numbers": [{"name": "PSNR"}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(LumitokError, match=r"bad\.json' does not hold results"):
            Results.load(tmp_path / "bad.json")


def of(protocol: Protocol, name: str = "PSNR", value: float = 21.5) -> Results:
    return made(numbers=[Number(name, value, protocol)])


def test_a_run_keeps_one_file_for_each_measurement(tmp_path: Path) -> None:
    path = default_path(tmp_path, made())
    assert path.parent == tmp_path / "evaluation"
    assert re.fullmatch(r"reconstruction-photos-3-[0-9a-f]{6}\.json", path.name)
    data = replace(HOW.data, name="../a b.zip")
    assert default_path(tmp_path, of(replace(HOW, data=data))).name.startswith("reconstruction-..-a-b.zip-3-")
    apart = [
        of(HOW),
        of(HOW, name="SSIM"),
        of(replace(HOW, data=replace(HOW.data, files="b" * 64))),
        of(replace(HOW, data=replace(HOW.data, count=4))),
        of(replace(HOW, reference=HOW.data)),
        of(replace(HOW, size=32)),
        of(replace(HOW, latent="posterior sample")),
        of(replace(HOW, method="other")),
    ]
    assert len({default_path(tmp_path, results).name for results in apart}) == len(apart)


def test_a_measurement_that_is_repeated_replaces_the_one_before(tmp_path: Path) -> None:
    again = of(replace(HOW, seed=1, weights="c" * 64), value=3.0)
    assert default_path(tmp_path, again) == default_path(tmp_path, of(HOW))


@pytest.mark.parametrize(
    ("name", "message"), [("folder", "is a folder"), ("file/new/r.json", "file' is a file")]
)
def test_places_that_can_hold_no_results_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(LumitokError, match=message):
        check_target(tmp_path / name)
    with pytest.raises(LumitokError, match=message):
        made().save(tmp_path / name)
    check_target(None)
    check_target(tmp_path / "new" / "folders" / "r.json")
    assert not (tmp_path / "new").exists()


def test_what_the_system_refuses_to_write_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LumitokError, match=r"cannot be kept in .*too long"):
        made().save(tmp_path / ("x" * 300))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(LumitokError, match=r"cannot be written to .*No space left"):
        made().save(tmp_path / "r.json")
