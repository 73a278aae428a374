"""Latents to look at: in colour beside the encoder's features, between two pictures, and as plots.

What a plot shows is taken from the tables of an evaluation, so that a report can draw it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from lumitok.errors import LumitokError, nearest
from lumitok.evaluation.curves import Series
from lumitok.evaluation.density import DensityMap
from lumitok.evaluation.image_quality import to_uint8
from lumitok.evaluation.pictures import align_colors, grid, latent_pca
from lumitok.evaluation.plots import Plot, channels_plot, directions_plot, scatter_plot, spectrum_plot
from lumitok.evaluation.results import Results, default_path
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers import Tokenizer

Interpolation = Literal["linear", "spherical"]
PATHS: tuple[Interpolation, ...] = get_args(Interpolation)
FRACTIONS = (0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)
_FRACTION_NAMES = ("0", "1/6", "1/3", "1/2", "2/3", "5/6", "1")
CELL = 160
"""Side of a picture on a sheet, in pixels."""

WORDS = {
    "latents-pca": "Input, the encoder's features and the latents (posterior's mean), each by its own "
    "first three principal components, fitted jointly over these; the latents' colours are exchanged "
    "and inverted as a whole to come near to the features'.",
    "interpolation": "Decoded latents between two pictures' (posterior's means), on the linear and on the "
    "spherical path, and above them the pixels' own blend.",
    "spectrum": "Radially averaged power of the whitened latents and of the pictures' brightness.",
    "channels": "Mean and standard deviation of each latent channel; near-dead ones are hollow.",
    "directions": "Share of the variance of each principal direction of the channels.",
    "density": "Latents laid out by t-SNE, one position a picture, and how dense they lie there.",
}
"""What each picture shows, by the beginning of its file's name."""
WITHOUT_FEATURES = (
    "Input and the latents (posterior's mean), by their first three principal components, fitted jointly "
    "over these."
)
"""What ``latents-pca`` shows of a tokenizer without a foundation encoder."""

_PARALLEL = 1e-4  # Radians; below it the spherical path is the linear one to rounding.


def interpolate(start: Tensor, end: Tensor, fraction: float, how: Interpolation) -> Tensor:
    """Return a latent between two.

    ``linear``: (1 - t) start + t end. ``spherical``: along the great circle between the two taken as
    vectors of all channels and positions, about the origin (Shoemake 1985; White 2016, arXiv 1609.04468).

    Args:
        start: (C, h, w), raw.
        end: the same shape.
        fraction: t, 0 to 1.
        how: which path.

    Returns:
        (C, h, w).

    Raises:
        LumitokError: shapes that differ, an unknown path, or two latents without one great circle
            between them: one is zero, or they are opposite.
    """
    if start.shape != end.shape:
        raise LumitokError(
            f"two latents of one shape are wanted, got {tuple(start.shape)}, {tuple(end.shape)}"
        )
    if how == "linear":
        return torch.lerp(start, end, fraction)
    if how != "spherical":
        raise LumitokError(
            f"unknown interpolation '{how}', choose one of {', '.join(PATHS)}{nearest(how, PATHS)}"
        )
    lengths = start.double().norm(), end.double().norm()
    if not all(float(length) > 0 for length in lengths):
        raise LumitokError("a latent that is zero everywhere has no direction; interpolate linearly")
    one, other = (z.double() / length for z, length in zip((start, end), lengths, strict=True))
    # atan2 keeps the digits that arccos loses at small angles.
    angle = 2 * torch.atan2((one - other).norm(), (one + other).norm())
    if float(angle) < _PARALLEL:
        return torch.lerp(start, end, fraction)
    if float(torch.pi - angle) < _PARALLEL:
        raise LumitokError("opposite latents have no one great circle between them; interpolate linearly")
    weights = ((1 - fraction) * angle).sin() / angle.sin(), (fraction * angle).sin() / angle.sin()
    return (weights[0] * start.double() + weights[1] * end.double()).to(start.dtype)


@torch.no_grad()
def interpolation_sheet(tokenizer: Tokenizer, pictures: Tensor, *, scheme: str = "light") -> Image.Image:
    """Decode what lies between the latents of two pictures, for each pair of neighbours in a batch.

    Three rows a pair: the pixels themselves blended, for comparison, then the decoded latents between
    the posteriors' means, on the linear and on the spherical path.

    Args:
        tokenizer: decodes them.
        pictures: uint8 (2 k, 3, H, W), of the tokenizer's size; pictures 0 and 1 are a pair, 2 and 3 ...
        scheme: ``light`` or ``dark`` ground.

    Raises:
        LumitokError: no pair of pictures.
    """
    if len(pictures) < 2:
        raise LumitokError(f"an interpolation needs two pictures, got {len(pictures)}")
    sheets = []
    for first in range(0, len(pictures) - 1, 2):
        pair = pictures[first : first + 2]
        start, end = tokenizer.encode(_to_model(pair, tokenizer)).latent_dist.mode()
        rows = [[torch.lerp(pair[0].float(), pair[1].float(), t).round().byte() for t in FRACTIONS]]
        for how in PATHS:
            between = torch.stack([interpolate(start, end, t, how) for t in FRACTIONS])
            rows.append(list(to_uint8(tokenizer.decode(between).sample).cpu()))
        labels = ["pixels", *PATHS]
        sheets.append(grid(rows, columns=_FRACTION_NAMES, labels=labels, cell=CELL, scheme=scheme))
    whole = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)))
    for number, sheet in enumerate(sheets):
        whole.paste(sheet, (0, number * sheet.height))
    return whole


@torch.no_grad()
def pca_sheet(tokenizer: Tokenizer, pictures: Tensor, *, scheme: str = "light") -> Image.Image:
    """Show pictures, the encoder's features and the latents, as AlignTok's Figure 7.

    Features and latents (posteriors' means) each by their own first three principal components, fitted
    jointly over the pictures; the latents' colours are exchanged and inverted as a whole to come near
    to the features' (see :func:`~lumitok.evaluation.pictures.align_colors`). Of the encoder's layers
    that the tokenizer reads, the deepest is shown whose grid is not coarser than the latent's. A tokenizer
    without a foundation encoder has no features to show, and no colours to come near to.

    Args:
        tokenizer: gives the latents.
        pictures: uint8 (N, 3, H, W), of the tokenizer's size.
        scheme: ``light`` or ``dark`` ground.
    """
    x = _to_model(pictures, tokenizer)
    latents = tokenizer.encode(x).latent_dist.mode()
    colored, maps, labels = latent_pca(latents), [], ["input"]
    if (encoder := tokenizer.foundation) is not None:
        features, layer = _features(encoder, x, rows=latents.shape[-2])
        maps.append(latent_pca(features))
        colored = align_colors(colored, maps[0])
        labels.append(f"{encoder.name}\nlayer {layer}")
    maps.append(colored)
    labels.append(f"latent\n{latents.shape[1]} channels")
    rows = [list(pictures), *(list(to_uint8(one, low=0.0, high=1.0)) for one in maps)]
    return grid(rows, labels=labels, cell=CELL, scheme=scheme)


def _features(encoder: FoundationEncoder, x: Tensor, rows: int) -> tuple[Tensor, int]:
    """The feature maps to hold against a latent of so many rows, and their layer."""
    maps = encoder(((x + 1) / 2).to(encoder.dtype)).maps
    layers = encoder.config.layers
    fine = [index for index, one in enumerate(maps) if one.shape[-2] >= rows]
    chosen = fine[-1] if fine else max(range(len(maps)), key=lambda index: maps[index].shape[-2])
    return maps[chosen].float(), layers[chosen]


def _to_model(pictures: Tensor, tokenizer: Tokenizer) -> Tensor:
    return pictures.to(tokenizer.device).float() / 127.5 - 1.0


def write_latent_pictures(
    tokenizer: Tokenizer,
    shown: Tensor,
    ends: Tensor,
    results: Results,
    maps: Sequence[DensityMap],
    out: Path,
) -> dict[str, str]:
    """Write everything there is to look at as PNG files, named as the results are by default.

    Another set of pictures, another count or another latent leaves other files.

    Args:
        tokenizer: that was evaluated.
        shown: uint8 (N, 3, H, W), pictures to show in colour.
        ends: uint8 (2 k, 3, H, W), pairs of pictures to go between.
        results: of the evaluation.
        maps: of the latents' density; the first is drawn. May be empty.
        out: folder, made if need be.

    Returns:
        For each file's name what it shows, in words.
    """
    measurement = default_path(out, results).stem.removeprefix(f"{results.kind}-")
    words = dict(WORDS)
    if tokenizer.foundation is None:
        words["latents-pca"] = WITHOUT_FEATURES
    written = {}

    def path(name: str) -> Path:
        found = out / f"{name}-{measurement}.png"
        written[found.name] = words[name]
        return found

    out.mkdir(parents=True, exist_ok=True)
    pca_sheet(tokenizer, shown).save(path("latents-pca"))
    interpolation_sheet(tokenizer, ends).save(path("interpolation"))
    plots = latent_plots(results)
    if maps:
        first = maps[0]
        figures = first.uniformity
        note = f"CV {figures.cv:.3f}   Gini {figures.gini:.3f}   entropy {figures.entropy:.4f}"
        plots["density"] = scatter_plot(first.points, first.density, note)
    for name, plot in plots.items():
        path(name).write_bytes(plot.png())
    return written


def latent_plots(results: Results) -> dict[str, Plot]:
    """Draw what an evaluation of latents has found, by name: spectrum, channels, directions.

    Args:
        results: as :func:`~lumitok.pipelines.evaluate_latents.evaluate_latents` returns or ``Results.load``
            reads them.

    Raises:
        LumitokError: they are of another kind.
    """
    tables = results.tables
    if results.kind != "latents" or not {"spectrum", "channels", "eigenvalues"} <= tables.keys():
        raise LumitokError(
            f"these are results of the kind '{results.kind}' and have no latents to draw; evaluate "
            "the latents first"
        )
    channels, spectrum = tables["channels"], tables["spectrum"]
    lines = [_line(name, spectrum[name]) for name in ("latent", "pictures")]
    return {
        "spectrum": spectrum_plot([line for line in lines if line.steps], noise=spectrum["white noise"]),
        "channels": channels_plot(channels["mean"], channels["std"], channels["near-dead"]),
        "directions": directions_plot(tables["eigenvalues"], results["effective rank"]),
    }


def _line(name: str, curve: dict[str, Any]) -> Series:
    """A spectrum without the frequencies that hold no power: they have no logarithm."""
    points = [(f, p) for f, p in zip(curve["frequency"], curve["power"], strict=True) if p > 0]
    return Series(name, [f for f, _ in points], [p for _, p in points])
