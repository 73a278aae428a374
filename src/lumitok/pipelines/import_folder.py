"""What every import of foreign weights does alike: refuse, report, write the folder whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from safetensors import SafetensorError

from lumitok.config import Section
from lumitok.errors import LumitokError
from lumitok.interop.faults import Faults, WrongFileError, every_fault
from lumitok.tokenizers import Tokenizer

Settings = TypeVar("Settings", bound=Section)


@dataclass(frozen=True)
class Row:
    """One line of what was done: what, how many tensors, and more in words."""

    what: str
    tensors: int
    about: str


@dataclass(frozen=True)
class ImportReport(Generic[Settings]):
    """What was read, converted and left out, and the config that the file turned out to have.

    Attributes:
        rows: what was done, line by line.
        settings: the tokenizer's or network's.
        out: its folder.
        about: one sentence on it.
    """

    rows: list[Row]
    settings: Settings
    out: Path
    about: str


def check_free(out: Path) -> None:
    """Raise a LumitokError where the folder to make holds something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LumitokError(f"'{out}' is there already; name a new folder, or an empty one")


def check_faults(said: str, faults: Faults, listed: Path | None) -> None:
    """Raise a WrongFileError where there are faults, and list all of them in a file where one is named."""
    if not any(faults.values()):
        return
    list_faults(faults, listed)
    raise WrongFileError(said, faults)


def list_faults(faults: Faults, listed: Path | None) -> None:
    """Write all faults to a file where one is named."""
    if listed is not None:
        listed.write_text("".join(f"{fault}\n" for fault in every_fault(faults)), encoding="utf-8")


def write_folder(tokenizer: Tokenizer, out: Path, *, bundle: bool = False) -> None:
    """Write a tokenizer's folder, with its frozen encoder's weights where asked; whole or not at all."""
    write_whole(lambda folder: tokenizer.save_pretrained(folder, bundle_encoder=bundle), out)


def write_whole(save: Callable[[Path], None], out: Path) -> None:
    """Save beside the folder and rename, so that a full disk or a kill leaves no half of one."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
            save(Path(beside) / "saved")
            if out.exists():
                out.rmdir()
            (Path(beside) / "saved").rename(out)
    except (OSError, SafetensorError) as error:
        raise LumitokError(f"cannot write '{out}': {error}") from error
