"""Folders and zips of pictures, and how one picture is read."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageOps

from lumitok.errors import LumitokError

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Names that end so, in either case, are pictures; all other files are left out and counted."""


class Pictures:
    """Pictures of a folder or a zip, by index; it travels to other processes by pickling.

    Attributes:
        names: paths inside the folder or zip, with ``/``, in the order they were listed (sorted).
        labels: class of each picture, an index into ``classes``; all 0 where there are no classes.
        classes: names of the class folders, sorted; empty where there are no class folders.
        left_out: why files were left out, and how many for each reason.
    """

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        left_out: dict[str, int],
    ) -> None:
        self._source = source
        self.names = list(names)
        self.labels = list(labels)
        self.classes = list(classes)
        self.left_out = dict(left_out)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Pictures({str(self._source)!r}, {len(self)} pictures, {len(self.classes)} classes)"

    def open(self, index: int) -> Image.Image:
        """Read one picture: RGB, upright (see :func:`read_picture`)."""
        name = self.names[index]
        try:
            with self._source.open(name) as file:
                return read_picture(file)
        except MemoryError:
            raise
        # A damaged file makes Pillow's readers raise nearly anything: struct.error, KeyError, zlib.error.
        except Exception as error:
            raise LumitokError(_unreadable(self._source, name, error)) from error

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height as stored (before EXIF turns the picture); reads only the header."""
        name = self.names[index]
        try:
            with self._source.open(name) as file, Image.open(file) as image:
                return image.size
        except Exception as error:
            raise LumitokError(_unreadable(self._source, name, error)) from error

    def subset(self, indices: Iterable[int]) -> Pictures:
        """Return the pictures at ``indices``, in that order; classes stay as they are."""
        indices = list(indices)
        names = [self.names[i] for i in indices]
        return Pictures(self._source, names, [self.labels[i] for i in indices], self.classes, self.left_out)


def open_pictures(path: str | Path, min_side: int = 0) -> Pictures:
    """List the pictures of a folder or of a zip; zips are read in place, never unpacked.

    Where all pictures lie in sub-folders, the first level gives the classes. A folder that wraps all
    of a zip's content is looked through. Hidden files and ``__MACOSX`` are ignored.

    Args:
        path: a folder or a ``.zip``.
        min_side: leave out, and count, pictures whose short side has fewer pixels.

    Raises:
        LumitokError: the path is missing, is neither folder nor zip, or has no picture.
    """
    path = Path(path).expanduser()
    source: Source
    if path.is_dir():
        source, names = _Folder(path), sorted(_walk(path))
    elif path.is_file():
        source, names = _open_zip(path)
    else:
        raise LumitokError(f"there is no folder or zip of pictures at '{path}'; check the path")
    counts: Counter[str] = Counter()
    kept = []
    for name in names:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            counts["path outside of the zip"] += 1
        elif PurePosixPath(name).suffix.lower() in SUFFIXES:
            kept.append(name)
        else:
            counts["not a picture by its extension"] += 1
    kept = _look_through(source, kept)
    if not kept:
        raise LumitokError(_nothing(path, counts))
    classes = sorted({name.split("/")[0] for name in kept}) if all("/" in name for name in kept) else []
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[name.split("/")[0]] if classes else 0 for name in kept]
    pictures = Pictures(source, kept, labels, classes, counts)
    return _without_small(pictures, path, min_side) if min_side > 0 else pictures


def split_holdout(pictures: Pictures, count: int, seed: int) -> tuple[Pictures, Pictures]:
    """Split off ``count`` pictures; returns ``(train, held_out)``, each in the order of ``pictures``.

    A picture is chosen by a hash of ``seed`` and its name, so that a picture which is added later
    replaces at most one of the held-out ones, and the order of the listing does not matter.
    """
    if not 0 <= count < len(pictures):
        raise LumitokError(
            f"cannot hold out {count} of {len(pictures)} pictures; "
            f"choose data.holdout between 0 and {len(pictures) - 1}"
        )
    keys = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in pictures.names]
    held = set(sorted(range(len(pictures)), key=keys.__getitem__)[:count])
    train = pictures.subset(i for i in range(len(pictures)) if i not in held)
    return train, pictures.subset(sorted(held))


def read_picture(file: BinaryIO | Path) -> Image.Image:
    """Read the first frame of a picture as RGB, turned upright by its EXIF orientation.

    Transparent pixels are composited on white. 16-bit grey is scaled to 8 bits (65535 becomes 255).
    Colour profiles are not applied.

    Raises:
        Exception: what Pillow raises for a damaged file, or ValueError for a pixel format whose range
            is not known (floating point, 32-bit integers).
    """
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            return _from_deep_grey(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    grey = (values.astype(np.int64) * 255 + 32767) // 65535
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


# ------------------------------------------------------------------------------------------------
# Where pictures lie


class Source(Protocol):
    """A place that opens a picture by its name."""

    def open(self, name: str) -> BinaryIO: ...  # noqa: D102


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def open(self, name: str) -> BinaryIO:
        return (self.root / name).open("rb")


class _Zip:
    """A zip whose file handle belongs to one process: two that share one would move its position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prefix = ""
        self._handle: zipfile.ZipFile | None = None
        self._process = 0

    def __str__(self) -> str:
        return str(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def archive(self) -> zipfile.ZipFile:
        if self._handle is None or self._process != os.getpid():
            self._handle, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._handle

    def open(self, name: str) -> BinaryIO:
        # In memory, because a picture's reader seeks and a compressed member rereads from its start.
        return BytesIO(self.archive().read(self.prefix + name))


def _open_zip(path: Path) -> tuple[_Zip, list[str]]:
    source = _Zip(path)
    try:
        entries = source.archive().infolist()
    except zipfile.BadZipFile as error:
        raise LumitokError(
            f"'{path}' is not a zip ({error}); give a folder of pictures or a zip of one"
        ) from None
    names = {entry.filename for entry in entries if not entry.is_dir()}
    return source, sorted(name for name in names if not _hidden(name))


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)


def _walk(root: Path) -> Iterator[str]:
    """Yield the files below ``root``; links are followed, except into a folder that is being read."""

    def step(folder: Path, above: frozenset[Path]) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if not entry.is_dir():
                    yield Path(entry.path).relative_to(root).as_posix()
                elif (real := Path(entry.path).resolve()) not in above:
                    yield from step(Path(entry.path), above | {real})

    return step(root, frozenset({root.resolve()}))


def _look_through(source: Source, names: list[str]) -> list[str]:
    """Cut off the folders that wrap the whole content of a zip."""
    while isinstance(source, _Zip) and names and all("/" in name for name in names):
        first = {name.split("/")[0] for name in names}
        if len(first) > 1:
            break
        wrapper = first.pop() + "/"
        source.prefix += wrapper
        names = [name.removeprefix(wrapper) for name in names]
    return names


def _without_small(pictures: Pictures, path: Path, min_side: int) -> Pictures:
    large = [i for i in range(len(pictures)) if min(pictures.size(i)) >= min_side]
    if small := len(pictures) - len(large):
        pictures.left_out[f"short side under {min_side} px"] = small
    if not large:
        raise LumitokError(_nothing(path, pictures.left_out))
    return pictures.subset(large)


def _nothing(path: Path, left_out: dict[str, int]) -> str:
    found = ", ".join(f"{count} left out ({reason})" for reason, count in left_out.items()) or "nothing"
    return f"'{path}' holds no picture to use: found {found}; wanted files such as .png, .jpg or .webp"


def _unreadable(source: Source, name: str, error: Exception) -> str:
    what = str(error) or type(error).__name__
    return f"cannot read the picture '{name}' of '{source}': {what}; mend or remove the file"
