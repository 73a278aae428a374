from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumitok.data import open_pictures, split_holdout
from lumitok.errors import LumitokError


def png(size: tuple[int, int] = (4, 3), color: tuple[int, int, int] = (10, 20, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def write(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(color=(number, 0, 0)))
    return folder


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


NAMES = ["bee/1.png", "ant/2.PNG", "ant/deep/3.png"]


def test_first_folder_level_is_the_class(tmp_path: Path) -> None:
    pictures = open_pictures(write(tmp_path, NAMES))
    assert pictures.names == ["ant/2.PNG", "ant/deep/3.png", "bee/1.png"]
    assert pictures.classes == ["ant", "bee"]
    assert pictures.labels == [0, 0, 1]


def test_a_picture_beside_the_folders_means_no_classes(tmp_path: Path) -> None:
    pictures = open_pictures(write(tmp_path, [*NAMES, "loose.png"]))
    assert (pictures.classes, pictures.labels) == ([], [0, 0, 0, 0])


@pytest.mark.parametrize("wrapper", ["", "train/", "a/b/"])
def test_zip_equals_folder_also_when_a_folder_wraps_it(tmp_path: Path, wrapper: str) -> None:
    folder = open_pictures(write(tmp_path / "folder", NAMES))
    files = {wrapper + name: (tmp_path / "folder" / name).read_bytes() for name in NAMES}
    archive = open_pictures(zipped(tmp_path / "x.zip", files))
    assert (archive.names, archive.labels, archive.classes) == (folder.names, folder.labels, folder.classes)
    for index in range(3):
        assert archive.open(index).tobytes() == folder.open(index).tobytes()


def test_other_files_are_counted_and_hidden_ones_ignored(tmp_path: Path) -> None:
    write(tmp_path, ["a.png", "notes.txt", ".hidden.png", "__MACOSX/a.png", ".git/b.png"])
    pictures = open_pictures(tmp_path)
    assert pictures.names == ["a.png"]
    assert pictures.left_out == {"not a picture by its extension": 1}


def test_a_zip_cannot_reach_outside_of_itself(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    files = {
        "../secret.png": png(),
        str(tmp_path / "secret.png"): png(),
        "in/../../x.png": png(),
        "good.png": png(),
    }
    pictures = open_pictures(zipped(tmp_path / "x.zip", files))
    assert pictures.names == ["good.png"]
    assert pictures.left_out == {"path outside of the zip": 3}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write(tmp_path, ["a/1.png"])
    (tmp_path / "a" / "back").symlink_to(tmp_path, target_is_directory=True)
    assert open_pictures(tmp_path).names == ["a/1.png"]


def test_min_side_leaves_out_and_counts(tmp_path: Path) -> None:
    for name, size in {"small": (9, 100), "wide": (100, 10), "large": (30, 40)}.items():
        (tmp_path / f"{name}.png").write_bytes(png(size))
    pictures = open_pictures(tmp_path, min_side=10)
    assert pictures.names == ["large.png", "wide.png"]
    assert pictures.left_out == {"short side under 10 px": 1}
    with pytest.raises(LumitokError, match=r"3 left out \(short side under 50 px\)"):
        open_pictures(tmp_path, min_side=50)


def test_headers_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    files = {"empty.png": b"", "small.png": png((9, 9)), "page.png": b"<html>", "good.png": png((30, 40))}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    whole = zipped(tmp_path / "x.zip", files)
    for path in (tmp_path, whole):
        pictures = open_pictures(path, min_side=10)
        assert pictures.names == ["good.png"]
        assert pictures.left_out["unreadable"] == 2
        assert [bad.name for bad in pictures.unreadable] == ["empty.png", "page.png"]
        assert pictures.unreadable[0].reason == "the file is empty"
        there = pickle.loads(pickle.dumps(pictures.subset([0])))
        assert there.unreadable == pictures.unreadable
        assert open_pictures(path).unreadable == []
    with pytest.raises(LumitokError, match=r"2 left out \(unreadable\)") as error:
        open_pictures(tmp_path, min_side=50)
    assert "'empty.png': the file is empty" in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (str, "no folder or zip"),
        (lambda path: path.mkdir(), "holds no picture to use: found nothing"),
        (lambda path: write(path, ["a.txt"]), "1 left out"),
        (lambda path: path.write_bytes(b"text"), "not a zip"),
        (lambda path: zipped(path, {}), "holds no picture"),
    ],
)
def test_what_is_no_set_of_pictures_is_named(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "thing")  # type: ignore[operator]
    with pytest.raises(LumitokError, match=message) as error:
        open_pictures(tmp_path / "thing")
    assert "thing" in str(error.value)


def read(folder: Path, image: Image.Image, name: str = "x.png", **options: object) -> list[tuple[int, ...]]:
    image.save(folder / name, **options)
    opened = open_pictures(folder).open(0)
    assert opened.mode == "RGB"
    return (
        list(opened.get_flattened_data()) if hasattr(opened, "get_flattened_data") else list(opened.getdata())
    )


def test_grey_modes(tmp_path: Path) -> None:
    assert read(tmp_path, Image.fromarray(np.array([[0, 77]], np.uint8))) == [(0,) * 3, (77,) * 3]
    deep = Image.fromarray(np.array([[0, 257 * 77, 65535, 32768]], np.uint16))
    assert read(tmp_path, deep) == [(0,) * 3, (77,) * 3, (255,) * 3, (128,) * 3]
    assert read(tmp_path, Image.fromarray(np.array([[False, True]]))) == [(0,) * 3, (255,) * 3]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    clear = Image.fromarray(np.array([[[100, 0, 0, 255], [100, 0, 0, 0], [0, 0, 0, 51]]], np.uint8), "RGBA")
    assert read(tmp_path, clear) == [(100, 0, 0), (255, 255, 255), (204, 204, 204)]
    grey = Image.fromarray(np.array([[[50, 255], [50, 0]]], np.uint8), "LA")
    assert read(tmp_path, grey) == [(50, 50, 50), (255, 255, 255)]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 8, 7, 1, 2, 3])
    assert read(tmp_path, palette) == [(9, 8, 7), (1, 2, 3)]
    assert read(tmp_path, palette, transparency=1) == [(9, 8, 7), (255, 255, 255)]
    key = Image.fromarray(np.array([[[5, 6, 7], [7, 6, 5]]], np.uint8))
    assert read(tmp_path, key, transparency=(5, 6, 7)) == [(255, 255, 255), (7, 6, 5)]


def test_cmyk(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = read(tmp_path, cmyk, "x.jpg", quality=100)[0]
    assert red < 5
    assert min(green, blue) > 250


@pytest.mark.parametrize(("orientation", "top_left"), [(1, "red"), (3, "blue"), (6, "green"), (8, "lime")])
def test_exif_orientation(tmp_path: Path, orientation: int, top_left: str) -> None:
    image = Image.new("RGB", (2, 2))
    for place, color in {(0, 0): "red", (1, 0): "lime", (0, 1): "green", (1, 1): "blue"}.items():
        image.putpixel(
            place, {"red": (255, 0, 0), "lime": (0, 255, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}[color]
        )
    exif = Image.Exif()
    exif[0x0112] = orientation
    wanted = {"red": (255, 0, 0), "lime": (0, 255, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}[top_left]
    assert read(tmp_path, image, exif=exif)[0] == wanted


def test_an_unreadable_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.png").write_bytes(png((64, 64))[:60])
    (tmp_path / "float.tif").write_bytes(b"")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "whole.png").write_bytes(png((64, 64)))
    pictures = open_pictures(tmp_path)
    for index, name in enumerate(["cut.png", "float.tif"]):
        with pytest.raises(LumitokError, match=name):
            pictures.open(index)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(LumitokError, match=r"whole\.png.*decompression bomb"):
        pictures.open(2)


def test_pictures_travel_to_another_process(tmp_path: Path) -> None:
    pictures = open_pictures(zipped(tmp_path / "x.zip", {"a.png": png(), "b.png": png(color=(1, 1, 1))}))
    pictures.open(0)
    there = pickle.loads(pickle.dumps(pictures.subset([1])))
    assert there.names == ["b.png"]
    assert there.open(0).getpixel((0, 0)) == (1, 1, 1)


def test_holdout_is_a_split_that_a_new_picture_hardly_changes(tmp_path: Path) -> None:
    pictures = open_pictures(write(tmp_path, [f"{number}.png" for number in range(40)]))
    train, held_out = split_holdout(pictures, 10, seed=3)
    assert sorted(train.names + held_out.names) == pictures.names
    assert len(held_out) == 10
    assert split_holdout(pictures.subset(reversed(range(40))), 10, 3)[1].names == held_out.names[::-1]
    assert split_holdout(pictures, 10, seed=4)[1].names != held_out.names
    more = split_holdout(open_pictures(write(tmp_path, ["new.png", "newer.png"])), 10, seed=3)[1]
    assert len(set(more.names) & set(held_out.names)) >= 8
    with pytest.raises(LumitokError, match="between 0 and 39"):
        split_holdout(pictures, 40, seed=3)
