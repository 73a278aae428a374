"""Where a saved model lies, and what its ``config.json`` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumitok.errors import LumitokError

CONFIG = "config.json"
ENCODER_WEIGHTS = "encoder.safetensors"
"""The frozen encoder's weights, where a tokenizer's folder has them."""


def look_for_saved(path: str | Path, part: str) -> Path | None:
    """Return the folder of a run's or a checkpoint's part, or ``path`` itself where it is that folder.

    Of a run: the final one, or the newest checkpoint's while there is none. None: there is no such part.

    Args:
        path: a run, a checkpoint, or the folder itself.
        part: name of the folder in a run and in a checkpoint, such as ``network``.
    """
    folder = Path(path)
    saved = sorted(p for p in (folder / "checkpoints").glob("step-*") if p.suffix != ".partial")
    places = (folder, folder / part, *(checkpoint / part for checkpoint in reversed(saved)))
    return next((place for place in places if (place / CONFIG).is_file()), None)


def find_saved(path: str | Path, part: str) -> Path:
    """Return what :func:`look_for_saved` finds.

    Raises:
        LumitokError: there is no such folder, or no such part in it.
    """
    found = look_for_saved(path, part)
    if found is None and not Path(path).exists():
        raise LumitokError(f"there is no '{Path(path)}'; give a run, a checkpoint or a {part} folder")
    if found is None:
        raise LumitokError(
            f"'{Path(path)}' holds no {part}: no {CONFIG} in it, in {part}/ or in checkpoints/"
        )
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a folder's ``config.json`` says.

    Raises:
        LumitokError: the file is damaged, or does not hold names and values.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LumitokError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise LumitokError(f"{path} does not describe a model: it holds a {type(config).__name__}")
    return config
