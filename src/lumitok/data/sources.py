"""Where pictures lie: a folder, or a zip that is read in place."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from PIL import Image

from lumitok.errors import LumitokError

BYTES_PER_PIXEL = 8
"""Four channels of 16 bits: what a picture takes up at most when it is not compressed."""


class Source(Protocol):
    """A place that opens a picture by its name."""

    def names(self) -> list[str]:
        """List the files, sorted, without hidden ones."""

    def look_through(self, names: list[str]) -> list[str]:
        """Cut off the folders that wrap the whole content."""

    def open(self, name: str) -> BinaryIO:
        """Open a file to read; it can seek."""

    def head(self, name: str) -> BinaryIO:
        """Open a file of which the beginning will be read, and little else."""

    def is_broken_link(self, name: str) -> bool:
        """Say whether a name is a link to nothing."""


class Folder:
    """A folder and all below it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def names(self) -> list[str]:
        """List the files, sorted, without hidden ones.

        Raises:
            LumitokError: a folder cannot be listed. It might hold a class, and the numbers of the classes
                after it would change.
        """
        try:
            return sorted(_walk(self.root))
        except OSError as error:
            raise LumitokError(
                f"cannot list the folder {error.filename!r}: {error.strerror}; make it readable, or take it "
                f"out of {str(self.root)!r}"
            ) from None

    def look_through(self, names: list[str]) -> list[str]:
        """Leave the names as they are: the user chose this folder and none below it."""
        return names

    def open(self, name: str) -> BinaryIO:
        """Open a file; anything else (a pipe would block for ever) is a ValueError."""
        path = self.root / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ValueError("it is not a file")
        except FileNotFoundError:
            if path.is_symlink():
                raise ValueError("it is a broken link") from None
            raise
        return path.open("rb")

    def head(self, name: str) -> BinaryIO:
        """Open a file as :meth:`open` does."""
        return self.open(name)

    def is_broken_link(self, name: str) -> bool:
        """Say whether a name is a link to nothing."""
        path = self.root / name
        return path.is_symlink() and not path.exists()


class Zip:
    """A zip whose file handle belongs to one process: two that share one would move its position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prefix = ""
        """Folders that wrap the whole content; names are without them."""
        self._handle: zipfile.ZipFile | None = None
        self._process = 0

    def __str__(self) -> str:
        return str(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def archive(self) -> zipfile.ZipFile:
        """Return this process's handle."""
        if self._handle is None or self._process != os.getpid():
            self._handle, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._handle

    def names(self) -> list[str]:
        """List the files, sorted, without hidden ones.

        Raises:
            LumitokError: it is not a zip.
        """
        try:
            entries = self.archive().infolist()
        except zipfile.BadZipFile as error:
            raise LumitokError(
                f"'{self.path}' is not a zip ({error}); give a folder of pictures or a zip of one"
            ) from None
        except OSError as error:
            raise LumitokError(f"cannot open '{self.path}': {error.strerror}; make it readable") from None
        names = {entry.filename for entry in entries if not entry.is_dir()}
        return sorted(name for name in names if not _hidden(name))

    def look_through(self, names: list[str]) -> list[str]:
        """Cut off the folders that wrap the whole content."""
        while names and all("/" in name for name in names):
            first = {name.split("/")[0] for name in names}
            if len(first) > 1:
                break
            wrapper = first.pop() + "/"
            self.prefix += wrapper
            names = [name.removeprefix(wrapper) for name in names]
        return names

    def open(self, name: str) -> BinaryIO:
        """Unpack a member; one that is larger than any picture that is read is a ValueError."""
        # In memory, because a picture's reader seeks and a compressed member rereads from its start.
        return BytesIO(self.archive().read(self._member(name)))

    def head(self, name: str) -> BinaryIO:
        """Open a member without unpacking the whole; the same limit."""
        return cast(BinaryIO, self.archive().open(self._member(name)))

    def _member(self, name: str) -> zipfile.ZipInfo:
        member = self.archive().getinfo(self.prefix + name)
        pixels = Image.MAX_IMAGE_PIXELS
        if pixels is not None and member.file_size > 2 * pixels * BYTES_PER_PIXEL:
            raise ValueError(f"it unpacks to {member.file_size} bytes, which no picture needs")
        return member

    def is_broken_link(self, name: str) -> bool:  # noqa: ARG002
        """Say no: a zip's links are short texts, and no picture."""
        return False


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
                if not _is_folder(entry):
                    yield Path(entry.path).relative_to(root).as_posix()
                elif (real := Path(entry.path).resolve()) not in above:
                    yield from step(Path(entry.path), above | {real})

    return step(root, frozenset({root.resolve()}))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself, or into a closed folder: opening it says so.
        return False
