"""Image <-> latent: the contract and the tokenizers that keep it."""

from lumitok.config import ModelConfig
from lumitok.tokenizers.base import Tokenizer
from lumitok.tokenizers.vfm_vae import VFMVAE, VFMVAEDecoderOutput, VFMVAEOutput

__all__ = ["VFMVAE", "Tokenizer", "VFMVAEDecoderOutput", "VFMVAEOutput", "build_tokenizer"]


def build_tokenizer(config: ModelConfig, *, load_weights: bool = True) -> Tokenizer:
    """Build the tokenizer that a recipe's ``model`` describes, its own weights random.

    Args:
        config: the recipe's ``model``.
        load_weights: load the frozen encoder's weights; False leaves them random, which also works
            under ``torch.device("meta")`` and needs no file.
    """
    return VFMVAE.from_settings(config, load_weights=load_weights)
