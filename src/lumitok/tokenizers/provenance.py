"""Where a tokenizer's weights come from: what its training leaves in the folder, and what its card says."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lumitok.errors import LumitokError

PROVENANCE = "training.json"


class Measurement(BaseModel):
    """Numbers measured on pictures that were not trained on."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    values: dict[str, float]
    """Number by its name; with several held-out sets ``SET/NAME``."""
    protocol: str
    """How they were made, in words."""
    step: int
    """Training step of the weights that were measured."""


class Provenance(BaseModel):
    """What trained a tokenizer; names alone, no path of the machine that did."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    recipe: str
    """Name of the recipe, or of its file."""
    stages: list[str]
    """Names of the recipe's stages."""
    started_from: str = ""
    """Name of the folder whose weights it began with; empty: random weights."""
    data: str
    """Name of the folder or zip of pictures."""
    pictures: int
    """How many of them were trained on."""
    left_out: dict[str, int] = {}
    """Why others were not, and how many."""
    step: int
    """Training steps done."""
    images: int
    """Images seen, one seen twice counted twice, those of the runs it started from included."""
    held_out: dict[str, int] = {}
    """Names of the held-out sets, and how many pictures of each are measured."""
    measured: Measurement | None = None
    """The last measurement of the run."""
    lumitok: str
    """Version that trained it."""


def read_provenance(folder: Path) -> Provenance | None:
    """Read what trained the tokenizer in a folder; None where nothing was written.

    Raises:
        LumitokError: the file is damaged.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(step) for step in fault["loc"])
        raise LumitokError(
            f"{path} is damaged: {where + ': ' if where else ''}{fault['msg']}; without the file the "
            "tokenizer opens, and its origin is not known"
        ) from None


def write_provenance(provenance: Provenance | None, folder: Path) -> None:
    """Write it into a tokenizer's folder; None takes away what another left there."""
    path = folder / PROVENANCE
    if provenance is None:
        path.unlink(missing_ok=True)
    else:
        text = json.dumps(provenance.model_dump(mode="json"), indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
