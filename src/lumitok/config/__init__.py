"""The typed form of a recipe.

A recipe is YAML: it names a model, its data, its discriminators and the stages of its training.
Every key is a field of a class in this room, with its meaning and its unit; an unknown key or a wrong
value is a :class:`~lumitok.errors.LumitokError` that names the key, the nearest right one and the file.

Nothing here imports torch or a model, so that the command line stays quick.
"""

from __future__ import annotations

from lumitok.config.diffusion import (
    DiffusionLossConfig,
    DiffusionRecipe,
    DiffusionStageConfig,
    DiffusionTrainingConfig,
    LatentDataConfig,
    SamplesConfig,
    TimesConfig,
)
from lumitok.config.end_to_end import EndToEndRecipe, EndToEndStageConfig, EndToEndTrainingConfig
from lumitok.config.models import (
    BLOCKS,
    AlignTokConfig,
    EncoderConfig,
    FrozenLDMConfig,
    LDMConfig,
    LoRAConfig,
    ModelConfig,
    RAEConfig,
    TokenizerConfig,
    VFMVAEConfig,
    block_count,
)
from lumitok.config.picture_recipe import PictureRecipe
from lumitok.config.recipe import (
    RECIPES,
    AnyRecipe,
    Recipe,
    dump_recipe,
    first_fault,
    load_any,
    load_diffusion_recipe,
    load_recipe,
    recipe_names,
    recipe_path,
    save_recipe,
)
from lumitok.config.sampling import SamplingConfig
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
    "AnyRecipe",
    "DataConfig",
    "DiffusionLossConfig",
    "DiffusionRecipe",
    "DiffusionStageConfig",
    "DiffusionTrainingConfig",
    "DiscriminatorConfig",
    "EncoderConfig",
    "EndToEndRecipe",
    "EndToEndStageConfig",
    "EndToEndTrainingConfig",
    "EquivarianceConfig",
    "FrozenLDMConfig",
    "LDMConfig",
    "LatentDataConfig",
    "LoRAConfig",
    "LossConfig",
    "ModelConfig",
    "PatchDiscriminatorConfig",
    "PictureRecipe",
    "RAEConfig",
    "Recipe",
    "SamplesConfig",
    "SamplingConfig",
    "Section",
    "StageConfig",
    "TimesConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "VFMVAEConfig",
    "block_count",
    "dump_recipe",
    "first_fault",
    "load_any",
    "load_diffusion_recipe",
    "load_recipe",
    "recipe_names",
    "recipe_path",
    "save_recipe",
]
