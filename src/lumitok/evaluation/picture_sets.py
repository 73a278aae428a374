"""Sets of pictures to be judged: a folder, a zip, or the arrays of an npz, read batch by batch.

Nothing is held but what is read ahead; npz members are streamed out of their zip and never unpickled.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lumitok.data import BadPicture, Pictures, UnreadableError, center_crop, open_pictures
from lumitok.data.bad_pictures import listing
from lumitok.data.sources import Folder, Zip
from lumitok.errors import LumitokError, nearest
from lumitok.evaluation.extractors import SPATIAL_DIM
from lumitok.evaluation.frechet import Statistics
from lumitok.evaluation.protocol import PictureSet, hash_names

PIXELS, LABELS = "arr_0", "arr_1"
"""Arrays of a file of samples, as ADM's scripts name them: pictures, and their classes where it has them."""
POOLED, SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")
"""Arrays of a file of reference statistics: of pool_3, and of sFID's features."""
READERS = min(8, os.cpu_count() or 1)
AHEAD = 4 * READERS
"""Pictures that are being read at one time, by as many threads."""

Report = Callable[[BadPicture], None]


class PictureSource(ABC):
    """A set of square pictures of one size, by index; open one with :func:`open_picture_set`.

    Attributes:
        path: the folder or file.
        names: of the pictures, in the order in which they are measured.
        labels: class of each picture; None where there are no classes.
        size: side in pixels of the pictures as they are given out.
        preparation: what brought them to this size, in words.
        left_out: why files were left out before any was read, and how many for each reason.
    """

    def __init__(
        self,
        path: Path,
        names: list[str],
        labels: list[int] | None,
        size: int,
        preparation: str,
        left_out: dict[str, int] | None = None,
    ) -> None:
        self.path, self.names, self.labels, self.size = path, names, labels, size
        self.preparation = preparation
        self.left_out = dict(left_out or {})

    def __len__(self) -> int:
        return len(self.names)

    @property
    def name(self) -> str:
        """Name of the folder or file, without the path to it."""
        return self.path.resolve().name

    def protocol_set(self, measured: int | Sequence[int] | None = None) -> PictureSet:
        """Say which pictures a number speaks of: by name and by what is known of their content.

        Args:
            measured: indices of the pictures, or how many from the first on; None: all.
        """
        if measured is None or isinstance(measured, int):
            measured = range(len(self) if measured is None else measured)
        lines = (f"{self.names[index]}\t{self._content(index)}" for index in measured)
        return PictureSet(self.name, len(measured), hash_names(lines))

    def batches(
        self, indices: Sequence[int], batch_size: int, report: Report | None = None
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Read pictures in the given order: uint8 (B, 3, size, size), and the index of each.

        Args:
            indices: of the pictures.
            batch_size: pictures a batch; the last may have fewer.
            report: called with each picture that cannot be read and is left out; None: it is an error.

        Raises:
            LumitokError: a picture is of another size than the others, or cannot be read.
        """
        if batch_size < 1:
            raise LumitokError(f"got a batch size of {batch_size}, wanted at least 1")
        pixels: list[NDArray[np.uint8]] = []
        used: list[int] = []
        for index, picture in self._read(indices):
            if isinstance(picture, BadPicture):
                if report is None:
                    raise UnreadableError(picture, str(self.path))
                report(picture)
                continue
            pixels.append(picture)
            used.append(index)
            if len(used) == batch_size:
                yield _stack(pixels), used
                pixels, used = [], []
        if used:
            yield _stack(pixels), used

    @abstractmethod
    def _content(self, index: int) -> str:
        """What sets a picture apart from others of its name, without reading it."""

    @abstractmethod
    def _read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8] | BadPicture]]:
        """Yield each picture (size, size, 3), in order, or why it cannot be read."""


def open_picture_set(path: str | Path, *, size: int | None = None) -> PictureSource:
    """Open a folder, a zip or an npz of pictures.

    An npz holds ``arr_0``, uint8 (N, H, W, 3), and perhaps the classes as ``arr_1``, (N,).

    Args:
        path: where they lie.
        size: side in pixels of ADM's centre crop; None: as they are stored, squares of one size.

    Raises:
        LumitokError: the path is missing or holds no such pictures.
    """
    path = Path(path).expanduser()
    if size is not None and size < 1:
        raise LumitokError(f"got a size of {size} px, wanted at least 1")
    if path.suffix.lower() == ".npz":
        return _Array(path, size)
    return _Files(open_pictures(path), path, size)


class _Files(PictureSource):
    """Pictures of a folder or a zip, decoded by several threads."""

    def __init__(self, pictures: Pictures, path: Path, size: int | None) -> None:
        self._pictures, self._crop = pictures, size is not None
        self._first = ""
        side = size if size is not None else self._native()
        labels = pictures.labels if pictures.classes else None
        super().__init__(path, pictures.names, labels, side, _words(size), pictures.left_out)

    def _native(self) -> int:
        """Side of the first picture whose header can be read."""
        bad: list[BadPicture] = []
        for index, name in enumerate(self._pictures.names):
            try:
                width, height = self._pictures.size(index)
            except UnreadableError as error:
                bad.append(error.bad)
                continue
            self._first = name
            return _square(width, height, f"{name!r} of '{self._pictures.source}'")
        raise LumitokError(
            f"none of the pictures of '{self._pictures.source}' can be read; mend them:\n{listing(bad)}"
        )

    def _content(self, index: int) -> str:
        name, source = self.names[index], self._pictures.source
        try:
            if isinstance(source, Zip):
                return _member_content(source.archive().getinfo(source.prefix + name))
            return str((source.root / name).stat().st_size) if isinstance(source, Folder) else ""
        except (OSError, KeyError, zipfile.BadZipFile):  # Reading it says so.
            return "unreadable"

    def _read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8] | BadPicture]]:
        ahead: deque[tuple[int, Future[NDArray[np.uint8] | BadPicture]]] = deque()
        with ThreadPoolExecutor(READERS) as pool:
            for index in indices:
                ahead.append((index, pool.submit(self._open, index)))
                if len(ahead) >= AHEAD:
                    done, future = ahead.popleft()
                    yield done, future.result()
            for index, future in ahead:
                yield index, future.result()

    def _open(self, index: int) -> NDArray[np.uint8] | BadPicture:
        try:
            image = self._pictures.open(index)
        except UnreadableError as error:
            return error.bad
        if self._crop:
            image = center_crop(image, self.size)
        elif image.size != (self.size, self.size):
            raise LumitokError(
                f"the pictures of '{self.path}' are of several sizes: {self._first!r} has {self.size} x "
                f"{self.size} px, {self.names[index]!r} {image.width} x {image.height}; give a size "
                f"(--size PX) to crop all of them to, or keep those of one size apart"
            )
        return np.asarray(image, dtype=np.uint8)


class _Array(PictureSource):
    """The pictures of an npz, streamed out of its zip."""

    def __init__(self, path: Path, size: int | None) -> None:
        with _open_npz(path) as arrays, _open_member(arrays, PIXELS, path) as member:
            shape, dtype, self._start = _header(member, PIXELS, path)
            labels = _labels(arrays, shape[0] if shape else 0, path)
            self._whole = _member_content(arrays.getinfo(f"{PIXELS}.npy"))
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not all(shape):
            raise LumitokError(
                f"{PIXELS} of '{path}' is {dtype} of shape {shape}; wanted uint8 pictures (N, H, W, 3) with "
                "values 0 to 255"
            )
        self._shape = shape[1:]
        self._crop = size is not None
        side = size if size is not None else _square(shape[2], shape[1], f"{PIXELS} of '{path}'")
        names = [f"{row:06d}" for row in range(shape[0])]
        super().__init__(path, names, labels, side, _words(size))

    def _content(self, index: int) -> str:  # noqa: ARG002
        return self._whole

    def _read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8] | BadPicture]]:
        row = int(np.prod(self._shape))
        with _open_npz(self.path) as arrays, _open_member(arrays, PIXELS, self.path) as member:
            for index in indices:
                try:
                    # Going forward a compressed member is read through once, going back from its start.
                    member.seek(self._start + index * row)
                    content = member.read(row)
                except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    raise LumitokError(
                        f"'{self.path}' is damaged at picture {index} ({error}); fetch or write it again"
                    ) from None
                if len(content) < row:
                    raise LumitokError(
                        f"'{self.path}' ends within picture {index} of {len(self)}; fetch or write it again"
                    )
                picture = np.frombuffer(content, dtype=np.uint8).reshape(self._shape)
                if self._crop:
                    picture = np.asarray(center_crop(Image.fromarray(picture), self.size))
                yield index, picture


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """What a file of reference statistics holds, such as ADM's ``VIRTUAL_imagenet256_labeled.npz``.

    Attributes:
        name: of the file.
        sha256: over its statistics.
        pooled: of Inception's pool_3, over a set whose count the file does not say.
        spatial: of sFID's features; None where the file has none.
        pictures: some of the pictures; None where the file has none.
    """

    name: str
    sha256: str
    pooled: Statistics
    spatial: Statistics | None
    pictures: PictureSource | None


def holds_statistics(path: str | Path) -> bool:
    """Whether a path is an npz with a mean and a covariance of features in it."""
    path = Path(path).expanduser()
    if path.suffix.lower() != ".npz":
        return False
    with _open_npz(path) as arrays:
        return set(POOLED) <= _keys(arrays)


def open_reference_statistics(path: str | Path) -> ReferenceStatistics:
    """Open a file of reference statistics: ``mu``, ``sigma``, perhaps ``mu_s``, ``sigma_s`` and ``arr_0``.

    Raises:
        LumitokError: the file is missing, is no npz, or its arrays are no statistics of Inception's features.
    """
    path = Path(path).expanduser()
    digest = hashlib.sha256()
    with _open_npz(path) as arrays:
        keys = _keys(arrays)
        found = {}
        for pair, dim in ((POOLED, 2048), (SPATIAL, SPATIAL_DIM)):
            if pair is SPATIAL and not set(pair) & keys:
                continue
            mean, covariance = (_array(arrays, key, path) for key in pair)
            if mean.shape != (dim,):
                raise LumitokError(
                    f"{pair[0]} of '{path}' has the shape {mean.shape}, wanted ({dim},): these are not the "
                    "statistics of Inception's features; give the pictures themselves as the reference"
                )
            for array in (mean, covariance):
                digest.update(np.ascontiguousarray(array).tobytes())
            found[pair] = Statistics.from_arrays(mean, covariance)
    pictures = open_picture_set(path) if PIXELS in keys else None
    return ReferenceStatistics(path.name, digest.hexdigest(), found[POOLED], found.get(SPATIAL), pictures)


def fingerprints(pixels: Tensor) -> list[bytes]:
    """Return a digest of each picture's pixels, uint8 (B, 3, H, W): equal for equal pictures alone."""
    return [hashlib.blake2b(picture.numpy().tobytes(), digest_size=16).digest() for picture in pixels.cpu()]


def find_duplicates(names: Sequence[str], prints: Sequence[bytes]) -> list[tuple[str, str]]:
    """Return (copy, first) for each picture that has the same pixels as one before it."""
    first: dict[bytes, str] = {}
    return [
        (name, seen)
        for name, digest in zip(names, prints, strict=True)
        if (seen := first.setdefault(digest, name)) is not name
    ]


def _open_npz(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        beside = [str(other) for other in path.parent.glob("*.npz")] if path.parent.is_dir() else []
        raise LumitokError(f"there is no file '{path}'{nearest(str(path), beside)}") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise LumitokError(f"'{path}' cannot be read as an npz ({error}); fetch or write it again") from None


def _member_content(member: zipfile.ZipInfo) -> str:
    return f"{member.file_size} {member.CRC:08x}"


def _keys(arrays: zipfile.ZipFile) -> set[str]:
    return {name.removesuffix(".npy") for name in arrays.namelist()}


def _open_member(arrays: zipfile.ZipFile, key: str, path: Path) -> IO[bytes]:
    keys = _keys(arrays)
    if key not in keys:
        raise LumitokError(
            f"'{path}' has no array {key}, only {', '.join(sorted(keys)) or 'nothing'}; pictures are wanted "
            f"as {PIXELS}, uint8 (N, H, W, 3), and statistics as {', '.join(POOLED + SPATIAL)}"
        )
    return arrays.open(f"{key}.npy")


def _header(member: IO[bytes], key: str, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type and where the numbers begin."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = read[np.lib.format.read_magic(member)](member)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LumitokError(f"{key} of '{path}' is not a plain numpy array ({error})") from None
    if fortran:
        raise LumitokError(
            f"{key} of '{path}' lies in Fortran's order; write it again with numpy.ascontiguousarray"
        )
    return shape, dtype, member.tell()


def _array(arrays: zipfile.ZipFile, key: str, path: Path) -> NDArray[Any]:
    """Read a whole array of numbers; one of objects, which would need pickle, is an error."""
    try:
        with _open_member(arrays, key, path) as member:
            return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LumitokError(f"{key} of '{path}' is not a plain numpy array ({error})") from None


def _labels(arrays: zipfile.ZipFile, count: int, path: Path) -> list[int] | None:
    if LABELS not in _keys(arrays):
        return None
    labels = _array(arrays, LABELS, path)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise LumitokError(
            f"{LABELS} of '{path}' is {labels.dtype} of shape {labels.shape}; wanted the class of each of "
            f"the {count} pictures, whole numbers ({count},)"
        )
    return [int(label) for label in labels]


def _square(width: int, height: int, what: str) -> int:
    if width != height:
        raise LumitokError(
            f"{what} has {width} x {height} px (width x height); pictures are judged as squares: give a size "
            "(--size PX) to crop them to"
        )
    return width


def _words(size: int | None) -> str:
    return "none: as stored" if size is None else f"ADM's centre crop to {size} px"


def _stack(pixels: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
