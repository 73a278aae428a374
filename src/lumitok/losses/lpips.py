"""LPIPS, the learned perceptual distance (arXiv 1801.03924), on VGG16."""

from __future__ import annotations

import hashlib
import os
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumitok.errors import LumitokError

VGG16_FILE = "vgg16-397923af.pth"
VGG16_SHA256 = "397923af"  # The first digits of the hash, as torchvision writes them into the name.
HEADS_MD5 = "d507d7349b931f0638a25a48a722f98a"
ENVIRONMENT = "LUMITOK_VGG16"
NORM_EPS = 1e-10


class LPIPS(nn.Module):
    """LPIPS version 0.1 with VGG16: sum over five layers of the weighted distance of unit features.

    d(x, y) = sum over l of mean over positions of w_l . (u_l(x) - u_l(y))^2 (equation 1). The heads
    w_l come with the ``lpips`` package, VGG16's weights from torchvision; both are checked against
    their published hashes. Frozen, always in eval mode; gradients reach the pictures.
    """

    name = "lpips/vgg"

    def __init__(
        self, weights: str | Path | None = None, *, download: bool = True, verify: bool = True
    ) -> None:
        """Find and load the weights.

        Args:
            weights: file of VGG16's weights; None: the path in the environment variable
                LUMITOK_VGG16, then torch hub's cache, then a download into that cache.
            download: whether the file may be fetched where it is not at hand.
            verify: whether the file must be torchvision's; False only for made-up weights in tests.

        Raises:
            LumitokError: the weights are missing and cannot be fetched, or are not the right ones.
        """
        super().__init__()
        path = find_vgg16(weights)
        if path is None and not download:
            raise _missing("downloading is switched off")
        backbone = _load_vgg16(path or _download(), verify=verify)
        self.model = _build(backbone)
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


def find_vgg16(weights: str | Path | None = None) -> Path | None:
    """Return the file of VGG16's weights where it is at hand, None where it is not.

    Raises:
        LumitokError: ``weights`` or LUMITOK_VGG16 names a file that does not exist.
    """
    named = weights or os.environ.get(ENVIRONMENT)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            origin = "the argument" if weights else ENVIRONMENT
            raise LumitokError(f"{origin} names '{named}' as VGG16's weights, but there is no such file")
        return path
    cached = _cache()
    return cached if cached.is_file() else None


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE


def _missing(reason: str) -> LumitokError:
    return LumitokError(
        f"LPIPS needs VGG16's weights, {VGG16_FILE} (528 MB), and they cannot be had: {reason}. They are "
        f"torchvision's (torchvision.models.vgg16, weights IMAGENET1K_V1): fetch the file from torchvision's "
        f"model zoo by hand and put it at {_cache()}, or set {ENVIRONMENT} to its path. Without it, use the "
        "loss feature_distance on a registered encoder in place of lpips"
    )


def _download() -> Path:
    """Fetch VGG16's weights into torch hub's cache; fail within seconds where there is no network."""
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    path = _cache()
    try:
        # torch hub waits without limit for a network that does not answer; this asks first.
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5):
            pass
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=VGG16_SHA256)
    except (OSError, RuntimeError) as error:
        raise _missing(f"the download failed ({error})") from error
    return path


def _load_vgg16(path: Path, *, verify: bool) -> dict[str, Tensor]:
    """Read the convolutions of VGG16: ``features.N.weight`` and ``.bias`` without the prefix."""
    if verify:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(VGG16_SHA256):
            raise LumitokError(
                f"{path} is not torchvision's {VGG16_FILE}: its sha256 starts with {digest[:8]}, not "
                f"{VGG16_SHA256}; delete it and fetch it again"
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise LumitokError(f"{path} cannot be read as VGG16's weights: {error}") from error
    prefix = "features."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _build(backbone: dict[str, Tensor]) -> Any:
    """Make the package's network without its 138 million random numbers, and fill it."""
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
        names = list(part.state_dict())
        missing = [name for name in names if name not in backbone]
        if missing:
            raise LumitokError(f"these are not VGG16's weights: 'features.{missing[0]}' is missing")
        part.load_state_dict({name: backbone[name] for name in names}, assign=True)
    weights = torch.load(heads, map_location="cpu", weights_only=True)
    for index, head in enumerate(model.lins):  # lin0.model.1.weight in the file
        head.load_state_dict({"model.1.weight": weights[f"lin{index}.model.1.weight"]}, assign=True)
    return model
