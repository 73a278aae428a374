"""What has a representation, behind one protocol, and its features gathered over a set of pictures.

A tokenizer's latent, a foundation encoder's layers, the pixels themselves, or any network that hands out
its blocks' tokens. Features are the mean over positions, as CKNNA compares them, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumitok.config import EncoderConfig
from lumitok.data import BadPicture
from lumitok.errors import LumitokError
from lumitok.evaluation.extractors import fitting_side
from lumitok.evaluation.perturbations import SEED, Group, Scaled, perturb
from lumitok.evaluation.perturbations import names as change_names
from lumitok.evaluation.picture_sets import PictureSource
from lumitok.evaluation.processes import share, together
from lumitok.evaluation.protocol import LATENTS, Latent
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers import Tokenizer

Blocks = list[tuple[str, Tensor]]

UNCHANGED = "unchanged"
"""Name of the view of a picture as it is; the others are those of :mod:`lumitok.evaluation.perturbations`."""

LATENT = "latent"
MEAN, DETERMINISTIC = LATENTS["mean"], "deterministic"
LATENT_MEAN = f"{LATENT}, {MEAN}"
"""Block of the posterior's mean, beside the block of samples."""

_Part = tuple[dict[tuple[str, str], NDArray[np.float32]], list[int], list[BadPicture]]

_GRID = 16  # Patches a side at which the papers read a transformer: 224 px for DINOv2, 256 for patch 16.


class Representation(Protocol):
    """A network whose features can be compared and probed.

    Attributes:
        name: for people, such as ``efficientnet-lite0``.
        weights: sha256 of its weights; None where it has none.
        detail: which latent, at which input size and so on, for the protocol of a number; may be empty.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def weights(self) -> str | None: ...  # noqa: D102
    @property
    def detail(self) -> str: ...  # noqa: D102

    def blocks(self, pixels: Tensor, draws: Sequence[int]) -> Blocks:
        """Return the tokens of each block.

        Args:
            pixels: (B, 3, H, H) float, in [0, 1].
            draws: for each picture a whole number that stands for it and for the view of it: a network
                that draws (a posterior, a diffusion's noise) draws from it alone, so that neither the
                batch nor the number of processes matters.

        Returns:
            (name, tokens (B, N, C)) of each block, without class tokens.
        """


class TokenizerLatent:
    """A tokenizer's raw z, as ``latent``.

    Args:
        tokenizer: in eval mode, on its device.
        latent: ``sample`` draws one z a picture and view, as the published values are made; ``mean`` takes
            the posterior's mean. A deterministic latent is the same either way.
        seed: of the draws.
        with_mean: hand out the posterior's mean too, as a block of its own.
    """

    def __init__(
        self, tokenizer: Tokenizer, latent: Latent = "sample", seed: int = 0, *, with_mean: bool = False
    ) -> None:
        self.tokenizer, self.latent, self.seed = tokenizer, latent, seed
        self.name = LATENT
        self.block_names = [LATENT, LATENT_MEAN] if with_mean else [LATENT]
        self.weights = tokenizer.fingerprint()
        self.detail = LATENTS[latent]

    def blocks(self, pixels: Tensor, draws: Sequence[int]) -> Blocks:
        """Return the block ``latent``: z (B, h w, C); the mean after it, where it is wanted."""
        posterior = self.tokenizer.encode(pixels * 2 - 1).latent_dist
        if posterior.logvar is None:
            self.detail = DETERMINISTIC
        if self.latent == "mean":
            z = posterior.mode()
        else:
            z = posterior.sample([torch.Generator().manual_seed(_mix(self.seed, draw)) for draw in draws])
        values = [z, posterior.mode()]
        return [(name, _tokens(one)) for name, one in zip(self.block_names, values, strict=False)]


class EncoderLayers:
    """A foundation encoder's maps at the layers it is read at; the end (-1) bears the encoder's name alone.

    Args:
        encoder: on its device.
        size: side of the pictures that it will be given, to say at which size it sees them.
    """

    def __init__(self, encoder: FoundationEncoder, size: int) -> None:
        self.encoder = encoder
        self.name = encoder.name
        self.weights = encoder.weights_hash()
        self.detail = f"seen at {round(size * encoder.config.scale)} px"

    @property
    def block_names(self) -> list[str]:
        """Names of the layers, in the order of the encoder's config."""
        layers = self.encoder.config.layers
        return [self.name if layer == -1 else f"{self.name} layer {layer}" for layer in layers]

    def blocks(self, pixels: Tensor, draws: Sequence[int]) -> Blocks:  # noqa: ARG002
        """Return (name, patch tokens (B, h w, C)) of each layer."""
        maps = self.encoder(pixels).maps
        return [(name, _tokens(values)) for name, values in zip(self.block_names, maps, strict=True)]


class RawPixels:
    """The pictures themselves, in [0, 1]: what a representation has to be better than."""

    name = "pixels"
    weights = None
    detail = ""

    def blocks(self, pixels: Tensor, draws: Sequence[int]) -> Blocks:  # noqa: ARG002
        """Return the one block ``pixels``: (B, H W, 3)."""
        return [(self.name, _tokens(pixels))]


@dataclass
class Gathered:
    """Features of a set of pictures, the same rows in all of them.

    Attributes:
        features: for each view (``unchanged`` and the changes) and block float32 (n, C), mean over positions.
        places: where in the set's listing the rows come from, ascending as they were asked for.
        bad: what could not be read.
    """

    features: dict[str, dict[str, Tensor]]
    places: list[int]
    bad: list[BadPicture]


def open_encoder(
    spec: str | EncoderConfig, size: int, *, side: int | None = None, layers: Sequence[int] = (-1,)
) -> FoundationEncoder:
    """Open a registered encoder for pictures of one size.

    Args:
        spec: a name, ``NAME=FILE`` with the file of its weights, or a whole config, which is taken as it is.
        size: side of the pictures in pixels.
        side: pixels at which the encoder sees them; None: 16 patches a side of a transformer (224 px for
            DINOv2, 256 px for patch 16), a pyramid the size it was trained at.
        layers: to read; -1 is the end, after the final norm.

    Raises:
        LumitokError: an unknown name, weights that cannot be had, or a size that does not fit.
    """
    if isinstance(spec, EncoderConfig):
        encoder = FoundationEncoder(spec)
    else:
        name, _, file = spec.partition("=")
        config = EncoderConfig(name=name, weights=file or None, layers=list(layers))
        scale = (side or _usual_side(config)) / size
        encoder = FoundationEncoder(config.model_copy(update={"scale": scale}))
    try:
        encoder.check_size(size, size)
    except LumitokError as error:
        if isinstance(spec, EncoderConfig):
            raise
        raise LumitokError(
            f"{error}; or choose the side at which encoders see the pictures, a multiple of {encoder.patch}, "
            "with --encoder-side"
        ) from error
    return encoder


@torch.no_grad()
def gather_features(
    pictures: PictureSource,
    places: Sequence[int],
    representations: Sequence[Representation],
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    changed: Collection[str] = (),
    scaled: Scaled = "back",
    seed: int = SEED,
    advance: Callable[[int], None] | None = None,
) -> Gathered:
    """Gather the mean-pooled features of pictures, divided among the processes, in the order of ``places``.

    Args:
        pictures: what to read.
        places: of the pictures in the listing; the i-th of them is changed as picture i.
        representations: networks whose blocks' names differ; all see the same pixels.
        batch_size: pictures at a time.
        device: where the networks are.
        changed: blocks whose features of the changed pictures are wanted too; empty: nothing is changed.
        scaled: see :func:`lumitok.evaluation.perturbations.perturb`.
        seed: of the changes.
        advance: called with the number of pictures after each batch.

    Raises:
        LumitokError: two blocks have one name, or nothing could be read.
    """
    number = {place: i for i, place in enumerate(places)}
    views = [UNCHANGED, *change_names()] if changed else [UNCHANGED]

    def work() -> _Part:
        rows: dict[tuple[str, str], list[Tensor]] = {}
        found: list[int] = []
        bad: list[BadPicture] = []
        mine = [places[i] for i in share(len(places))]
        for pixels, read in pictures.batches(mine, batch_size, bad.append) if mine else ():
            numbers = [number[int(place)] for place in read]
            groups = {UNCHANGED: [Group(pixels, torch.arange(len(pixels)))]}
            if changed:
                groups |= perturb(pixels, numbers, seed=seed, scaled=scaled)
            for i, view in enumerate(views):
                draws = [n * len(change_names()) + n + i for n in numbers]
                wanted = None if view == UNCHANGED else changed
                for name, values in _pooled(representations, groups[view], draws, wanted, device):
                    rows.setdefault((view, name), []).append(values)
            found += numbers
            if advance is not None:
                advance(len(numbers))
        tables = {key: torch.cat(values).numpy() for key, values in rows.items()}
        return tables, [places[n] for n in found], bad

    return _merged(together(work))


def check_names(blocks: Iterable[str]) -> None:
    """Raise a LumitokError where two blocks have one name."""
    seen: set[str] = set()
    for name in blocks:
        if name in seen:
            raise LumitokError(f"two representations have a block called '{name}'; give one of them only")
        seen.add(name)


def _pooled(
    representations: Sequence[Representation],
    groups: Sequence[Group],
    draws: Sequence[int],
    wanted: Collection[str] | None,
    device: torch.device | str,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each block's mean over positions (B, C) on the CPU, groups of other sizes put in their places."""
    pooled: dict[str, Tensor] = {}
    for group in groups:
        pixels = group.pixels.to(device).float() / 255
        numbers = [draws[place] for place in group.places.tolist()]
        blocks = [block for one in representations for block in one.blocks(pixels, numbers)]
        check_names(name for name, _ in blocks)
        for name, tokens in blocks:
            if wanted is not None and name not in wanted:
                continue
            values = tokens.float().mean(dim=1).cpu()
            pooled.setdefault(name, values.new_empty(len(draws), values.shape[1]))[group.places] = values
    yield from pooled.items()


def _merged(parts: Sequence[_Part]) -> Gathered:
    """Put the processes' rows together, in the order of the processes."""
    faults = [fault for _, _, found in parts for fault in found]
    features: dict[str, dict[str, Tensor]] = {}
    for view, name in dict.fromkeys(key for own, _, _ in parts for key in own):
        arrays = [own[view, name] for own, _, _ in parts if (view, name) in own]
        features.setdefault(view, {})[name] = torch.from_numpy(np.concatenate(arrays))
    if not features:
        raise LumitokError(f"none of the pictures could be read ({len(faults)} are bad); check the data")
    return Gathered(features, [place for _, own, _ in parts for place in own], faults)


def _usual_side(config: EncoderConfig) -> int:
    with torch.device("meta"):
        encoder = FoundationEncoder(config, load_weights=False)
    if hasattr(encoder.model, "patch_embed"):
        return _GRID * encoder.patch
    return fitting_side(int(encoder.model.pretrained_cfg["input_size"][-1]), encoder.patch)


def _tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)."""
    return maps.flatten(2).transpose(1, 2)


def _mix(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
