"""What a tokenizer is, in numbers: parameters part by part, the latent's shape, the cost in MACs.

It is built on the meta device, so no weights are read and none need to be at hand.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lumitok.config import ModelConfig, Recipe, load_any, load_recipe, recipe_names
from lumitok.errors import LumitokError, nearest
from lumitok.tokenizers import Tokenizer, build_tokenizer

HOW = (
    "Trainable: all of the tokenizer outside the frozen encoder. GMACs: 10^9 multiply-accumulates of the "
    "matrix products and convolutions in one picture, counted by torch.utils.flop_counter (half of its "
    "operations); encode includes the frozen encoder."
)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; the generator's side and the discriminator's are counted apart."""

    trainable: int
    """What the tokenizer trains: all of it outside the frozen encoder, the discriminator not included."""
    frozen: int
    """The frozen encoder."""
    discriminator: int | None
    """What the discriminators train; None where none is described."""
    discriminator_frozen: int | None
    """The discriminator's frozen encoder."""
    parts: dict[str, int]
    """``trainable``, part by part."""


@dataclass(frozen=True)
class Stage:
    """What a stage of the recipe trains of the tokenizer."""

    name: str
    images: int
    trainable: int
    """Parameters that its patterns choose."""


@dataclass(frozen=True)
class Information:
    """What ``lumitok info`` prints."""

    name: str
    model: str
    image_size: int
    """Side in pixels of the pictures that the latent's shape and the cost are for."""
    downsampling: int
    latent: dict[str, int]
    """``channels``, ``height``, ``width``."""
    parameters: Parameters
    gmacs: dict[str, float]
    """``encode`` and ``decode``: 10^9 multiply-accumulates for one picture."""
    stages: list[Stage]
    """The recipe's; empty where none is at hand."""
    how: str = HOW
    """How the numbers were made."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain dicts, as ``lumitok info --json`` prints them."""
        return asdict(self)


def inform(name: str) -> Information:
    """Describe a recipe's or a checkpoint's tokenizer.

    Args:
        name: a shipped recipe's name, a YAML file, or the folder of a run, a checkpoint or a tokenizer.

    Raises:
        LumitokError: there is neither a recipe nor a checkpoint of that name.
    """
    model, recipe = _configs(name)
    with torch.device("meta"):
        tokenizer = build_tokenizer(model, load_weights=False)
        judges = nn.ModuleList([] if recipe is None else _discriminators(recipe))
    tokenizer.eval()
    parts = tokenizer.parts()
    side = model.image_size // model.downsampling
    return Information(
        name=name,
        model=model.type,
        image_size=model.image_size,
        downsampling=model.downsampling,
        latent={"channels": model.latent_channels, "height": side, "width": side},
        parameters=Parameters(
            trainable=sum(parts.values()),
            frozen=0 if tokenizer.frozen is None else _count(tokenizer.frozen, trained=False),
            discriminator=_count(judges, trained=True) if len(judges) else None,
            discriminator_frozen=_count(judges, trained=False) if len(judges) else None,
            parts=parts,
        ),
        gmacs=_gmacs(tokenizer, model),
        stages=[] if recipe is None else _stages(tokenizer, recipe),
    )


def _configs(name: str) -> tuple[ModelConfig, Recipe | None]:
    """Find the model's config and, where it is at hand, the recipe."""
    if name in recipe_names() or name.endswith((".yaml", ".yml")):
        recipe = load_recipe(name)
        return recipe.model, recipe
    if not Path(name).is_dir():
        raise LumitokError(
            f"there is no recipe and no checkpoint '{name}'{nearest(name, recipe_names())} "
            "(`lumitok recipes` lists the recipes)"
        )
    from lumitok.training import find_tokenizer

    folder = find_tokenizer(name)
    model = model_of(folder / "config.json")
    beside = folder.parent / "recipe.yaml"  # A tokenizer copied elsewhere has lost its recipe.
    found = load_any(str(beside)) if beside.is_file() else None
    return model, found if isinstance(found, Recipe) else None


def model_of(path: Path) -> ModelConfig:
    """What a tokenizer's ``config.json`` says it is.

    Raises:
        LumitokError: the file does not describe a tokenizer.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        own = {key: value for key, value in values.items() if not key.startswith("_")}
        model: ModelConfig = TypeAdapter(ModelConfig).validate_python(own)
    except (ValueError, AttributeError, ValidationError) as error:
        raise LumitokError(f"{path} does not describe a tokenizer: {' '.join(str(error).split())}") from None
    return model


def _discriminators(recipe: Recipe) -> list[nn.Module]:
    from lumitok.losses.discriminators.foundation import FoundationDiscriminator
    from lumitok.losses.discriminators.patch import PatchDiscriminator

    found: list[nn.Module] = []
    if recipe.discriminator is not None:
        found.append(FoundationDiscriminator(recipe.discriminator, load_weights=False))
    if recipe.patch_discriminator is not None:
        found.append(PatchDiscriminator(recipe.patch_discriminator))
    return found


def _stages(tokenizer: Tokenizer, recipe: Recipe) -> list[Stage]:
    from lumitok.training.steps import choose_trainable

    return [
        Stage(stage.name, stage.images, sum(p.numel() for p in choose_trainable(tokenizer, stage)))
        for stage in recipe.stages
    ]


def _count(module: nn.Module, *, trained: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad == trained)


def _gmacs(tokenizer: Tokenizer, model: ModelConfig) -> dict[str, float]:
    side = model.image_size // model.downsampling
    picture = torch.empty(1, 3, model.image_size, model.image_size, device="meta")
    latent = torch.empty(1, model.latent_channels, side, side, device="meta")
    counts = {}
    for verb, run, argument in (("encode", tokenizer.encode, picture), ("decode", tokenizer.decode, latent)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(argument)
        counts[verb] = counter.get_total_flops() / 2 / 1e9
    return counts
