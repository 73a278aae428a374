"""The model of a checkpoint, for recipes that begin with one: ``model: init``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumitok.errors import LumitokError

INIT = "init"
"""In a recipe, in the place of a model: the model of the checkpoint that ``init`` names."""
STATISTICS = ("latents_mean", "latents_std", "latents_count")
"""What a tokenizer's config says beyond its model: true of the old weights, measured anew for others."""
ENCODER_WEIGHTS = "encoder.safetensors"
"""The frozen encoder's weights, where a tokenizer's folder has them."""


def model_of(init: str) -> dict[str, Any]:
    """Read the model of a run, a checkpoint or a tokenizer's folder, as a recipe writes it.

    A frozen encoder that lies in the folder is named as its ``weights``.

    Raises:
        LumitokError: there is no such folder, or no tokenizer in it that can be read.
    """
    folder = Path(init).expanduser()
    saved = sorted(p for p in (folder / "checkpoints").glob("step-*") if p.suffix != ".partial")
    places = (folder, folder / "tokenizer", *(p / "tokenizer" for p in reversed(saved)))
    opened = next((place for place in places if (place / "config.json").is_file()), None)
    if opened is None:
        raise LumitokError(
            f"init: '{init}' holds no tokenizer whose model could be taken; name a run, a checkpoint or a "
            "tokenizer's folder"
        )
    model = read_model(opened)
    if (opened / ENCODER_WEIGHTS).is_file() and isinstance(model.get("encoder"), dict):
        model["encoder"] = {**model["encoder"], "weights": str(opened / ENCODER_WEIGHTS)}
    return model


def read_model(folder: Path) -> dict[str, Any]:
    """Read the model that a tokenizer's folder holds, without the statistics of its latent.

    Raises:
        LumitokError: its ``config.json`` is damaged, or is not a tokenizer's.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LumitokError(f"init: {path} is damaged: {error}") from None
    if not isinstance(config, dict) or "type" not in config:
        raise LumitokError(f"init: {path} does not describe a tokenizer of lumitok")
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in STATISTICS}
