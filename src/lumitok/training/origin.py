"""Beginning a run with the weights of another: the stages of a paper as runs of their own, or fine-tuning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from lumitok.config import ModelConfig, PictureRecipe, VFMVAEConfig, first_fault
from lumitok.config.models import block_count
from lumitok.config.origin import read_model
from lumitok.config.section import by_dotted_keys
from lumitok.errors import LumitokError
from lumitok.foundation import trained_state
from lumitok.nn.folders import WEIGHTS
from lumitok.tokenizers import Tokenizer
from lumitok.tokenizers.base import find_tokenizer
from lumitok.training.adversaries import Discriminators
from lumitok.training.begin import check_finished
from lumitok.training.checkpoint import (
    DISCRIMINATOR,
    IDENTITY,
    Place,
    checkpoints,
    load_place,
    load_tensors,
    load_trained_state,
)

# Parts that one of two stages may lack: the VF head falls away when its loss does.
_OPTIONAL = ("vf_head.",)
# Settings of a model that may differ: they set its first weights, its training, or where an encoder's lie.
_FREE = {"image_size", "vf_head", "initial_logvar", "layer_scale", "encoder.weights", "encoder.sha256"}
_FREE |= {"noise", "latents_mean", "latents_std", "latents_count"}
_SHOWN = 3


@dataclass(frozen=True)
class Origin:
    """What a run begins with."""

    folder: Path
    """A checkpoint, or the tokenizer's folder itself."""
    tokenizer: Path
    """The tokenizer's folder."""
    resized: str
    """Half a sentence, where the pictures have another size than they had."""


def open_origin(recipe: PictureRecipe) -> Origin:
    """Find what ``init`` names, and see that it is of the recipe's model.

    Raises:
        LumitokError: there is no such folder, no tokenizer in it, a run that is not at its end, or a
            tokenizer of another model.
    """
    folder = Path(recipe.init).expanduser()
    if not folder.is_dir():
        raise LumitokError(
            f"init: there is no folder '{recipe.init}'; train the recipe before this one first, or name a "
            "run, a checkpoint or a tokenizer with init=FOLDER"
        )
    found = checkpoints(folder)
    source = found[-1] if found else folder
    if found:
        check_finished(folder, source)
    opened = find_tokenizer(source)
    theirs = _read_model(opened)
    _check_model(theirs, recipe.model, opened)
    old, new = theirs.image_size, recipe.model.image_size
    return Origin(source, opened, f"; trained at {old} px, now at {new}" if old != new else "")


def take_over(
    origin: Origin, tokenizer: Tokenizer, discriminators: Discriminators | None
) -> tuple[Place, dict[str, Tensor], str]:
    """Fill the networks with the weights of a run, a checkpoint or a tokenizer's folder.

    Generator, average and discriminators carry over, and the count of images goes on; optimizers start
    anew. A tokenizer's folder has averaged weights only: they are generator and average, and
    discriminators start anew, but for those that an import has put there.

    Returns:
        The place to begin at, the average, and half a sentence that says what was taken.

    Raises:
        LumitokError: the weights or the encoder do not fit.
    """
    source, opened = origin.folder, origin.tokenizer
    _check_encoder(tokenizer, opened)
    device = tokenizer.device
    saved = source / "training"
    if source == opened or not saved.is_dir():
        state = load_tensors(opened / WEIGHTS, device)
        load_trained_state(tokenizer, state, opened, new=_OPTIONAL)
        average = {name: t.detach().clone().float() for name, t in trained_state(tokenizer).items()}
        judges = _take_discriminators(opened / "training", discriminators, device)
        judged = "" if discriminators is None else f", with {' and '.join(judges) or 'new discriminators'}"
        return Place(), average, f"starting from the tokenizer {opened}{judged}{origin.resized}"
    load_trained_state(
        tokenizer, load_tensors(saved / "generator.safetensors", device), source, new=_OPTIONAL
    )
    average = trained_state(tokenizer) | load_tensors(saved / "ema.safetensors", device)
    taken = ["generator", "average", *_take_discriminators(saved, discriminators, device)]
    place = load_place(saved).of_next_run()
    said = f"starting from {source} ({', '.join(taken)}; {place.images} images seen){origin.resized}"
    return place, average, said


def _take_discriminators(
    saved: Path, discriminators: Discriminators | None, device: torch.device
) -> list[str]:
    """Fill those discriminators that the checkpoint has too, and name them."""
    path = saved / DISCRIMINATOR
    if discriminators is None or not path.is_file():
        return []
    alone = saved.parent / "tokenizer"
    anew = f"from the tokenizer alone, init={alone}" if alone.is_dir() else f"by removing {path}"
    known = json.loads((saved / IDENTITY).read_text()) if (saved / IDENTITY).is_file() else {}
    for name, ours in discriminators.identity().items():
        theirs = known.get(name, ours)  # Older files say less.
        if theirs != ours:
            there, here = (f"of hash {x}" if isinstance(x, str) else str(x) for x in (theirs, ours))
            raise LumitokError(
                f"init: the discriminators of {saved.parent} are not the recipe's: {name}, {there} there and "
                f"{here} here; give the recipe the same, or begin with new ones {anew}"
            )
    state = load_tensors(path, device)
    shared = {name for name, _ in discriminators.named_children()} & {key.split(".")[0] for key in state}
    others = {name.split(".")[0] for name in (*state, *trained_state(discriminators))} - shared
    try:
        load_trained_state(discriminators, state, saved.parent, new=tuple(f"{name}." for name in others))
    except LumitokError as error:
        raise LumitokError(
            f"init: the discriminators of {saved.parent} are not the recipe's ({error}); give the recipe "
            f"theirs, or begin with new ones {anew}"
        ) from None
    return [f"{name} discriminator" for name in sorted(shared)]


# ------------------------------------------------------------------------------------------------
# What fits


def _read_model(opened: Path) -> Any:
    """The model of a tokenizer's folder, with every default."""
    try:
        return TypeAdapter(ModelConfig).validate_python(read_model(opened))
    except ValidationError as error:
        raise LumitokError(f"init: {opened / 'config.json'}: {first_fault(error)}") from None


def _check_model(theirs: Any, ours: Any, opened: Path) -> None:
    """Raise where a network differs, also in what no shape of a weight shows."""
    if theirs.type != ours.type:
        raise LumitokError(
            f"init: {opened} is of the type {theirs.type}, the recipe's model {ours.type}; choose a recipe "
            f"for {theirs.type}, or take the checkpoint's model with model=init"
        )
    if isinstance(ours, VFMVAEConfig) and block_count(theirs.image_size) != block_count(ours.image_size):
        there, here = (f"{m.image_size} px with {block_count(m.image_size)} blocks" for m in (theirs, ours))
        raise LumitokError(
            f"init: {opened} decodes {there}, the recipe's model {here}; a VFM-VAE has as many at every size "
            "from 256 px, and one less for each halving below: choose model.image_size accordingly"
        )
    free = _FREE if theirs.vf_head and ours.vf_head else _FREE | {"vf_channels"}
    whole = ("timm_kwargs",)
    old, new = (by_dotted_keys(model.model_dump(), whole) for model in (theirs, ours))
    different = [key for key in new if key not in free and new[key] != old.get(key)]
    if different:
        told = [f"model.{key} is {old.get(key)} there and {new[key]} here" for key in different[:_SHOWN]]
        more = f"; {len(different) - _SHOWN} more differ" if len(different) > _SHOWN else ""
        raise LumitokError(
            f"init: {opened} is of another model than the recipe's: {'; '.join(told)}{more}. Take the "
            "checkpoint's model with model=init, or change the recipe's"
        )


def _check_encoder(tokenizer: Tokenizer, opened: Path) -> None:
    """Raise where the weights were trained on another frozen encoder."""
    if tokenizer.frozen is None:
        return
    theirs = json.loads((opened / "config.json").read_text()).get("encoder", {}).get("sha256")
    ours = tokenizer.frozen.weights_hash()
    if theirs is not None and theirs != ours:
        raise LumitokError(
            f"init: {opened} was trained on an encoder with the hash {theirs[:12]}, and "
            f"'{tokenizer.settings.encoder.name}' here has {ours[:12]}; name the same encoder and weights"
        )
