"""The typed form of a recipe.

A recipe is YAML: it names a model, its data, its discriminators and the stages of its training.
Every key is a field of a class in this room, with its meaning and its unit; an unknown key or a wrong
value is a :class:`~lumitok.errors.LumitokError` that names the key, the nearest right one and the file.

Nothing here imports torch or a model, so that the command line stays quick.
"""

from __future__ import annotations

from lumitok.config.models import (
    BLOCKS,
    AlignTokConfig,
    EncoderConfig,
    FrozenLDMConfig,
    LDMConfig,
    LoRAConfig,
    ModelConfig,
    TokenizerConfig,
    VFMVAEConfig,
    block_count,
)
from lumitok.config.recipe import (
    RECIPES,
    Recipe,
    dump_recipe,
    first_fault,
    load_recipe,
    recipe_names,
    recipe_path,
    save_recipe,
)
from lumitok.config.section import Section
from lumitok.config.training import (
    DataConfig,
    DiscriminatorConfig,
    EquivarianceConfig,
    LossConfig,
    PatchDiscriminatorConfig,
    StageConfig,
    TrainingConfig,
)

__all__ = [
    "BLOCKS",
    "RECIPES",
    "AlignTokConfig",
    "DataConfig",
    "DiscriminatorConfig",
    "EncoderConfig",
    "EquivarianceConfig",
    "FrozenLDMConfig",
    "LDMConfig",
    "LoRAConfig",
    "LossConfig",
    "ModelConfig",
    "PatchDiscriminatorConfig",
    "Recipe",
    "Section",
    "StageConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "VFMVAEConfig",
    "block_count",
    "dump_recipe",
    "first_fault",
    "load_recipe",
    "recipe_names",
    "recipe_path",
    "save_recipe",
]
