"""lumitok: image tokenizers for latent diffusion.

    from lumitok import Tokenizer
    tokenizer = Tokenizer.from_pretrained("runs/demo/run/tokenizer")

Importing the package loads neither torch nor a model; the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumitok.data.latents import LatentSpec
    from lumitok.errors import LumitokError
    from lumitok.foundation import FoundationEncoder
    from lumitok.pipelines.latent_diffusion import LatentDiffusionPipeline
    from lumitok.tokenizers import VFMVAE, FrozenLDM, Tokenizer

__version__ = "0.1.0"
__all__ = [
    "VFMVAE",
    "FoundationEncoder",
    "FrozenLDM",
    "LatentDiffusionPipeline",
    "LatentSpec",
    "LumitokError",
    "Tokenizer",
    "__version__",
]

_HOME = {
    "FoundationEncoder": "lumitok.foundation",
    "FrozenLDM": "lumitok.tokenizers",
    "LatentDiffusionPipeline": "lumitok.pipelines.latent_diffusion",
    "LatentSpec": "lumitok.data.latents",
    "LumitokError": "lumitok.errors",
    "Tokenizer": "lumitok.tokenizers",
    "VFMVAE": "lumitok.tokenizers",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lumitok' has no attribute '{name}'")
