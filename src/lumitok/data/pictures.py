"""The pictures of a folder or a zip: their names and classes, and each by its index."""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from PIL import Image

from lumitok.data.bad_pictures import BadPicture, UnreadableError, listing
from lumitok.data.read import read_picture, read_size, reason_of
from lumitok.data.sources import Folder, Source, Zip
from lumitok.errors import LumitokError

T = TypeVar("T")

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Names that end so, in either case, are pictures; all other files are left out and counted."""
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


class Pictures:
    """Pictures of a folder or a zip, by index; it travels to other processes by pickling.

    Attributes:
        source: the folder or zip.
        names: paths inside the folder or zip, with ``/``, in the order they were listed (sorted).
        labels: class of each picture, an index into ``classes``; all 0 where there are no classes.
        classes: names of the class folders, sorted; empty where there are no class folders.
        left_out: why files were left out, and how many for each reason.
        unreadable: the pictures among them whose headers cannot be read (found where there is a least side).
    """

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        left_out: dict[str, int],
        unreadable: Sequence[BadPicture] = (),
    ) -> None:
        self.source = source
        self.names = list(names)
        self.labels = list(labels)
        self.classes = list(classes)
        self.left_out = dict(left_out)
        self.unreadable = list(unreadable)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Pictures({str(self.source)!r}, {len(self)} pictures, {len(self.classes)} classes)"

    def open(self, index: int) -> Image.Image:
        """Read one picture: RGB, upright (see :func:`lumitok.data.read_picture`).

        Raises:
            UnreadableError: this picture cannot be read; it says why.
        """
        return self._read(index, self.source.open, read_picture)

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height of the picture that ``open`` gives; reads only the header.

        Raises:
            UnreadableError: this header cannot be read; it says why.
        """
        return self._read(index, self.source.head, read_size)

    def _read(self, index: int, opened: Callable[[str], BinaryIO], read: Callable[[BinaryIO], T]) -> T:
        name = self.names[index]
        try:
            with opened(name) as file:
                return read(file)
        except MemoryError:
            raise
        # A damaged file makes Pillow's readers raise nearly anything: struct.error, KeyError, zlib.error.
        except Exception as error:
            if isinstance(error, OSError) and error.errno in TOO_MANY_FILES:
                raise LumitokError(
                    f"cannot open {name!r} of '{self.source}' ({error.strerror}), which is no fault of the "
                    "picture's; use fewer data.workers, or raise the limit of open files (ulimit -n)"
                ) from error
            raise UnreadableError(BadPicture(name, reason_of(error)), str(self.source)) from error

    def hash_few(self, count: int = 16) -> str:
        """Hash the files of a few pictures, evenly spread: what tells other pictures of the same names."""
        digest = hashlib.sha256()
        for index in evenly(len(self), count):
            with self.source.open(self.names[index]) as file:
                digest.update(hashlib.sha256(file.read()).digest())
        return digest.hexdigest()

    def subset(self, indices: Iterable[int]) -> Pictures:
        """Return the pictures at ``indices``, in that order; classes stay as they are."""
        indices = list(indices)
        names = [self.names[i] for i in indices]
        labels = [self.labels[i] for i in indices]
        return Pictures(self.source, names, labels, self.classes, self.left_out, self.unreadable)


def open_pictures(path: str | Path, min_side: int = 0) -> Pictures:
    """List the pictures of a folder or of a zip; zips are read in place, never unpacked.

    Where all pictures lie in sub-folders, the first level gives the classes. A folder that wraps all
    of a zip's content is looked through. Hidden files and ``__MACOSX`` are ignored.

    Args:
        path: a folder or a ``.zip``.
        min_side: leave out, and count, pictures whose short side has fewer pixels, or whose header
            cannot be read.

    Raises:
        LumitokError: the path is missing, is neither folder nor zip, or has no picture; or a folder
            below it cannot be listed.
    """
    path = Path(path).expanduser()
    source = _source(path)
    names = source.names()
    counts: Counter[str] = Counter()
    kept = []
    for name in names:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            counts["path outside of the zip"] += 1
        elif PurePosixPath(name).suffix.lower() in SUFFIXES:
            kept.append(name)
        elif source.is_broken_link(name):
            counts["broken link"] += 1
        else:
            counts["not a picture by its extension"] += 1
    kept = source.look_through(kept)
    if not kept:
        raise LumitokError(_nothing(path, counts, []))
    classes = sorted({name.split("/")[0] for name in kept}) if all("/" in name for name in kept) else []
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[name.split("/")[0]] if classes else 0 for name in kept]
    pictures = Pictures(source, kept, labels, classes, counts)
    return _without_small(pictures, path, min_side) if min_side > 0 else pictures


def evenly(total: int, count: int) -> list[int]:
    """At most ``count`` of ``total`` places, spread evenly, the first and the last among them."""
    if count >= total:
        return list(range(total))
    return [round(place * (total - 1) / max(1, count - 1)) for place in range(count)]


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
    # Linux knows names that are no text; Python gives them as surrogates.
    texts = [f"{seed}/{name}".encode(errors="surrogateescape") for name in pictures.names]
    keys = [hashlib.sha256(text).digest() for text in texts]
    held = set(sorted(range(len(pictures)), key=keys.__getitem__)[:count])
    train = pictures.subset(i for i in range(len(pictures)) if i not in held)
    return train, pictures.subset(sorted(held))


def _source(path: Path) -> Source:
    try:
        if path.is_dir():
            return Folder(path)
        if path.is_file():
            return Zip(path)
    except PermissionError as error:
        raise LumitokError(f"cannot open '{path}': {error.strerror}; make it readable") from None
    raise LumitokError(f"there is no folder or zip of pictures at '{path}'; check the path")


def _without_small(pictures: Pictures, path: Path, min_side: int) -> Pictures:
    large, small, unreadable = [], 0, []
    for index in range(len(pictures)):
        try:
            if min(pictures.size(index)) >= min_side:
                large.append(index)
            else:
                small += 1
        except UnreadableError as error:
            unreadable.append(error.bad)
    if small:
        pictures.left_out[f"short side under {min_side} px"] = small
    if unreadable:
        pictures.left_out["unreadable"] = len(unreadable)
        pictures.unreadable = unreadable
    if not large:
        raise LumitokError(_nothing(path, pictures.left_out, unreadable))
    return pictures.subset(large)


def _nothing(path: Path, left_out: dict[str, int], unreadable: list[BadPicture]) -> str:
    found = ", ".join(f"{count} left out ({reason})" for reason, count in left_out.items()) or "nothing"
    named = f"\n{listing(unreadable)}" if unreadable else ""
    return f"'{path}' holds no picture to use: found {found}; wanted files such as .png, .jpg or .webp{named}"
