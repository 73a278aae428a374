"""diffusers' decoder of RAE, on any grid.

Import this where a decoder is built: diffusers' autoencoders take seconds to import.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn
from torch.func import functional_call


class GridDecoder(RAEDecoder):
    """The ViT decoder of ``AutoencoderRAE``, parameter names and all.

    diffusers' own resizes every latent to the grid it was built for. Here the picture follows the latent, and
    another grid has the positions that a decoder built for it would have: the first to the last place of 16.
    """

    decoder_pos_embed: Tensor
    decoder_pred: nn.Linear

    def pictures(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, h * patch, w * patch), in the encoder's normalised pixels."""
        rows, columns = z.shape[-2:]
        replaced = {}
        if rows != columns or rows * columns != self.num_patches:
            replaced["decoder_pos_embed"] = self.positions(rows, columns).to(z.device)
        logits: Tensor = functional_call(self, replaced, (z.flatten(2).transpose(1, 2),)).logits
        pictures: Tensor = self.unpatchify(logits, (rows * self.patch_size, columns * self.patch_size))
        return pictures

    def positions(self, rows: int, columns: int) -> Tensor:
        """Fixed position embedding (1, 1 + rows * columns, width), nothing for the class token."""
        width = self.decoder_embed.out_features
        # On the processor: diffusers puts the class token's zeros there.
        with torch.device("cpu"):
            table = get_2d_sincos_pos_embed(width, (rows, columns))
        return torch.cat([torch.zeros(1, width), torch.as_tensor(table).float()])[None]

    def interpolate_latent(self, x: Tensor) -> Tensor:
        """Leave the latent as it is."""
        return x
