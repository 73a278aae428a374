"""What an encoding was begun with, and which of its pictures are done: what a killed one goes on from.

STORE/
store.json.partial      the plan; while it is there and ``store.json`` is not, the store is not finished
encoded-00.jsonl        one line a finished chunk, of process 0; its rows were on the disk before
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lumitok.data import BadPicture, Pictures
from lumitok.data.latent_store import HEADER, Header, open_latent_store, write_json
from lumitok.data.latent_writing import allocate
from lumitok.errors import LumitokError

PLAN = f"{HEADER}.partial"
LOGS = "encoded-*.jsonl"


@dataclass(frozen=True)
class Plan:
    """All that decides what is written.

    Attributes:
        header: of the store to be; its ``count`` is that of all pictures.
        pictures: hash of their names and labels.
        chunk: pictures that are encoded, written and noted together.
    """

    header: Header
    pictures: str
    chunk: int

    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.header.count // self.chunk)

    def rows(self, chunk: int) -> range:
        """Which rows a chunk has."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.header.count))

    def differences(self, header: Header) -> list[str]:
        """Name what an encoding with another header would do otherwise."""
        ours, theirs = _settings(self.header), _settings(header)
        return [f"{name} {theirs[name]}, now {ours[name]}" for name in ours if ours[name] != theirs[name]]

    def save(self, out: Path) -> None:
        """Write the plan as a whole."""
        values = {"header": self.header.to_json(), "pictures": self.pictures, "chunk": self.chunk}
        write_json(out / PLAN, values)

    @classmethod
    def load(cls, out: Path) -> Self:
        """Read the plan of an encoding that was begun."""
        try:
            values = json.loads((out / PLAN).read_text(encoding="utf-8"))
            return cls(Header.from_json(values["header"]), str(values["pictures"]), int(values["chunk"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LumitokError(
                f"{out / PLAN} is damaged ({error}); delete the folder and encode again"
            ) from None


def _settings(header: Header) -> dict[str, Any]:
    return {
        "tokenizer": (header.spec.tokenizer or "")[:12],
        "size": header.image_size,
        "kind": header.kind,
        "numbers": header.dtype,
        "views": " and ".join(header.views),
        "seed": header.seed,
        "precision": header.precision,
    }


def hash_pictures(pictures: Pictures) -> str:
    """Hash names and labels, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, label in zip(pictures.names, pictures.labels, strict=True):
        digest.update(f"{label}\t{name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def take_up(out: Path, plan: Plan, pictures: Pictures) -> Plan | None:
    """Begin an encoding, or find the one to go on with.

    Returns:
        The plan to follow, its chunks perhaps of another size; None where the store is finished.

    Raises:
        LumitokError: the folder holds something else, or another encoding.
    """
    if (out / HEADER).is_file():
        _check_finished(out, plan, pictures)
        clean(out)
        return None
    if (out / PLAN).is_file():
        begun = Plan.load(out)
        found = plan.differences(begun.header)
        if begun.pictures != plan.pictures or begun.header.count != plan.header.count:
            found.append(f"{begun.header.count:,} pictures, now {plan.header.count:,} or others")
        if found:
            raise LumitokError(
                f"'{out}' was begun with {'; '.join(found)}; encode as before to go on, name another --out, "
                "or delete the folder"
            )
        plan = begun
    else:
        if out.exists() and (not out.is_dir() or any(p.name != f"{PLAN}.writing" for p in out.iterdir())):
            raise LumitokError(f"'{out}' is there already and is no latent store; name a new folder")
        out.mkdir(parents=True, exist_ok=True)
        plan.save(out)
    if not any(out.glob(LOGS)):
        allocate(out, plan.header)
    return plan


def _check_finished(out: Path, plan: Plan, pictures: Pictures) -> None:
    store = open_latent_store(out)
    found = plan.differences(store.header)
    known = set(pictures.names)
    whole = store.count + store.header.left_out.get("unreadable", 0)
    if whole != len(pictures) or not all(name in known for name in store.names):
        found.append("other pictures")
    if found:
        raise LumitokError(
            f"'{out}' is a finished store, made with {'; '.join(found)}; name another --out, or delete it"
        )


class Log:
    """The finished chunks of one process; a line is on the disk before the next chunk begins."""

    def __init__(self, out: Path, process: int) -> None:
        path = out / LOGS.replace("*", f"{process:02d}")
        self._file = path.open("ab")
        if path.stat().st_size:
            self._file.write(b"\n")  # The last line may have been cut by a kill.

    def note(self, chunk: int, bad: Sequence[tuple[int, BadPicture]]) -> None:
        """Note that a chunk is on the disk, and which of its rows have no picture that can be read."""
        line = {"chunk": chunk, "bad": [[row, picture.name, picture.reason] for row, picture in bad]}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_logs(out: Path) -> dict[int, list[tuple[int, BadPicture]]]:
    """Return the chunks that all processes have finished so far, each with its bad rows."""
    done = {}
    for path in sorted(out.glob(LOGS)):
        for line in path.read_bytes().splitlines():
            try:
                values = json.loads(line)
                done[int(values["chunk"])] = [
                    (int(row), BadPicture(name, reason)) for row, name, reason in values["bad"]
                ]
            except (ValueError, KeyError, TypeError):
                continue  # Cut by a kill: that chunk is encoded again.
    return done


def clean(out: Path) -> None:
    """Take away what only an unfinished store needs."""
    for path in [*out.glob(LOGS), out / PLAN]:
        path.unlink(missing_ok=True)
