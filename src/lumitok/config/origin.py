"""The model of a checkpoint, for recipes that begin with one: ``model: init``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumitok.config.saved import CONFIG, ENCODER_WEIGHTS, look_for_saved, read_config
from lumitok.errors import LumitokError

INIT = "init"
"""In a recipe, in the place of a model: the model of the checkpoint that ``init`` names."""
STATISTICS = ("latents_mean", "latents_std", "latents_count")
"""What a tokenizer's config says beyond its model: true of the old weights, measured anew for others."""


def model_of(init: str) -> dict[str, Any]:
    """Read the model of a run, a checkpoint or a tokenizer's folder, as a recipe writes it.

    A frozen encoder that lies in the folder is named as its ``weights``.

    Raises:
        LumitokError: there is no such folder, or no tokenizer in it that can be read.
    """
    opened = look_for_saved(Path(init).expanduser(), "tokenizer")
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
    try:
        config = read_config(folder)
    except LumitokError as error:
        raise LumitokError(f"init: {error}") from None
    if "type" not in config:
        raise LumitokError(f"init: {folder / CONFIG} does not describe a tokenizer of lumitok")
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in STATISTICS}
