"""Perceptual distances between a reconstruction and its picture, each pair by itself.

LPIPS and DISTS are the field's, on VGG16; where its weights cannot be had, any registered encoder gives a
distance of the same form that is named for it and never LPIPS.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.foundation.weights import hash_weights
from lumitok.losses.feature_distance import FeatureDistance
from lumitok.losses.lpips import LPIPS, VGG16, load_backbone

DISTS_SHA256 = "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"
"""Of the published weights of structure and texture, as torchmetrics (1.7 or newer) carries them."""

FEATURE_LAYERS = (1, 2, 3, 4)
"""Stages or blocks that the feature distance of an encoder compares, unless told otherwise."""

_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # Convolutions in VGG16's `features`.
_CHANNELS = (3, 64, 128, 256, 512, 512)  # The picture itself, then each stage's last map.
_EPS = 1e-6

_VGG16 = replace(
    VGG16,
    otherwise="Without it, a feature distance on a registered encoder can take their place: "
    "--perceptual-encoder efficientnet-lite0",
)


@dataclass(frozen=True)
class PerceptualDistance:
    """A distance with the words that travel with its numbers.

    Attributes:
        name: of the number.
        method: the convention, in one line.
        extractor: the network whose features are compared.
        weights: sha256 over all weights that enter it (:func:`lumitok.foundation.weights.hash_weights`).
        network: (image, target), both (B, 3, H, W) in [-1, 1] -> (B,).
    """

    name: str
    method: str
    extractor: str
    weights: str
    network: nn.Module

    @torch.no_grad()
    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair of 8-bit pictures, uint8 (B, 3, H, W) -> (B,) float32."""
        distance: Tensor = self.network(_from_levels(image), _from_levels(target))
        return distance.float()


def obtain_vgg16(weights: Path | None = None) -> Path:
    """Return the checked file of VGG16's weights that LPIPS and DISTS share, fetched where it must be.

    Raises:
        LumitokError: it cannot be had, or is another file.
    """
    return _VGG16.obtain(weights)


def open_lpips(vgg16: Path, device: torch.device | None = None) -> PerceptualDistance:
    """LPIPS version 0.1: what both papers report.

    Args:
        vgg16: from :func:`obtain_vgg16`; not checked again.
        device: where it computes.

    Raises:
        LumitokError: the file holds other weights, or the package lpips is not installed.
    """
    network = LPIPS(vgg16, verify=False).to(device)
    method = "version 0.1 with its published weights, 8-bit pictures in [-1, 1] at their own size"
    return PerceptualDistance("LPIPS", method, "vgg16", _hash(network), network)


def open_dists(vgg16: Path, device: torch.device | None = None) -> PerceptualDistance:
    """DISTS with the published weights of structure and texture; arguments as :func:`open_lpips`.

    Raises:
        LumitokError: the file holds other weights, or torchmetrics is too old to carry DISTS's own.
    """
    network = DISTS(vgg16).to(device)
    method = "published weights, 8-bit pictures in [0, 1] at their own size"
    return PerceptualDistance("DISTS", method, "vgg16", _hash(network), network)


def open_feature_distance(
    encoder: str | EncoderConfig, device: torch.device | None = None
) -> PerceptualDistance:
    """Distance of unit features on a registered encoder, for machines without VGG16. It is not LPIPS.

    Args:
        encoder: a registered name, read at :data:`FEATURE_LAYERS`, or a config with its own layers.
        device: where it computes.

    Raises:
        LumitokError: there is no such encoder, its weights cannot be had, or it lacks a layer.
    """
    if isinstance(encoder, str):
        encoder = EncoderConfig(name=encoder, layers=list(FEATURE_LAYERS))
    network = FeatureDistance(FoundationEncoder(encoder)).to(device)
    layers = ", ".join(str(layer) for layer in encoder.layers)
    method = f"squared distance of unit features, mean over layers {layers}; 8-bit pictures at their own size"
    name = f"feature distance, {encoder.name}"
    return PerceptualDistance(name, method, encoder.name, network.encoder.weights_hash(), network)


class DISTS(nn.Module):
    """Deep image structure and texture similarity (arXiv 2004.07728), a distance in [0, 1] or so.

    1 - sum over the picture and five VGG16 maps, channel by channel, of alpha l(x, y) + beta s(x, y):
    l compares the means of a channel (texture), s its covariance (structure), equations 5 to 7. The maps
    are taken before L2 pooling, which stands in the place of VGG16's max pooling. Frozen.
    """

    alpha: Tensor
    beta: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, vgg16: Path) -> None:
        """Load the weights.

        Args:
            vgg16: torchvision's file, as :func:`obtain_vgg16` returns it.

        Raises:
            LumitokError: it holds other weights, or torchmetrics is too old to carry DISTS's own.
        """
        super().__init__()
        self.stages = _build_stages(load_backbone(vgg16, verify=False))
        alpha, beta = _load_heads()
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", (alpha / total).flatten())
        self.register_buffer("beta", (beta / total).flatten())
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair, (B,).

        Args:
            image: (B, 3, H, W) in [-1, 1].
            target: the same shape.
        """
        similar = [
            torch.stack(_similarity(ours, theirs))
            for ours, theirs in zip(self._maps(image), self._maps(target), strict=True)
        ]
        texture, structure = torch.cat(similar, dim=2)  # each (B, 3 + 64 + 128 + 256 + 512 + 512)
        similarity: Tensor = (self.alpha * texture + self.beta * structure).sum(dim=1)
        return 1.0 - similarity

    def _maps(self, pictures: Tensor) -> list[Tensor]:
        pixels = (pictures + 1.0) / 2.0
        maps, x = [pixels], (pixels - self.mean) / self.std
        for number, stage in enumerate(self.stages):
            x = stage(x if number == 0 else _l2_pool(x))
            maps.append(x)
        return maps


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Compare two (B, C, h, w) maps channel by channel: of the means, and of the structure, each (B, C)."""
    mean_x, mean_y = x.mean(dim=(2, 3), keepdim=True), y.mean(dim=(2, 3), keepdim=True)
    # Centred first, where the published code takes E[xy] - E[x]E[y]: equal, but for the digits it loses.
    x, y = x - mean_x, y - mean_y
    covariance = (x * y).mean(dim=(2, 3))
    variances = x.square().mean(dim=(2, 3)) + y.square().mean(dim=(2, 3))
    mean_x, mean_y = mean_x.flatten(1), mean_y.flatten(1)
    texture = (2.0 * mean_x * mean_y + _EPS) / (mean_x.square() + mean_y.square() + _EPS)
    return texture, (2.0 * covariance + _EPS) / (variances + _EPS)


def _l2_pool(x: Tensor) -> Tensor:
    """Halve (B, C, h, w): root of the mean square under a 3 x 3 Hann window."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    window = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    pooled = F.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1])
    return (pooled + 1e-12).sqrt()


def _build_stages(backbone: dict[str, Tensor]) -> nn.ModuleList:
    """VGG16's convolutions between two poolings, each stage a sequence that keeps the published places."""
    stages = nn.ModuleList()
    before = 3
    for places, channels in zip(_STAGES, _CHANNELS[1:], strict=True):
        stage = nn.Sequential()
        for place in places:
            with torch.device("meta"):
                convolution = nn.Conv2d(before, channels, 3, padding=1)
            names = [f"{place}.{name}" for name in convolution.state_dict()]
            missing = [name for name in names if name not in backbone]
            if missing:
                raise LumitokError(f"these are not VGG16's weights: 'features.{missing[0]}' is missing")
            state = {name.split(".")[1]: backbone[name] for name in names}
            convolution.load_state_dict(state, assign=True)
            stage.append(convolution).append(nn.ReLU())
            before = channels
        stages.append(stage)
    return stages


def _load_heads() -> tuple[Tensor, Tensor]:
    """Read DISTS's alpha and beta out of torchmetrics, and check that they are the published ones."""
    import torchmetrics

    path = Path(torchmetrics.__file__).parent / "functional" / "image" / "dists_models" / "weights.pt"
    if not path.is_file():
        raise LumitokError(
            f"DISTS needs torchmetrics 1.7 or newer, which carries its weights; this is "
            f"{torchmetrics.__version__}: `pip install -U torchmetrics`"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != DISTS_SHA256:
        raise LumitokError(
            f"{path} does not hold DISTS's published weights: its sha256 starts with {digest[:12]}, not "
            f"{DISTS_SHA256[:12]}; reinstall torchmetrics"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state["alpha"].detach(), state["beta"].detach()


def _from_levels(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1.0


def _hash(network: nn.Module) -> str:
    return hash_weights(network.state_dict().items())
