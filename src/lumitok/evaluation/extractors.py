"""Networks whose features a distribution of pictures is judged by: 8-bit pixels in, features out.

Inception is the TensorFlow network of 2015 as torch-fidelity ports it, its resize included; any registered
foundation encoder can stand in its place, and its distances are then named for it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError, nearest
from lumitok.foundation.downloads import WeightsFile, hash_file, read_tensors
from lumitok.foundation.registry import TIMM_PREFIX, encoder_names
from lumitok.nn.precision import exact_float32, full_precision

if TYPE_CHECKING:
    from lumitok.foundation.encoder import FoundationEncoder

INCEPTION = "inception"
INCEPTION_SIZE = 299
SPATIAL_CHANNELS = 7
"""Channels of mixed_6 that sFID looks at (ADM's evaluator)."""
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS

DINOV2_SIZE = 224
DINOV2 = ("dinov2-small", "dinov2-base", "dinov2-large", "dinov2-giant")
"""Read as FD-DINOv2 is published (Stein et al., arXiv 2306.04675; EDM2): the class token at 224 px."""
PUBLISHED = {INCEPTION: "FID", "dinov2-large": "FD-DINOv2"}
"""Fréchet distances that have a name of their own."""


def _inception_address() -> str:
    return str(_inception_module().URL_INCEPTION_V3)


INCEPTION_WEIGHTS = WeightsFile(
    network="Inception",
    purpose="FID, sFID, IS, KID, precision or recall",
    file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
    size=95_628_359,
    licence="Apache-2.0",
    environment="LUMITOK_INCEPTION",
    origin="torch-fidelity's (converted from TensorFlow's of 2015-12-05; see its releases)",
    address=_inception_address,
    otherwise="Without it, the same distances can be taken on a registered encoder, and are named for it: "
    "--encoder efficientnet-lite2, whose weights come with pip, or any that `lumitok doctor` lists",
    aliases=("pt_inception-2015-12-05-6726825d.pth",),  # pytorch-fid's name for the same file.
)


@dataclass(frozen=True)
class Extracted:
    """Features of a batch of pictures, float32.

    Attributes:
        pooled: (B, d), what distances are taken on.
        spatial: (B, SPATIAL_DIM), what sFID is taken on; None for all but Inception.
        logits: (B, 1008), what the Inception score is taken on: without the last layer's bias, as ADM's
            evaluator and torch-fidelity have it; None for all but Inception.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Extractor(Protocol):
    """A frozen network that turns 8-bit pictures of any size into features.

    Attributes:
        name: ``inception``, or a registered encoder's.
        description: the network, what is read from it and how pictures are resized, in one line.
        weights: sha256 of its weights.
        dim: width d of the pooled features.
        registered: whether the weights are those the name stands for, and no other file was named.
    """

    name: str
    description: str
    weights: str
    dim: int
    registered: bool

    def __call__(self, pixels: Tensor) -> Extracted:
        """Extract from pictures: uint8 (B, 3, H, W) on any device."""


def open_extractor(
    name: str,
    weights: Path | None = None,
    device: torch.device | str | None = None,
    *,
    verify: bool = True,
) -> Extractor:
    """Open a network to judge pictures by.

    Args:
        name: ``inception``, or a registered encoder (``lumitok doctor`` lists them).
        weights: its file; None: where it is registered to lie, fetched if need be.
        device: where it computes; None: the processor.
        verify: whether Inception's file must have the published hash; False only for made-up weights.

    Raises:
        LumitokError: an unknown name, or weights that cannot be had or are not the right ones.
    """
    device = torch.device(device or "cpu")
    if name == INCEPTION:
        return InceptionExtractor(weights, device, verify=verify)
    if name not in encoder_names() and not name.startswith(TIMM_PREFIX):
        known = [INCEPTION, *encoder_names()]
        raise LumitokError(
            f"an extractor is '{INCEPTION}' or one of the encoders that `lumitok doctor` lists, not "
            f"'{name}'{nearest(name, known)}"
        )
    from lumitok.foundation.encoder import FoundationEncoder

    config = EncoderConfig(name=name, layers=[-1], weights=str(weights) if weights else None)
    return EncoderExtractor(FoundationEncoder(config), device)


def frechet_name(extractor: Extractor) -> str:
    """Return what the Fréchet distance on these features is called; only Inception's is FID."""
    own = f"FD-{extractor.name}"
    return PUBLISHED.get(extractor.name, own) if extractor.registered else own


def fitting_side(native: int, patch: int) -> int:
    """Return the multiple of ``patch`` that is nearest to the side a network was trained at, in pixels."""
    return max(1, round(native / patch)) * patch


class InceptionExtractor:
    """Inception, in one pass: pool_3, the first channels of mixed_6 and the logits (ADM's evaluator).

    The network is torch-fidelity's port, with TensorFlow 1's resize to 299 px: bilinear, not centred, not
    antialiased. mixed_6/conv is ``Mixed_6d.branch1x1`` there; it is flattened channels last, as stored
    ``mu_s`` and ``sigma_s`` are.
    """

    name = INCEPTION
    description = "Inception 2015-12-05 (torch-fidelity), TensorFlow 1's bilinear resize to 299 px, float32"
    dim = 2048
    registered = True  # Its file has the published hash.

    def __init__(self, weights: Path | None, device: torch.device, *, verify: bool = True) -> None:
        """Find and load the weights; errors as :func:`open_extractor`."""
        module = _inception_module()
        path = INCEPTION_WEIGHTS.obtain(weights, verify=verify)
        self.weights = hash_file(path)
        # torch-fidelity would unpickle the file with any code in it: it is given what was read safely.
        safe = io.BytesIO()
        torch.save(read_tensors(path, INCEPTION_WEIGHTS.network), safe)
        safe.seek(0)
        try:
            self._network: Any = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
            )
        except RuntimeError as error:
            raise LumitokError(
                f"{path} does not hold Inception's weights: {' '.join(str(error).split())[:300]}"
            ) from error
        self._network.to(device)
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        self._device = device
        self._spatial: Tensor | None = None

    def _keep(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Extracted:
        """Extract from pictures: uint8 (B, 3, H, W) on any device."""
        _check_pixels(pixels)
        x = pixels.to(self._device)
        with exact_float32(), full_precision(x):
            pooled, logits = self._network(x)
        return Extracted(pooled, self._spatial, logits)


class EncoderExtractor:
    """The end of a foundation encoder: its last map, averaged over positions.

    Pictures are resized to the size the encoder was trained at (to the nearest that fits its patches),
    bicubic and antialiased. DINOv2 is read as FD-DINOv2 is published: its class token at 224 px, the
    position embedding resampled as its own authors do it.
    """

    def __init__(self, encoder: FoundationEncoder, device: torch.device) -> None:
        self._encoder, self._device = encoder.to(device), device
        self.name = encoder.name
        self.weights = encoder.weights_hash()
        self.dim = encoder.channels[0]
        self.registered = encoder.config.weights is None
        self._by_token = self.name in DINOV2
        native = DINOV2_SIZE if self._by_token else int(encoder.model.pretrained_cfg["input_size"][-1])
        self.size = fitting_side(native, encoder.patch)
        if self._by_token:
            _resample_as_dinov2(encoder, self.size // encoder.patch)
        read = "class token" if self._by_token else "mean of the last map"
        self.description = (
            f"{self.name}, {read}, bicubic antialiased resize to {self.size} px without rounding, float32"
        )

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Extracted:
        """Extract from pictures: uint8 (B, 3, H, W) on any device."""
        _check_pixels(pixels)
        x = pixels.to(self._device).float() / 255.0
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(
                x, size=(self.size, self.size), mode="bicubic", align_corners=False, antialias=True
            )
        with exact_float32(), full_precision(x):
            features = self._encoder(x)
        token = features.tokens[0]
        if self._by_token and token is not None:
            return Extracted(token.float())
        return Extracted(features.maps[0].mean(dim=(2, 3)).float())


def _resample_as_dinov2(encoder: FoundationEncoder, side: int) -> None:
    """Bring the position embedding to ``side`` x ``side`` as DINOv2's own code does.

    It scales by (side + 0.1) / 37 and does not antialias, where timm would: the published features come
    from the former.
    """
    model = encoder.model
    prefix, grid = model.pos_embed[:, :1], model.pos_embed[:, 1:]
    stored = model.patch_embed.grid_size[0]
    grid = grid.reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / stored, mode="bicubic")
    assert grid.shape[-2:] == (side, side)
    resampled = torch.cat([prefix, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    model.pos_embed = torch.nn.Parameter(resampled, requires_grad=False)
    model.patch_embed.grid_size = (side, side)  # timm then finds nothing to resample.


def _check_pixels(pixels: Tensor) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.uint8:
        raise LumitokError(
            f"an extractor takes 8-bit pictures, uint8 (B, 3, H, W), not {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}; round decoded pictures with image_quality.to_uint8 first"
        )


def _inception_module() -> Any:
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except ImportError:
        raise LumitokError(
            "Inception comes with the package torch-fidelity; install it with `pip install lumitok[eval]`"
        ) from None
    return feature_extractor_inceptionv3
