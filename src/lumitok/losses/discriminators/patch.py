"""PatchGAN on several scales: small convolutional networks that judge overlapping patches.

The design is pix2pixHD's (arXiv 1711.11585, section 3.2) as VFM-VAE's last stage uses it; by its settings
also VQGAN's (arXiv 2012.09841), on one scale, which VA-VAE and AlignTok use.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lumitok.config import PatchDiscriminatorConfig
from lumitok.errors import LumitokError
from lumitok.losses.discriminators.head import SLOPE, BatchNormLocal

KERNEL = 4
INITIAL_STD = 0.02
GREATEST_GROWTH = 8
"""Channels of the widest layer, divided by those of the first."""


class PatchDiscriminator(nn.Module):
    """One network a scale, each on its own copy of the pictures, half as large as the one before.

    Shrinking is average pooling with a window of 3 that does not count the border. Training and eval
    are the same, nothing is drawn at random.
    """

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.networks = nn.ModuleList(_network(config) for _ in range(config.scales))

    def forward(self, pictures: Tensor) -> list[list[Tensor]]:
        """Judge pictures.

        Args:
            pictures: (B, 3, H, W) in [-1, 1], of any size from 2^(scales - 1) + 1 px a side (more with
                padding 1). With ``norm: local`` B is at most 8 or a multiple of 8.

        Returns:
            A list a scale, the full pictures first: the features (B, C, h, w) after each LeakyReLU, then
            the logits (B, 1, h, w).

        Raises:
            LumitokError: the smallest copy would be a single pixel, or B does not divide.
        """
        # With padding 2 the smallest copy needs 2 pixels, with padding 1 enough that a logit is left.
        copies = len(self.networks)
        small = 2 if self.config.padding == 2 else 3 * 2**self.config.strided_layers
        least = (small - 1) * 2 ** (copies - 1) + 1
        if min(pictures.shape[-2:]) < least:
            raise LumitokError(
                f"the PatchGAN's {copies} scales need pictures of at least {least} px a side, so "
                f"that its smallest copy has {small}, but got {pictures.shape[-2]}x{pictures.shape[-1]}; "
                "make the pictures larger, or patch_discriminator.scales or strided_layers smaller"
            )
        judged = []
        for index, network in enumerate(self.networks):
            if index > 0:
                pictures = F.avg_pool2d(pictures, 3, stride=2, padding=1, count_include_pad=False)
            outputs: list[Tensor] = []
            for layer in network.children():
                outputs.append(layer(outputs[-1] if outputs else pictures))
            judged.append(outputs)
        return judged


class PatchLayer(nn.Module):
    """Convolution of kernel 4, in the middle a norm, then LeakyReLU; the last layer gives plain logits.

    With stride 2 and padding 2 a side of n becomes n // 2 + 1, with stride 1 n + 1; with padding 1
    n // 2 and n - 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        padding: int,
        norm: Literal["local", "batch"] | None = None,
        logits: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, KERNEL, stride=stride, padding=padding, bias=norm != "batch"
        )
        nn.init.normal_(self.conv.weight, std=INITIAL_STD)
        self.norm: nn.Module | None = None
        if norm == "local":
            self.norm = BatchNormLocal(out_channels)
        elif norm == "batch":
            # It only ever judges while it is trained: running statistics would have no use.
            self.norm = nn.BatchNorm2d(out_channels, track_running_stats=False)
            nn.init.normal_(self.norm.weight, 1.0, INITIAL_STD)
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h', w')."""
        y: Tensor = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        return y if self.logits else F.leaky_relu(y, SLOPE)


def _network(config: PatchDiscriminatorConfig) -> nn.ModuleList:
    """Strided layers, one more at the same size, and the logits."""
    widths = [config.channels * min(2**i, GREATEST_GROWTH) for i in range(config.strided_layers + 1)]
    padding = config.padding
    first = PatchLayer(3, widths[0], stride=2, padding=padding)
    middle = [
        PatchLayer(
            widths[i - 1],
            widths[i],
            stride=2 if i < config.strided_layers else 1,
            padding=padding,
            norm=config.norm,
        )
        for i in range(1, config.strided_layers + 1)
    ]
    last = PatchLayer(widths[-1], 1, stride=1, padding=padding, logits=True)
    return nn.ModuleList([first, *middle, last])
