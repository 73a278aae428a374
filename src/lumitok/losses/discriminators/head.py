"""The trainable head of the foundation discriminator, and its two layers (StyleGAN-T, arXiv 2301.09515)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumitok.errors import LumitokError

VIRTUAL_BATCH = 8
SPECTRAL_EPS = 1e-12
SLOPE = 0.2


class SpectralConv1d(nn.Module):
    """A circular 1-D convolution whose weight is divided by its largest singular value (arXiv 1802.05957).

    In training mode each forward pass first takes one power iteration, v then u. All of it is in
    float32, also under autocast. Sequences shorter than the kernel go round more than once.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        """``kernel_size`` is odd, so that the length stays."""
        super().__init__()
        assert kernel_size % 2 == 1
        self.kernel_size = kernel_size
        plain = nn.Conv1d(in_channels, out_channels, kernel_size)  # For torch's default initialisation.
        assert plain.bias is not None
        self.weight, self.bias = plain.weight, plain.bias
        u, v = torch.randn(out_channels), torch.randn(in_channels * kernel_size)
        self.register_buffer("weight_u", F.normalize(u, dim=0, eps=SPECTRAL_EPS))
        self.register_buffer("weight_v", F.normalize(v, dim=0, eps=SPECTRAL_EPS))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, L) to (B, C', L)."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self._normalised()
        half = self.kernel_size // 2
        if half == 0:
            return F.conv1d(x, weight, self.bias)
        ring = x.repeat(1, 1, math.ceil(half / x.shape[2]))
        return F.conv1d(torch.cat([ring[..., -half:], x, ring[..., :half]], dim=2), weight, self.bias)

    def _normalised(self) -> Tensor:
        matrix = self.weight.flatten(1)
        if self.training:
            with torch.no_grad():
                self.weight_v.copy_(F.normalize(matrix.mT @ self.weight_u, dim=0, eps=SPECTRAL_EPS))
                self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=SPECTRAL_EPS))
        # Copies, for the buffers change in place before the backward pass of an earlier forward pass.
        sigma = torch.dot(self.weight_u.clone(), matrix @ self.weight_v.clone())
        return self.weight / sigma


class BatchNormLocal(nn.Module):
    """Batch normalisation over contiguous groups of at most 8 pictures, without running statistics.

    A batch of B is ceil(B / 8) equal groups. Biased variance, eps 1e-5, the same in training and eval.
    """

    def __init__(self, channels: int, virtual_batch: int = VIRTUAL_BATCH, eps: float = 1e-5) -> None:
        super().__init__()
        self.virtual_batch = virtual_batch
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...); the result is float32 or wider.

        Raises:
            LumitokError: B is not a multiple of its number of groups.
        """
        batch = x.shape[0]
        groups = math.ceil(batch / self.virtual_batch)
        if batch % groups:
            raise LumitokError(
                f"the discriminator normalises over groups of at most {self.virtual_batch} pictures, and "
                f"{batch} pictures do not divide into {groups} equal groups; make the batch of each process "
                f"and accumulated part a multiple of {self.virtual_batch}, or at most {self.virtual_batch}"
            )
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        # No running statistics: those of each group, in training as in eval.
        return torch.cat(
            [
                F.batch_norm(group, None, None, self.weight, self.bias, training=True, eps=self.eps)
                for group in y.chunk(groups)
            ]
        )


class DiscriminatorHead(nn.Module):
    """Features of one layer to one logit a position.

    SN-Conv1d 1 -> norm -> LeakyReLU; [SN-Conv1d 9 -> norm -> LeakyReLU, plus skip] / sqrt 2; SN-Conv1d 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in = SpectralConv1d(channels, channels, 1)
        self.norm_in = BatchNormLocal(channels)
        self.conv_mid = SpectralConv1d(channels, channels, 9)
        self.norm_mid = BatchNormLocal(channels)
        self.conv_out = SpectralConv1d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, L) to logits (B, L)."""
        x = F.leaky_relu(self.norm_in(self.conv_in(x)), SLOPE)
        y = F.leaky_relu(self.norm_mid(self.conv_mid(x)), SLOPE)
        x = (x + y) / math.sqrt(2.0)
        logits: Tensor = self.conv_out(x)
        return logits.squeeze(1)
