"""What lies beside a network's weights: of a run or a checkpoint its recipe, of a pipeline its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lumitok.config import (
    DiffusionRecipe,
    EndToEndRecipe,
    SamplingConfig,
    first_fault,
    load_any,
    load_diffusion_recipe,
)
from lumitok.diffusion import DiffusionNetwork
from lumitok.errors import LumitokError
from lumitok.tokenizers import Tokenizer

INDEX = "model_index.json"
"""The file that makes a folder a pipeline of diffusers."""


def changed_sampling(sampling: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """Sampling settings with changes; those that are None change nothing, but for ``autoguidance``.

    Raises:
        LumitokError: a value does not fit, or there is no such setting.
    """
    given = {k: v for k, v in changes.items() if v is not None or k == "autoguidance"}
    try:
        return SamplingConfig.model_validate({**sampling.model_dump(), **given})
    except ValidationError as error:
        raise LumitokError(f"sampling: {first_fault(error, SamplingConfig)}") from None


def asked_sampling(sampling: SamplingConfig, asked: Mapping[str, Any]) -> SamplingConfig:
    """As :func:`changed_sampling`, for what somebody asks of one drawing.

    Raises:
        LumitokError: as there, or the solver does not heed what is asked for.
    """
    changed = changed_sampling(sampling, asked)
    unheeded = sorted(key for key in changed.unheeded if asked.get(key) is not None)
    if unheeded:
        raise LumitokError(
            f"{changed.solver} chooses its own steps and does not heed {' and '.join(unheeded)}; leave that "
            "out, or name another solver"
        )
    return changed


def sampling_beside(beside: Path | None, recipe: DiffusionRecipe | None) -> SamplingConfig:
    """What a pipeline's folder or a run's recipe says of sampling."""
    index = None if beside is None else beside / INDEX
    if index is None or not index.is_file():
        return SamplingConfig() if recipe is None else recipe.samples.sampling
    try:
        values = json.loads(index.read_text(encoding="utf-8"))["sampling"]
        return changed_sampling(SamplingConfig(), dict(values))
    except (ValueError, TypeError, KeyError) as error:
        raise LumitokError(f"{index} is damaged: {type(error).__name__} {error}") from None


def recipe_beside(beside: Path | None) -> DiffusionRecipe | None:
    """The recipe of the run or the checkpoint, if there is one; of an end-to-end run the network's side."""
    path = None if beside is None else beside / "recipe.yaml"
    if path is None or not path.is_file():
        return None
    recipe = load_any(str(path))
    if isinstance(recipe, EndToEndRecipe):
        return recipe.diffusion(tokenizer=str(path.parent / "tokenizer"))
    return load_diffusion_recipe(str(path))


def tokenizer_beside(beside: Path | None, recipe: DiffusionRecipe | None) -> Tokenizer:
    """The tokenizer of a pipeline's folder, or that which a run's recipe names.

    Raises:
        LumitokError: nothing names one, or it cannot be opened.
    """
    if beside is not None and (beside / INDEX).is_file():
        return Tokenizer.from_pretrained(beside / "tokenizer")
    named = "" if recipe is None else recipe.data.tokenizer
    if not named:
        raise LumitokError(
            "nothing beside this network names the tokenizer of its latents; name it with --tokenizer"
        )
    try:
        return Tokenizer.from_pretrained(named)
    except LumitokError as error:
        raise LumitokError(
            f"the tokenizer that the recipe of {beside} names cannot be opened ({error}); name it with "
            "--tokenizer"
        ) from None


def guide_beside(beside: Path | None, sampling: SamplingConfig) -> DiffusionNetwork | None:
    """The network of autoguidance: that which is named, else that of a pipeline's folder."""
    if sampling.autoguidance:
        return DiffusionNetwork.from_pretrained(Path(sampling.autoguidance).expanduser())
    if beside is None or not (beside / INDEX).is_file() or not (beside / "guide").is_dir():
        return None
    return DiffusionNetwork.from_pretrained(beside / "guide")
