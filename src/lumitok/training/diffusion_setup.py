"""Setting a diffusion run up: its network, its latents, and where it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lumitok.config import DiffusionRecipe, SamplesConfig, save_recipe
from lumitok.config.networks import AnyNetwork
from lumitok.data import Pictures, open_pictures
from lumitok.data.latent_store import LatentStore, open_latent_store
from lumitok.data.latents import LatentOrigin
from lumitok.diffusion.base import DiffusionNetwork, build_network, find_network
from lumitok.errors import LumitokError, some
from lumitok.foundation import FoundationEncoder
from lumitok.nn.folders import WEIGHTS
from lumitok.tokenizers import Tokenizer
from lumitok.training.begin import Changeable, check_finished, start_accelerator, start_trackers, take_up
from lumitok.training.checkpoint import (
    Place,
    check_identity,
    checkpoints,
    load_place,
    load_tensors,
    load_trained_state,
)
from lumitok.training.ema import EMA
from lumitok.training.guards import Guard
from lumitok.training.seeds import derive_seed

NETWORK = "network.safetensors"
_FREE = "log_every checkpoint_every keep keep_every skip_not_finite tracker compile"
CHANGEABLE = Changeable(
    free={
        "training": set(_FREE.split()),
        "samples": {"every", "count", "classes", "seed", "sampling"},
        "data": {"workers", "latents", "tokenizer", "pictures"},
    },
    mended={"training": {"precision"}, "stages": {"lr", "clip_norm"}},
)


@dataclass
class DiffusionRun:
    """All that outlives a stage."""

    recipe: DiffusionRecipe
    folder: Path
    accelerator: Accelerator
    network: DiffusionNetwork
    ema: EMA
    store: LatentStore
    pictures: Pictures | None
    """Those of the store, in its order, where an encoder must see them."""
    encoders: list[FoundationEncoder | None]
    """What each stage aligns to."""
    tokenizer: Tokenizer | None
    """It decodes the samples."""
    guard: Guard
    place: Place
    taken_up: Path | None
    """The checkpoint to go on from, until its optimizer is read."""
    identity: dict[str, Any]
    """What a checkpoint must find again: the latents and the encoders."""
    began: str
    """Half a sentence for people: what the weights were at the beginning."""

    @property
    def origin(self) -> LatentOrigin:
        """What is kept beside the network's weights of the latents it learns."""
        return LatentOrigin(self.store.spec, tuple(self.store.classes))


def start_diffusion(recipe: DiffusionRecipe, resume: bool) -> DiffusionRun:
    """Build everything and put it where the run begins or is taken up.

    Raises:
        LumitokError: no latents, latents without statistics or of another tokenizer, a network that does not
            fit them, a folder that holds another run.
    """
    training = recipe.training
    folder = Path(recipe.out or f"runs/{recipe.name}")
    if not recipe.data.latents:
        raise LumitokError(
            "this recipe names no latents; make a store with `lumitok encode TOKENIZER PICTURES --out STORE` "
            "and add data.latents=STORE"
        )
    store = open_latent_store(Path(recipe.data.latents))
    store.spec.require_statistics()
    network_config = _fitted(recipe.network, store)
    samples = possible_samples(recipe.samples, network_config)
    recipe = recipe.model_copy(update={"network": network_config, "samples": samples})
    accelerator = start_accelerator(training, folder)
    taken_up, mended = take_up(folder, recipe, resume, CHANGEABLE)
    _check_batches(recipe, accelerator.num_processes)
    torch.manual_seed(derive_seed(training.seed))
    network = build_network(recipe.network).to(accelerator.device)
    encoders = stage_encoders(recipe, accelerator)
    tokenizer = _tokenizer(recipe, store)
    pictures = _pictures(recipe, store) if any(encoders) else None
    identity: dict[str, Any] = {"the latents": store.identity}
    identity |= {f"the encoder {e.name}": e.weights_hash()[:12] for e in encoders if e is not None}
    place, began = Place(), "from random weights"
    average = None
    if taken_up is not None:
        saved = taken_up / "training"
        check_identity(saved, identity)
        place, began = load_place(saved), f"going on from {taken_up}{mended}"
        load_trained_state(network, load_tensors(saved / NETWORK, accelerator.device), taken_up)
        average = load_tensors(saved / "ema.safetensors", accelerator.device)
    elif recipe.init:
        place, average, began = _take_over(recipe.init, network, store)
    if resume and taken_up is None:
        began = f"{began}, as {folder} holds no checkpoint"
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    ema = EMA(network, names, training.ema_half_life, training.ema_ramp, training.ema_decay, ramped=False)
    ema.steps = place.averaged
    if average is not None:
        ema.load(average)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, folder / "recipe.yaml")
    start_trackers(accelerator, training.tracker)
    return DiffusionRun(
        recipe=recipe,
        folder=folder,
        accelerator=accelerator,
        network=network,
        ema=ema,
        store=store,
        pictures=pictures,
        encoders=encoders,
        tokenizer=None if tokenizer is None else tokenizer.to(accelerator.device),
        guard=Guard(folder, accelerator.process_index, training.skip_not_finite, place.skipped),
        place=place,
        taken_up=taken_up,
        identity=identity,
        began=began,
    )


def _fitted(network: AnyNetwork, store: LatentStore) -> AnyNetwork:
    spec = store.spec
    if spec.height != spec.width:
        raise LumitokError(
            f"the latents of {store.path} are {spec.height}x{spec.width}; the networks take squares"
        )
    return fitted(network, spec.channels, spec.height, len(store.classes), f"the latents of {store.path}")


def fitted(network: AnyNetwork, channels: int, side: int, classes: int, source: str) -> AnyNetwork:
    """The network's settings with what the data alone know, where they stand at their defaults.

    Args:
        network: as the recipe has it.
        channels: of the latents.
        side: rows, and columns, of the latents.
        classes: of the pictures; an unconditional network keeps none.
        source: what says so, for the error.

    Raises:
        LumitokError: they were set to something else.
    """
    known = {"in_channels": channels, "input_size": side}
    if network.classes:
        known["classes"] = classes
    for key, value in known.items():
        got = getattr(network, key)
        if got not in (value, type(network).model_fields[key].default):
            raise LumitokError(
                f"network.{key} is {got}, but {source} have {value}; leave the key out, "
                f"or give network.{key}={value}"
            )
    return type(network).model_validate(network.model_dump() | known)


def possible_samples(samples: SamplesConfig, network: AnyNetwork) -> SamplesConfig:
    """The samples as asked for, without guidance where the network knows no classes to lead to."""
    if network.classes or samples.sampling.autoguidance:
        return samples
    sampling = samples.sampling.model_copy(update={"guidance": 1.0, "class_guidance": None})
    return samples.model_copy(update={"sampling": sampling})


def _check_batches(recipe: DiffusionRecipe, world: int) -> None:
    for stage in recipe.stages:
        if stage.batch_size % (world * recipe.training.accumulation):
            raise LumitokError(
                f"stage '{stage.name}': batch_size {stage.batch_size} does not divide among {world} "
                f"processes and {recipe.training.accumulation} accumulated parts"
            )


def stage_encoders(recipe: DiffusionRecipe, accelerator: Accelerator) -> list[FoundationEncoder | None]:
    """The encoder of each stage; stages that name the same share it."""
    found: list[FoundationEncoder | None] = []
    for stage in recipe.stages:
        losses = stage.losses
        wanted = losses.alignment_encoder if losses.alignment > 0 or losses.class_token > 0 else None
        same = next((e for e in found if e is not None and e.config == wanted), None)
        if wanted is not None and same is None:
            same = FoundationEncoder(wanted).to(accelerator.device)
            _check_widths(recipe, same)
        found.append(same)
    return found


def _check_widths(recipe: DiffusionRecipe, encoder: FoundationEncoder) -> None:
    network, width = recipe.network, encoder.channels[-1]
    for key in ("projector.channels", "class_channels"):
        section = network.projector if key.startswith("projector") else network
        got = getattr(section, key.rpartition(".")[2], 0)
        if got and got != width:
            raise LumitokError(
                f"network.{key} is {got}, but the encoder '{encoder.name}' gives {width} channels; "
                f"set network.{key}={width}"
            )


def _tokenizer(recipe: DiffusionRecipe, store: LatentStore) -> Tokenizer | None:
    if not recipe.data.tokenizer:
        return None
    tokenizer = Tokenizer.from_pretrained(recipe.data.tokenizer)
    store.check_tokenizer(tokenizer.latent_fingerprint(), recipe.data.tokenizer)
    return tokenizer


def _pictures(recipe: DiffusionRecipe, store: LatentStore) -> Pictures:
    """The pictures that the store was made from, in its order."""
    if not recipe.data.pictures:
        raise LumitokError(
            "the alignment loss shows the pictures of the store to an encoder; name the folder or zip that "
            "it was made from, data.pictures=FOLDER_OR_ZIP"
        )
    if not store.names:
        raise LumitokError(
            f"the store {store.path} does not know the names of its pictures, so they cannot be shown to an "
            "encoder; make a store with `lumitok encode`"
        )
    pictures = open_pictures(Path(recipe.data.pictures))
    places = {name: index for index, name in enumerate(pictures.names)}
    missing = [name for name in store.names if name not in places]
    if missing:
        raise LumitokError(
            f"{recipe.data.pictures} lacks {len(missing)} pictures of the store {store.path}: "
            f"{some(missing, 3)}; name the folder that it was made from"
        )
    chosen = pictures.subset([places[name] for name in store.names])
    if store.header.few_pictures and chosen.hash_few() != store.header.few_pictures:
        raise LumitokError(
            f"the pictures of {recipe.data.pictures} have the names of those that the store {store.path} was "
            f"made from ('{store.header.pictures}'), but are others; name the folder that it was made from"
        )
    return chosen


def _take_over(
    init: str, network: DiffusionNetwork, store: LatentStore
) -> tuple[Place, dict[str, Tensor], str]:
    """Fill the network with the weights of a run, a checkpoint or a network's folder."""
    folder = Path(init).expanduser()
    if not folder.is_dir():
        raise LumitokError(f"init: there is no folder '{init}'; name a run, a checkpoint or a network")
    found = checkpoints(folder)
    source = found[-1] if found else folder
    opened = find_network(source)
    origin = LatentOrigin.load(opened)
    if origin is not None:
        store.check_tokenizer(origin.spec.tokenizer or "", f"{opened}, which it should go on from,")
    saved = source / "training"
    device = network.device
    if not (saved / NETWORK).is_file():  # An end-to-end run's checkpoint gives its average alone.
        state = load_tensors(opened / WEIGHTS, device)
        load_trained_state(network, state, opened)
        average = {name: p.detach().clone().float() for name, p in network.named_parameters()}
        return Place(), average, f"starting from the network {opened}"
    if folder != source:
        check_finished(folder, source)
    load_trained_state(network, load_tensors(saved / NETWORK, device), source)
    average = load_tensors(saved / "ema.safetensors", device)
    place = load_place(saved).of_next_run()
    return place, average, f"starting from {source} ({place.images} latents seen)"
