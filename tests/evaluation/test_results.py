"""Results: what is kept of an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lumitok.errors import LumitokError
from lumitok.evaluation.protocol import PictureSet, Protocol
from lumitok.evaluation.results import Number, Results, default_path, find_results

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


def test_a_run_keeps_one_file_for_each_kind_and_set_of_pictures(tmp_path: Path) -> None:
    one, two = (default_path(tmp_path, "latents", name) for name in ("../a b.zip", "c"))
    assert one.parent == two.parent == tmp_path / "evaluation"
    assert one.name == "latents-..-a-b.zip.json"
    made(subject="one").save(one)
    made(subject="two").save(two)
    assert [results.subject for results in find_results(tmp_path)] == ["one", "two"]
    assert find_results(tmp_path / "elsewhere") == []
