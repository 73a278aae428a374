"""A data set's latents on disk: made once, read at random, never by the wrong tokenizer's user.

    STORE/
        store.json      the header; a store without it is not finished
        plain.bin       one row a picture: the latent, or mean and standard deviation; contiguous, raw
        mirrored.bin    the same of the mirrored pictures, where the store has them
        labels.npy      int64 (n,)
        names.json      names of the pictures
        verified.json   size and time of the files when their hashes were last seen to be right

Arrays are mapped into memory, so a read touches only its own rows, and any number of processes share them.
The header has a hash of every file. Opening a store compares sizes, and hashes too where a file is not the
very one that was verified before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lumitok.data.latents import LatentSpec
from lumitok.errors import LumitokError

FORMAT = 2
"""2: the header has a hash of itself, and of a few of the pictures."""
HEADER, LABELS, NAMES, VERIFIED = "store.json", "labels.npy", "names.json", "verified.json"
VIEWS = ("plain", "mirrored")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_BITS = {"float32": np.int32, "float16": np.int16, "bfloat16": np.int16}
"""How numpy holds a type's numbers, of which it does not know all."""
DType = Literal["float32", "float16", "bfloat16"]
Kind = Literal["samples", "moments"]
Statistics = Literal["tokenizer", "store", "shards"]
_BLOCK = 1 << 24

Advance = Callable[[int], None]
"""Told how many more bytes are done."""


@dataclass(frozen=True)
class Header:
    """What ``store.json`` says.

    Attributes:
        spec: shape and statistics of a latent, and the fingerprint of the tokenizer that made it.
        count: latents.
        kind: ``samples``: one draw of the posterior a view; ``moments``: mean and standard deviation, so that
            it can be drawn anew at each step.
        dtype: of the numbers on disk.
        views: ``plain``, and ``mirrored`` where mirrored pictures were encoded too.
        classes: names of the classes, in the order of the labels; empty where there are none.
        tokenizer: as its user named it.
        pictures: name of the pictures' folder or zip.
        image_size: side of the pictures in pixels; ADM's centre crop.
        seed: of the posterior's draws.
        left_out: pictures that were not encoded: reason -> count.
        files: size in bytes and hash of every file, by its name.
        statistics: whose mean and standard deviation ``spec`` has: the ``tokenizer``'s, the ``store``'s own
            where the tokenizer had none, or ``shards``', those of the latents it was converted from.
        precision: that the tokenizer computed in: ``fp32`` or ``bf16``; empty where that is not known.
        few_pictures: :meth:`Pictures.hash_few` of the pictures; empty where they are not known.
    """

    spec: LatentSpec
    count: int
    kind: Kind
    dtype: DType
    views: tuple[str, ...]
    classes: tuple[str, ...]
    tokenizer: str
    pictures: str
    image_size: int
    seed: int
    left_out: dict[str, int]
    files: dict[str, tuple[int, str]]
    statistics: Statistics = "tokenizer"
    precision: str = "fp32"
    few_pictures: str = ""

    @property
    def row(self) -> tuple[int, int, int]:
        """Shape of a row: (C, h, w), or (2 C, h, w) with moments."""
        return self.spec.channels * (2 if self.kind == "moments" else 1), self.spec.height, self.spec.width

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(np.prod(self.row)) * DTYPES[self.dtype].itemsize

    def summary(self) -> str:
        """Half a sentence for people."""
        shape = "x".join(map(str, (self.spec.channels, self.spec.height, self.spec.width)))
        views = "both views" if len(self.views) > 1 else "one view"
        size = len(self.views) * self.count * self.row_bytes
        classes = f", {len(self.classes):,} classes" if self.classes else ""
        what = f"{self.count:,} latents {shape}{classes}, {self.kind}, {self.dtype}"
        return f"{what}, {views}, {size / 1e6:,.1f} MB"

    def to_json(self) -> dict[str, Any]:
        """Plain values, and a hash of them: a header that somebody edits would whiten with other numbers."""
        values = {"format": FORMAT, **asdict(self)}
        return {**values, "sha256": hash_values(values)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_json`; a ValueError, KeyError or TypeError where values miss or are wrong."""
        values = dict(values)
        written = values.pop("sha256", None)
        if values.get("format") != FORMAT:
            raise ValueError(f"format {values.get('format')!r}, and this lumitok reads {FORMAT}")
        if hash_values(values) != written:
            raise ValueError("it was altered since it was made; copy it again, or encode again")
        spec = dict(values["spec"])
        for name in ("mean", "std"):
            spec[name] = None if spec[name] is None else tuple(spec[name])
        own = {entry.name: values[entry.name] for entry in fields(cls)}
        own["spec"] = LatentSpec(**spec)
        own["views"], own["classes"] = tuple(own["views"]), tuple(own["classes"])
        own["files"] = {str(name): (int(size), str(found)) for name, (size, found) in own["files"].items()}
        if own["dtype"] not in DTYPES or own["kind"] not in ("samples", "moments"):
            raise ValueError(f"{own['kind']!r} of numbers {own['dtype']!r}")
        if own["views"] not in (VIEWS[:1], VIEWS):
            raise ValueError(f"views {own['views']}")
        header = cls(**own)
        if not all(isinstance(number, int) and number > 0 for number in (header.count, *header.row)):
            raise ValueError(f"{header.count} rows of shape {header.row}")
        return header


def hash_values(values: dict[str, Any]) -> str:
    """Hash plain values; a tuple is the list that it will be read as."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class LatentStore:
    """An opened store; :func:`open_latent_store` opens it."""

    def __init__(self, path: Path, header: Header, labels: npt.NDArray[np.int64]) -> None:
        self.path, self.header = path, header
        self.labels = torch.from_numpy(labels)
        self._names: list[str] | None = None
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    @property
    def spec(self) -> LatentSpec:
        """Shape and statistics of a latent."""
        return self.header.spec

    @property
    def count(self) -> int:
        """Latents."""
        return self.header.count

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.header.classes

    @property
    def identity(self) -> str:
        """What sets this store apart from another: a hash over the hashes of its files."""
        return hash_values(self.header.files)[:12]

    @property
    def names(self) -> list[str]:
        """Names of the pictures, in order; empty where they are not known."""
        if self._names is None:
            path = self.path / NAMES
            self._names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return self._names

    def read(
        self, indices: Sequence[int] | Tensor, mirrored: Sequence[bool] | Tensor | None = None
    ) -> Tensor:
        """Read rows as they are stored, as float32: (b, C, h, w), or (b, 2 C, h, w) with moments.

        Args:
            indices: which latents.
            mirrored: which of them to read from the mirrored view; None: none.
        """
        places = torch.as_tensor(indices).tolist()
        flipped = [False] * len(places) if mirrored is None else torch.as_tensor(mirrored).tolist()
        # Row by row into one piece of memory: quicker than gathering each view and putting them together.
        bits = np.empty((len(places), *self.header.row), dtype=_BITS[self.header.dtype])
        views = [self._array("plain"), self._array("mirrored")] if any(flipped) else [self._array("plain")]
        for row, (place, view) in enumerate(zip(places, flipped, strict=True)):
            bits[row] = views[view][place]
        return torch.from_numpy(bits).view(DTYPES[self.header.dtype]).float()

    def draw(self, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Turn rows into raw latents (b, C, h, w): what :meth:`read` gave, or a draw from its moments.

        Args:
            values: from :meth:`read`.
            generators: one a row, on the CPU.
        """
        if self.header.kind == "samples":
            return values
        mean, std = values.chunk(2, dim=1)
        noise = [torch.randn(mean.shape[1:], generator=generator) for generator in generators]
        return mean + std * torch.stack(noise)

    def check_tokenizer(self, fingerprint: str, name: str) -> None:
        """Raise a LumitokError where a tokenizer did not make these latents."""
        made_by = self.spec.tokenizer
        if (made_by or "") != fingerprint:
            raise LumitokError(
                f"the latents of {self.path} were made by the tokenizer '{self.header.tokenizer}' "
                f"({(made_by or 'unknown')[:12]}), and {name} is {fingerprint[:12] or 'unknown'}; use that "
                "one, or encode the pictures again with `lumitok encode`"
            )

    def _array(self, view: str) -> npt.NDArray[Any]:
        if view not in self._arrays:
            if view not in self.header.views:
                raise LumitokError(
                    f"{self.path} has no mirrored view; encode with --flip, or set data.flip to false"
                )
            rows = map_rows(self.path / f"{view}.bin", self.header, self.count)
            self._arrays[view] = rows.view(torch.int32 if rows.itemsize == 4 else torch.int16).numpy()
        return self._arrays[view]

    def __getstate__(self) -> dict[str, Any]:  # Worker processes map the files anew.
        return {**self.__dict__, "_arrays": {}}


def map_rows(path: Path, header: Header, count: int, *, write: bool = False) -> Tensor:
    """Map a view's file into memory: (count, *row), of the type on disk.

    Args:
        path: the file; it has its full size already.
        header: shape and type of a row.
        count: rows.
        write: let changes reach the file; else the mapping must not be written to, which would end the
            process.
    """
    if write:
        numbers = count * int(np.prod(header.row))
        flat = torch.from_file(str(path), shared=True, size=numbers, dtype=DTYPES[header.dtype])
        return flat.view(count, *header.row)
    # torch's own mapping would be writable and private: Linux refuses one that is larger than the memory.
    mapped = np.memmap(path, dtype=np.uint8, mode="r", shape=(count * header.row_bytes,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # It is not writable, and nobody here writes.
        return torch.from_numpy(mapped).view(DTYPES[header.dtype]).view(count, *header.row)


def open_latent_store(path: Path, *, advance: Callable[[int], Advance] | None = None) -> LatentStore:
    """Open a finished store.

    Args:
        path: its folder.
        advance: called with the number of bytes to hash, before a first verification; what it returns is
            called with each block's bytes.

    Raises:
        LumitokError: there is none, it is not finished, or a file is missing, cut short or altered.
    """
    if not (path / HEADER).is_file():
        if (path / f"{HEADER}.partial").is_file():
            raise LumitokError(f"the store {path} is not finished; run the same `lumitok encode` again")
        if any(path.glob("*.safetensors")):
            raise LumitokError(
                f"'{path}' holds safetensors and no latent store; of LightningDiT's shards "
                f"`lumitok convert-latents {path} STORE` makes one"
            )
        raise LumitokError(f"there is no latent store at '{path}'; `lumitok encode` makes one")
    try:
        text = (path / HEADER).read_text(encoding="utf-8")
        header = Header.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LumitokError(f"{path / HEADER} is damaged: {error}") from None
    verify(path, header, advance)
    labels = np.load(path / LABELS, allow_pickle=False)
    if labels.shape != (header.count,) or labels.dtype != np.int64:
        raise LumitokError(
            f"{path / LABELS} holds {labels.dtype} {labels.shape}, not int64 ({header.count},)"
        )
    if labels.min() < 0 or labels.max() >= max(1, len(header.classes)):
        raise LumitokError(
            f"{path / LABELS} has labels from {labels.min()} to {labels.max()}, and the store has "
            f"{len(header.classes)} classes; encode again"
        )
    return LatentStore(path, header, labels)


def verify(path: Path, header: Header, advance: Callable[[int], Advance] | None = None) -> None:
    """See that every file is the one that the header knows.

    A file whose size, time of change and number on the disk are those of the last verification is taken to be
    that file; a store on a disk that cannot be written is hashed every time.
    """
    expected = {f"{view}.bin": header.count * header.row_bytes for view in header.views}
    seen: dict[str, list[int]] = {}
    for name, (size, _) in header.files.items():
        if Path(name).name != name or not (path / name).is_file():
            raise LumitokError(f"the store {path} lacks its file {name}; copy it again, or encode again")
        found = (path / name).stat().st_size
        if found != size or expected.get(name, size) != size:
            raise LumitokError(
                f"{path / name} has {found} bytes and should have {expected.get(name, size)}: it was cut "
                "short or changed; copy it again, or encode again"
            )
        seen[name] = _seen(path / name)
    if not set(expected) | {LABELS} <= set(header.files):
        raise LumitokError(f"{path / HEADER} is damaged: it does not list all files")
    header_hash = hash_file(path / HEADER)
    before = _verified(path)
    if before == {"header": header_hash, "files": seen}:
        return
    told = advance(sum(size for size, _ in header.files.values())) if advance is not None else None
    for name, (_, wanted) in header.files.items():
        if hash_file(path / name, told) != wanted:
            raise LumitokError(f"{path / name} was altered since it was made; copy it again, or encode again")
    _note_verified(path, header_hash, seen)


def _seen(file: Path) -> list[int]:
    """What sets a file apart from any that comes after it."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _note_verified(path: Path, header_hash: str, seen: dict[str, list[int]]) -> None:
    with contextlib.suppress(OSError):
        (path / VERIFIED).write_text(json.dumps({"header": header_hash, "files": seen}) + "\n")


def _verified(path: Path) -> Any:
    try:
        return json.loads((path / VERIFIED).read_text())
    except (OSError, ValueError):
        return None


def hash_file(path: Path, advance: Advance | None = None) -> str:
    """BLAKE2b of a file, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if advance is not None:
                advance(len(block))
    return digest.hexdigest()


def write_header(path: Path, header: Header) -> None:
    """Write the header last and whole: from now on the store counts as finished."""
    write_json(path / HEADER, header.to_json())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replace a file as a whole, and only once its content is on the disk."""
    partial = path.with_name(f"{path.name}.writing")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def finish_store(path: Path, header: Header, advance: Advance | None = None) -> Header:
    """Hash the files that lie in a store's folder and write its header; returns it with them in it.

    Args:
        path: the folder; views, labels and perhaps names are written and nobody changes them any more.
        header: all but ``files``.
        advance: told the bytes of each block.
    """
    names = [*(f"{view}.bin" for view in header.views), LABELS, NAMES]
    present = [name for name in names if (path / name).is_file()]
    seen = {name: _seen(path / name) for name in present}
    files = {name: (seen[name][0], hash_file(path / name, advance)) for name in present}
    finished = replace(header, files=files)
    write_header(path, finished)
    _note_verified(path, hash_file(path / HEADER), seen)
    return finished
