"""Setting a run up: its networks, its pictures, and where it begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from lumitok.config import PictureRecipe, Recipe, save_recipe
from lumitok.data import BadPictures, Buckets, Pictures, open_pictures, split_holdout
from lumitok.errors import LumitokError
from lumitok.foundation import frozen_encoders
from lumitok.losses.discriminators.head import VIRTUAL_BATCH
from lumitok.losses.equivariance import check_equivariance
from lumitok.tokenizers import Tokenizer, build_tokenizer
from lumitok.training.adversaries import Discriminators
from lumitok.training.begin import Changeable, start_accelerator, start_trackers, take_up
from lumitok.training.checkpoint import (
    DISCRIMINATOR,
    Best,
    Place,
    check_identity,
    load_best,
    load_place,
    load_tensors,
    load_trained_state,
)
from lumitok.training.ema import EMA
from lumitok.training.guards import Guard
from lumitok.training.mixed_aspect import buckets_hash, fill_buckets, training_sizes
from lumitok.training.objective import GeneratorObjective
from lumitok.training.origin import open_origin, take_over
from lumitok.training.seeds import derive_seed
from lumitok.training.steps import choose_trainable

_FREE_TRAINING = "log_every grid_every validate_every validation_images checkpoint_every keep best"
_FREE_TRAINING += " skip_not_finite statistics_images bundle_encoder tracker"
CHANGEABLE = Changeable(
    free={"training": set(_FREE_TRAINING.split()), "data": {"workers", "bad_share"}},
    mended={"training": {"precision"}, "stages": {"generator_lr", "discriminator_lr", "clip_norm"}},
)
BAD_PICTURES = "bad-pictures.jsonl"


class OpenedData(NamedTuple):
    """A recipe's pictures."""

    pictures: Pictures
    held_out: dict[str, Pictures]
    """By name; not trained on."""
    listed: int
    """How many the training folder lists."""


@dataclass
class Run:
    """All that outlives a stage."""

    recipe: PictureRecipe
    folder: Path
    accelerator: Accelerator
    tokenizer: Tokenizer
    discriminators: Discriminators | None
    objectives: list[GeneratorObjective]
    """One a stage."""
    ema: EMA
    pictures: Pictures
    buckets: Buckets | None
    """Of pictures that keep their aspect ratio: the size that each is brought to."""
    held_out: dict[str, Pictures]
    bad: BadPictures
    guard: Guard
    place: Place
    best: Best | None
    taken_up: Path | None
    """The checkpoint to go on from, until its optimizers are read."""
    identity: dict[str, Any]
    """What a checkpoint must find again: pictures and frozen encoders."""
    began: str
    """Half a sentence for people: what the weights were at the beginning."""
    said: set[tuple[str, str]] = field(default_factory=set)
    """Held-out pictures, set and name, that were said to be unreadable."""


def start_run(recipe: Recipe, resume: bool) -> Run:
    """Build everything and put it where the run begins or is taken up."""
    training = recipe.training
    folder = Path(recipe.out or f"runs/{recipe.name}")
    accelerator = start_accelerator(training, folder)
    taken_up, mended = take_up(folder, recipe, resume, CHANGEABLE)
    run = build_run(recipe, accelerator, taken_up, mended, resume=resume)
    announce(run)
    return run


def announce(run: Run) -> None:
    """Write the resolved recipe into the run's folder, and open the tracker."""
    if run.accelerator.is_main_process:
        run.folder.mkdir(parents=True, exist_ok=True)
        save_recipe(run.recipe, run.folder / "recipe.yaml")
    start_trackers(run.accelerator, run.recipe.training.tracker)


def build_run(
    recipe: PictureRecipe,
    accelerator: Accelerator,
    taken_up: Path | None,
    mended: str,
    *,
    resume: bool,
    data: OpenedData | None = None,
) -> Run:
    """Build the tokenizer's side of a run, and put it where the run begins or is taken up.

    Args:
        recipe: what to train.
        accelerator: the run's.
        taken_up: the checkpoint to go on from, if any.
        mended: half a sentence on what was changed since.
        resume: whether going on was asked for.
        data: the recipe's pictures, where they are open already.
    """
    training = recipe.training
    folder = Path(recipe.out or f"runs/{recipe.name}")
    _check_batches(recipe, accelerator.num_processes)
    origin = open_origin(recipe) if recipe.init and taken_up is None else None
    pictures, held_out, listed = data or open_data(recipe)
    torch.manual_seed(derive_seed(training.seed))
    # An encoder that is trained lies in the checkpoint, so its pretrained weights need not be at hand.
    given = recipe.model.type == "aligntok" and (origin is not None or taken_up is not None)
    tokenizer = build_tokenizer(recipe.model, load_weights=not given).to(accelerator.device)
    # Channels last is the layout that bfloat16 kernels want, and 1x1 convolutions on any processor.
    tokenizer.to(memory_format=torch.channels_last)
    discriminators = Discriminators.of(recipe, accelerator.device)
    # Every stage's losses and patterns are looked at now, so that no later stage stops for want of a file.
    objectives: list[GeneratorObjective] = []
    for stage in recipe.stages:
        objectives.append(GeneratorObjective(stage.losses, objectives).to(accelerator.device))
    sizes = training_sizes(recipe, tokenizer, objectives)
    _check_transforms(recipe, tokenizer, {side for size in sizes for side in size})
    _check_alignment(recipe, tokenizer, objectives)
    for stage in recipe.stages:
        choose_trainable(tokenizer, stage)
    place, began = Place(), "from random weights"
    average = None
    buckets = None
    if recipe.data.preparation == "keep-aspect":
        workers = recipe.data.workers
        pictures, buckets = fill_buckets(
            pictures, sizes, accelerator, folder, workers=workers, resume=taken_up is not None
        )
    identity = _identity(pictures, tokenizer, discriminators)
    if buckets is not None:
        identity["the pictures' aspect ratios"] = f"in buckets of hash {buckets_hash(buckets)[:12]}"
    if taken_up is not None:
        saved = taken_up / "training"
        check_identity(saved, identity)
        place, began = load_place(saved), f"going on from {taken_up}{mended}"
        generator = load_tensors(saved / "generator.safetensors", accelerator.device)
        load_trained_state(tokenizer, generator, taken_up)
        if discriminators is not None:
            state = load_tensors(saved / DISCRIMINATOR, accelerator.device)
            load_trained_state(discriminators, state, taken_up)
        average = load_tensors(saved / "ema.safetensors", accelerator.device)
    elif origin is not None:
        place, average, began = take_over(origin, tokenizer, discriminators)
    if resume and taken_up is None:
        began = f"{began}, as {folder} holds no checkpoint"
    ema = EMA(
        tokenizer,
        tokenizer.trainable_names(),
        training.ema_half_life,
        training.ema_ramp,
        training.ema_decay,
    )
    ema.steps = place.averaged
    if average is not None:
        ema.load(average)
    rank = accelerator.process_index
    main = accelerator.is_main_process
    bad = BadPictures(listed, recipe.data.bad_share, folder / BAD_PICTURES, write=main)
    return Run(
        recipe=recipe,
        folder=folder,
        accelerator=accelerator,
        tokenizer=tokenizer,
        discriminators=discriminators,
        objectives=objectives,
        ema=ema,
        pictures=pictures,
        buckets=buckets,
        held_out=held_out,
        bad=bad,
        guard=Guard(folder, rank, training.skip_not_finite, place.skipped),
        place=place,
        best=load_best(folder),
        taken_up=taken_up,
        identity=identity,
        began=began,
    )


def _identity(
    pictures: Pictures, tokenizer: Tokenizer, discriminators: Discriminators | None
) -> dict[str, Any]:
    """What must be the same when the run is taken up again."""
    names = hashlib.sha256("\n".join(pictures.names).encode("utf-8", "surrogateescape")).hexdigest()
    found = {"the pictures": f"{len(pictures)} with names of hash {names[:12]}"}
    for name, part in frozen_encoders(tokenizer).items():
        found[f"the encoder {name}"] = part.weights_hash()[:12]
    return found if discriminators is None else found | discriminators.identity()


def _check_batches(recipe: PictureRecipe, world: int) -> None:
    """See that every stage's batch divides as it must."""
    parts = recipe.training.accumulation
    for stage in recipe.stages:
        share, rest = divmod(stage.batch_size, parts * world)
        if rest:
            raise LumitokError(
                f"stage '{stage.name}': batch_size {stage.batch_size} does not divide among {world} "
                f"processes and {parts} accumulated parts"
            )
        patch = recipe.patch_discriminator
        local = stage.losses.gan > 0
        local |= stage.losses.patchgan > 0 and patch is not None and patch.norm == "local"
        if local and share % -(-share // VIRTUAL_BATCH):
            raise LumitokError(
                f"stage '{stage.name}': the discriminators normalise in equal groups of at most "
                f"{VIRTUAL_BATCH} pictures, and {share} pictures (a process, a part) do not divide so; make "
                f"it a multiple of {VIRTUAL_BATCH}"
            )


def _check_transforms(recipe: PictureRecipe, tokenizer: Tokenizer, sides: set[int]) -> None:
    """See that every drawn size is one that the tokenizer can take, whatever side pictures have."""
    for stage in recipe.stages:
        if stage.equivariance is None:
            continue
        for side in sorted(sides):
            latent = side // recipe.model.downsampling
            check_equivariance(stage.equivariance, side, tokenizer.encoded_multiple, latent)


def _check_alignment(
    recipe: PictureRecipe, tokenizer: Tokenizer, objectives: list[GeneratorObjective]
) -> None:
    """See that the VF head is as wide as the encoder that each stage compares with."""
    head = getattr(tokenizer, "vf_head", None)
    for stage, objective in zip(recipe.stages, objectives, strict=True):
        encoder = objective.vf_encoder
        if encoder is not None and head is not None and encoder.channels[-1] != head.out_channels:
            raise LumitokError(
                f"stage '{stage.name}': losses.vf_encoder '{encoder.name}' has {encoder.channels[-1]} "
                f"channels, the tokenizer's VF head {head.out_channels}; set model.vf_channels to "
                f"{encoder.channels[-1]}"
            )


def open_data(recipe: PictureRecipe) -> OpenedData:
    """Open a recipe's pictures."""
    data = recipe.data
    if not data.train:
        raise LumitokError("this recipe names no pictures; add data.train=FOLDER_OR_ZIP")
    pictures = open_pictures(Path(data.train), min_side=data.min_side)
    listed = len(pictures) + len(pictures.unreadable)
    held_out: dict[str, Pictures] = {}
    if isinstance(data.validation, dict):
        held_out = {name: open_pictures(Path(path)) for name, path in data.validation.items()}
    elif data.validation:
        held_out = {"": open_pictures(Path(data.validation))}
    elif data.holdout:
        pictures, rest = split_holdout(pictures, data.holdout, data.holdout_seed)
        held_out = {"": rest}
    return OpenedData(pictures, held_out, listed)
