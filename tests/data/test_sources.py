from __future__ import annotations

import errno
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lumitok.data import UnreadableError, open_pictures, split_holdout
from lumitok.errors import LumitokError

Encoded = Callable[..., bytes]
Bad = tuple[Path, dict[str, str]]


def reason(path: Path, name: str) -> str:
    pictures = open_pictures(path)
    with pytest.raises(UnreadableError) as error:
        pictures.open(pictures.names.index(name))
    assert error.value.bad.name == name
    assert name in str(error.value)
    assert str(path) in str(error.value)
    return error.value.bad.reason


def test_each_bad_picture_says_why_and_the_others_open(bad_set: Bad) -> None:
    path, reasons = bad_set
    for name, text in reasons.items():
        assert text in reason(path, name)
    pictures = open_pictures(path)
    good = [index for index, name in enumerate(pictures.names) if name not in reasons]
    assert len(good) == 15
    assert all(pictures.open(index).mode == "RGB" for index in good)


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are POSIX's")
def test_a_pipe_is_not_opened_since_it_would_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(Path, "open", None)
    assert "not a file" in reason(tmp_path, "pipe.png")


def test_a_link_to_nothing_is_counted_also_where_it_names_no_picture(
    tmp_path: Path, encoded: Encoded
) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "class").symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    pictures = open_pictures(tmp_path)
    assert (pictures.names, pictures.left_out) == (["a.png"], {"broken link": 2})


def test_a_picture_that_vanishes_is_named(tmp_path: Path, encoded: Encoded) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    pictures = open_pictures(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableError, match=r"a\.png.*No such file"):
        pictures.open(0)


def failing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make opening a file fail, as root cannot be kept out by permissions."""

    def fail(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", fail)


def test_a_closed_picture_is_bad_but_too_many_open_files_are_not_its_fault(
    tmp_path: Path, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    failing(monkeypatch, errno.EACCES)
    assert reason(tmp_path, "a.png") == "Permission denied"
    failing(monkeypatch, errno.EMFILE)
    with pytest.raises(LumitokError, match="ulimit") as error:
        open_pictures(tmp_path).open(0)
    assert not isinstance(error.value, UnreadableError)


def test_a_closed_folder_is_named_at_once(
    tmp_path: Path, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encoded())
    scandir = os.scandir

    def closed(path: Path) -> Any:
        if path.name == "bee":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(LumitokError, match=r"cannot list the folder '.*bee': Permission denied"):
        open_pictures(tmp_path)


def test_a_closed_zip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.zip").write_bytes(b"")

    def closed(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(zipfile, "ZipFile", closed)
    with pytest.raises(LumitokError, match=r"cannot open '.*x\.zip': Permission denied"):
        open_pictures(tmp_path / "x.zip")


def test_a_member_that_unpacks_without_end_is_not_unpacked(
    tmp_path: Path, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(2000))
        archive.writestr("a.png", encoded(size=(4, 4)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    pictures = open_pictures(tmp_path / "x.zip")
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(UnreadableError, match=r"unpacks to 2000 bytes"):
        pictures.open(1)
    monkeypatch.undo()
    assert pictures.open(0).size == (4, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text_can_be_read_held_out_and_named(tmp_path: Path, encoded: Encoded) -> None:
    names = [b"\xff.png", b"a.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(encoded())
    pictures = open_pictures(tmp_path)
    assert (
        sorted(name for part in split_holdout(pictures, 1, seed=0) for name in part.names) == pictures.names
    )
    (tmp_path / os.fsdecode(names[0])).write_bytes(b"")
    with pytest.raises(UnreadableError) as error:
        pictures.open(pictures.names.index(os.fsdecode(names[0])))
    assert "\\udcff.png" in str(error.value)
    str(error.value).encode()
