"""Setting a run of tokenizer and diffusion network together up, and where it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from lumitok.config import EndToEndRecipe
from lumitok.diffusion.base import DiffusionNetwork, build_network
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.training.begin import Changeable, start_accelerator, take_up
from lumitok.training.checkpoint import check_identity, load_tensors, load_trained_state
from lumitok.training.diffusion_setup import fitted, possible_samples, stage_encoders
from lumitok.training.ema import EMA
from lumitok.training.live_normaliser import LiveNormaliser
from lumitok.training.measure import measure_latents
from lumitok.training.seeds import derive_seed
from lumitok.training.setup import CHANGEABLE as TOKENIZER_CHANGEABLE
from lumitok.training.setup import Run, announce, build_run, open_data

SAVED = "network"
"""Folder in a checkpoint's ``training`` with the network's side."""
CHANGEABLE = Changeable(
    free={
        **TOKENIZER_CHANGEABLE.free,
        "training": TOKENIZER_CHANGEABLE.free["training"] | {"compile"},
        "samples": {"every", "count", "classes", "seed", "sampling"},
    },
    mended={
        **TOKENIZER_CHANGEABLE.mended,
        "stages": TOKENIZER_CHANGEABLE.mended["stages"] | {"network_lr"},
    },
)


@dataclass(kw_only=True)
class EndToEndRun(Run):
    """All that outlives a stage: a tokenizer's run, and the network's side."""

    recipe: EndToEndRecipe
    network: DiffusionNetwork
    network_ema: EMA
    normaliser: LiveNormaliser
    normaliser_ema: EMA
    """The averaged network has learnt latents as the averaged statistics normalise them."""
    encoders: list[FoundationEncoder]
    """What each stage aligns to."""


def start_end_to_end(recipe: EndToEndRecipe, resume: bool) -> EndToEndRun:
    """Build everything and put it where the run begins or is taken up.

    Raises:
        LumitokError: no pictures, a network that does not fit them or the tokenizer, a folder that holds
            another run.
    """
    training, model = recipe.training, recipe.model
    folder = Path(recipe.out or f"runs/{recipe.name}")
    accelerator = start_accelerator(training, folder)
    data = open_data(recipe)
    side = model.image_size // model.downsampling
    classes = len(data.pictures.classes)
    network_config = fitted(
        recipe.network, model.latent_channels, side, classes, "this recipe's tokenizer and pictures"
    )
    samples = possible_samples(recipe.samples, network_config)
    recipe = recipe.model_copy(update={"network": network_config, "samples": samples})
    taken_up, mended = take_up(folder, recipe, resume, CHANGEABLE)
    base = build_run(recipe, accelerator, taken_up, mended, resume=resume, data=data)
    encoders = stage_encoders(recipe.diffusion(), accelerator)
    identity = {f"the encoder {e.name}": e.weights_hash()[:12] for e in encoders if e is not None}
    torch.manual_seed(derive_seed(training.seed, 2))
    network = build_network(network_config).to(accelerator.device)
    normaliser = LiveNormaliser(model.latent_channels, recipe.normaliser_momentum).to(accelerator.device)
    if taken_up is not None:
        saved = taken_up / "training" / SAVED
        check_identity(saved.parent, identity)
        load_trained_state(network, load_tensors(saved / "weights.safetensors", accelerator.device), taken_up)
        normaliser.load_state_dict(load_tensors(saved / "normaliser.safetensors", accelerator.device))
    else:
        _measure(base, recipe, normaliser)
        base.began += "; the network from random weights"
    base.identity |= identity
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    run = EndToEndRun(
        **vars(base),
        network=network,
        network_ema=_average(network, names, recipe),
        normaliser=normaliser,
        normaliser_ema=_average(normaliser, [name for name, _ in normaliser.named_buffers()], recipe),
        encoders=[encoder for encoder in encoders if encoder is not None],
    )
    if taken_up is not None:
        run.network_ema.load(load_tensors(saved / "ema.safetensors", accelerator.device))
        run.normaliser_ema.load(load_tensors(saved / "normaliser_ema.safetensors", accelerator.device))
    announce(run)
    return run


def _average(module: torch.nn.Module, names: list[str], recipe: EndToEndRecipe) -> EMA:
    training = recipe.training
    return EMA(
        module,
        names,
        training.ema_half_life,
        training.ema_ramp,
        training.network_ema_decay,
        ramped=False,
    )


def _measure(base: Run, recipe: EndToEndRecipe, normaliser: LiveNormaliser) -> None:
    """Let the live statistics set out from those of the tokenizer to begin with, alike on all processes."""
    accelerator: Accelerator = base.accelerator
    measured = torch.zeros(2, recipe.model.latent_channels)
    if accelerator.is_main_process:
        base.tokenizer.eval()
        with accelerator.autocast():
            mean, std, _ = measure_latents(
                base.tokenizer,
                base.pictures,
                batch_size=32,
                limit=recipe.training.statistics_images,
                seed=recipe.training.seed,
            )
        base.tokenizer.train()
        measured = torch.stack([mean, std])
    mean, std = accelerator.reduce(measured.to(accelerator.device), reduction="sum")
    if not bool(torch.isfinite(torch.stack([mean, std])).all()):
        raise LumitokError(
            "the latents of the tokenizer to begin with are not finite; name a trained one with init="
        )
    normaliser.set_statistics(mean, std)
