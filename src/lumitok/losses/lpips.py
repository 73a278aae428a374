"""LPIPS, the learned perceptual distance (arXiv 1801.03924), on VGG16."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumitok.errors import LumitokError
from lumitok.foundation.downloads import WeightsFile, read_tensors

HEADS_MD5 = "d507d7349b931f0638a25a48a722f98a"
NORM_EPS = 1e-10


def _vgg16_address() -> str:
    from torchvision.models import VGG16_Weights

    return str(VGG16_Weights.IMAGENET1K_V1.url)


VGG16 = WeightsFile(
    network="VGG16",
    purpose="LPIPS or DISTS",
    file="vgg16-397923af.pth",
    sha256="397923af",
    size=553_433_881,
    licence="BSD-3-Clause",
    environment="LUMITOK_VGG16",
    origin="torchvision's (torchvision.models.vgg16, weights IMAGENET1K_V1; see its model zoo)",
    address=_vgg16_address,
    otherwise="Without it, the loss feature_distance on a registered encoder can take the place of lpips",
)


class LPIPS(nn.Module):
    """LPIPS version 0.1 with VGG16: sum over five layers of the weighted distance of unit features.

    d(x, y) = sum over l of mean over positions of w_l . (u_l(x) - u_l(y))^2 (equation 1). The heads
    w_l come with the ``lpips`` package, VGG16's weights from torchvision; both are checked against
    their published hashes. Frozen, always in eval mode; gradients reach the pictures.
    """

    name = "lpips/vgg"

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        download: bool = True,
        verify: bool = True,
        load_weights: bool = True,
    ) -> None:
        """Find and load the weights.

        Args:
            weights: file of VGG16's weights; None: the path in the environment variable
                LUMITOK_VGG16, then torch hub's cache, then a download into that cache.
            download: whether the file may be fetched where it is not at hand.
            verify: whether the file must be torchvision's; False only for made-up weights in tests.
            load_weights: False: VGG16's are random, to measure what LPIPS costs.

        Raises:
            LumitokError: the weights are missing and cannot be fetched, or are not the right ones.
        """
        super().__init__()
        found = load_backbone(weights, download=download, verify=verify) if load_weights else None
        self.model = _build(found)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Stay in eval mode: the heads' dropout must not act."""
        del mode
        return super().train(False)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair, (B,).

        Args:
            image: (B, 3, H, W) in [-1, 1], sides of 16 pixels or more.
            target: the same shape.
        """
        ours = self.model.net(self.model.scaling_layer(image))
        theirs = self.model.net(self.model.scaling_layer(target))
        # Not the package's own forward: under autocast it squares small differences in bfloat16.
        with torch.autocast(image.device.type, enabled=False):
            layers = [_layer(a, b, lin) for a, b, lin in zip(ours, theirs, self.model.lins, strict=True)]
            return torch.stack(layers).sum(dim=0)


def _layer(a: Tensor, b: Tensor, head: nn.Module) -> Tensor:
    """Weighted distance of two (B, C, h, w) maps, (B,)."""
    a = F.normalize(a.float(), dim=1, eps=NORM_EPS)
    b = F.normalize(b.float(), dim=1, eps=NORM_EPS)
    weighted: Tensor = head((a - b).square())  # (B, 1, h, w)
    return weighted.mean(dim=(1, 2, 3))


def load_backbone(
    weights: str | Path | None = None, *, download: bool = True, verify: bool = True
) -> dict[str, Tensor]:
    """Read VGG16's convolutions, ``N.weight`` and ``N.bias`` by their places N in torchvision's ``features``.

    Arguments and errors as :class:`LPIPS`.
    """
    path = VGG16.obtain(weights, download=download, verify=verify)
    prefix = "features."
    state = read_tensors(path, VGG16.network)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _build(backbone: dict[str, Tensor] | None) -> Any:
    """Make the package's network without its 138 million random numbers, and fill it; None: at random."""
    try:
        import lpips
    except ImportError:
        raise LumitokError(
            "LPIPS needs the package lpips; install it with `pip install lumitok[lpips]`"
        ) from None
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    digest = hashlib.md5(heads.read_bytes(), usedforsecurity=False).hexdigest()
    if digest != HEADS_MD5:
        raise LumitokError(
            f"{heads} is not LPIPS version 0.1: its md5 is {digest}, not {HEADS_MD5}; reinstall lpips"
        )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The package calls torchvision by arguments that are out of date.
        model: Any = lpips.LPIPS(net="vgg", version="0.1", pretrained=False, pnet_rand=True, verbose=False)
    model.scaling_layer = lpips.ScalingLayer()  # Its constants are no weights: they must not stay on meta.
    for part in model.net.children():
        empty = part.state_dict()
        if backbone is None:
            state = {name: 0.02 * torch.randn(tensor.shape) for name, tensor in empty.items()}
        else:
            missing = [name for name in empty if name not in backbone]
            if missing:
                raise LumitokError(f"these are not VGG16's weights: 'features.{missing[0]}' is missing")
            state = {name: backbone[name] for name in empty}
        part.load_state_dict(state, assign=True)
    weights = torch.load(heads, map_location="cpu", weights_only=True)
    for index, head in enumerate(model.lins):  # lin0.model.1.weight in the file
        head.load_state_dict({"model.1.weight": weights[f"lin{index}.model.1.weight"]}, assign=True)
    return model
