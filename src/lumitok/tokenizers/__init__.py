"""Image <-> latent: the contract and the tokenizers that keep it."""

from lumitok.config import (
    AlignTokConfig,
    FrozenLDMConfig,
    LDMConfig,
    ModelConfig,
    RAEConfig,
    VFMVAEConfig,
)
from lumitok.tokenizers.aligntok import AlignTok
from lumitok.tokenizers.autoencoder import EncoderOutput
from lumitok.tokenizers.base import DecoderOutput, Equivariance, Generators, Tokenizer, TokenizerOutput
from lumitok.tokenizers.frozen_ldm import FrozenLDM
from lumitok.tokenizers.ldm_vae import LDMVAE
from lumitok.tokenizers.rae import RAE
from lumitok.tokenizers.vfm_vae import VFMVAE

__all__ = [
    "LDMVAE",
    "RAE",
    "VFMVAE",
    "AlignTok",
    "DecoderOutput",
    "EncoderOutput",
    "Equivariance",
    "FrozenLDM",
    "Generators",
    "Tokenizer",
    "TokenizerOutput",
    "build_tokenizer",
]

_KINDS: dict[type, type[Tokenizer]] = {
    VFMVAEConfig: VFMVAE,
    FrozenLDMConfig: FrozenLDM,
    AlignTokConfig: AlignTok,
    LDMConfig: LDMVAE,
    RAEConfig: RAE,
}


def build_tokenizer(config: ModelConfig, *, load_weights: bool = True) -> Tokenizer:
    """Build the tokenizer that a recipe's ``model`` describes, its own weights random.

    Args:
        config: the recipe's ``model``.
        load_weights: load the frozen encoder's weights; False leaves them random, which also works
            under ``torch.device("meta")`` and needs no file.
    """
    return _KINDS[type(config)].from_settings(config, load_weights=load_weights)
