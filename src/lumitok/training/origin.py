"""Beginning a run with the weights of another: the stages of a paper as runs of their own, or fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from lumitok.config import load_recipe
from lumitok.errors import LumitokError
from lumitok.foundation import trained_state
from lumitok.tokenizers import Tokenizer
from lumitok.tokenizers.base import WEIGHTS, find_tokenizer
from lumitok.training.adversaries import Discriminators
from lumitok.training.checkpoint import (
    Place,
    checkpoints,
    load_place,
    load_tensors,
    load_trained_state,
)

# Parts that one of two stages may lack: the VF head falls away when its loss does.
_OPTIONAL = ("vf_head.",)


def take_over(
    start: str, tokenizer: Tokenizer, discriminators: Discriminators | None
) -> tuple[Place, dict[str, Tensor], str]:
    """Fill the networks with the weights of a run, a checkpoint or a tokenizer's folder.

    Generator, average and discriminators carry over, and the count of images goes on; optimizers start
    anew. A tokenizer's folder has averaged weights only: they are generator and average, and
    discriminators start anew.

    Returns:
        The place to begin at, the average, and half a sentence that says what was taken.

    Raises:
        LumitokError: there is no such folder, or its weights or its encoder do not fit.
    """
    folder = Path(start).expanduser()
    if not folder.is_dir():
        raise LumitokError(
            f"start: there is no folder '{start}'; train the recipe before this one first, or name a run, a "
            "checkpoint or a tokenizer with start=FOLDER"
        )
    found = checkpoints(folder)
    source = found[-1] if found else folder
    if found:
        _check_finished(folder, source)
    opened = find_tokenizer(source)
    _check_encoder(tokenizer, opened)
    device = tokenizer.device
    saved = source / "training"
    if not saved.is_dir():
        state = load_tensors(opened / WEIGHTS, device)
        load_trained_state(tokenizer, state, opened, new=_OPTIONAL)
        average = {name: t.detach().clone().float() for name, t in trained_state(tokenizer).items()}
        return Place(), average, f"starting from the tokenizer {opened}"
    load_trained_state(
        tokenizer, load_tensors(saved / "generator.safetensors", device), source, new=_OPTIONAL
    )
    average = trained_state(tokenizer) | load_tensors(saved / "ema.safetensors", device)
    taken = "generator and average"
    judges = saved / "discriminator.safetensors"
    if discriminators is not None and judges.is_file():
        state = load_tensors(judges, device)
        shared = {name for name, _ in discriminators.named_children()} & {key.split(".")[0] for key in state}
        others = {name.split(".")[0] for name in (*state, *trained_state(discriminators))} - shared
        load_trained_state(discriminators, state, source, new=tuple(f"{name}." for name in others))
        taken += "".join(f", {name} discriminator" for name in sorted(shared))
    before = load_place(saved)
    place = Place(
        images=before.images,
        images_before=before.images,
        stages_before=before.stages_before + before.stage + 1,
        averaged=before.averaged,
    )
    return place, average, f"starting from {source} ({taken}; {before.images} images seen)"


def _check_finished(run: Path, last: Path) -> None:
    """Raise where a run has stages or steps to go."""
    stages, place = load_recipe(str(last / "recipe.yaml")).stages, load_place(last / "training")
    steps = [stage.images // stage.batch_size for stage in stages]
    if place.step < sum(steps):
        raise LumitokError(
            f"start: the run {run} is at step {place.step} of {sum(steps)}; finish it with --resume, or name "
            f"the checkpoint to begin with, start={last}"
        )


def _check_encoder(tokenizer: Tokenizer, opened: Path) -> None:
    """Raise where the weights were trained on another frozen encoder."""
    if tokenizer.frozen is None:
        return
    theirs = json.loads((opened / "config.json").read_text()).get("encoder", {}).get("sha256")
    ours = tokenizer.frozen.weights_hash()
    if theirs is not None and theirs != ours:
        raise LumitokError(
            f"start: {opened} was trained on an encoder with the hash {theirs[:12]}, and "
            f"'{tokenizer.settings.encoder.name}' here has {ours[:12]}; name the same encoder and weights"
        )
