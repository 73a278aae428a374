"""Pictures for people to look at: latents in colour, sheets of comparisons, the decoder's pyramid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from lumitok.errors import LumitokError

Picture = Image.Image | Tensor
"""A PIL image, or a uint8 tensor (3, H, W) as :func:`~lumitok.evaluation.image_quality.to_uint8` makes."""


def latent_pca(
    latents: Tensor, fit_on: Tensor | None = None, *, percentiles: tuple[float, float] = (1.0, 99.0)
) -> Tensor:
    """Show latents in colour by their first three principal components.

    The components are fitted jointly over all images and positions, so one colour means one thing
    in every image. The sign of a component, which is arbitrary, is fixed: its loading of largest
    size is positive. Each component is then stretched between two percentiles and clipped.

    Args:
        latents: (N, C, h, w).
        fit_on: (M, C, h', w') latents that the components, the signs and the percentiles come from,
            so that several calls share their colours; ``None``: ``latents`` themselves.
        percentiles: the two percentiles that become 0 and 1.

    Returns:
        (N, 3, h, w) float32 on the CPU, in [0, 1]. A component that does not vary (also a third one of
        two channels) is 0.5 throughout.

    Raises:
        LumitokError: a shape does not fit, or a value is NaN or infinite.
    """
    source = latents if fit_on is None else fit_on
    if latents.ndim != 4 or source.ndim != 4 or latents.shape[1] != source.shape[1] or not source.numel():
        raise LumitokError(
            f"expected latents (N, C, h, w) with equal C, got {tuple(latents.shape)} and, to fit on, "
            f"{tuple(source.shape)}"
        )
    count, channels, height, width = latents.shape
    fitted = source.detach().double().cpu().movedim(1, -1).reshape(-1, channels)
    shown = latents.detach().double().cpu().movedim(1, -1).reshape(-1, channels)
    if not (bool(torch.isfinite(fitted).all()) and bool(torch.isfinite(shown).all())):
        raise LumitokError("the latents hold NaN or infinite values; the model that made them has diverged")
    mean = fitted.mean(dim=0)
    components = _principal_components(fitted - mean)
    low, high = np.percentile(((fitted - mean) @ components).numpy(), percentiles, axis=0)
    spread = torch.from_numpy(high - low)
    varies = spread > 1e-9 * float(fitted.std(correction=0) + fitted.abs().max())
    scaled = ((shown - mean) @ components - torch.from_numpy(low)) / torch.where(varies, spread, 1.0)
    colors = torch.full((shown.shape[0], 3), 0.5, dtype=torch.float64)
    colors[:, : scaled.shape[1]] = torch.where(varies, scaled.clamp(0, 1), 0.5)
    return colors.reshape(count, height, width, 3).permute(0, 3, 1, 2).float()


def align_colors(pictures: Tensor, to: Tensor) -> Tensor:
    """Exchange and invert the colours of PCA pictures so that they come nearest to other ones.

    The order of like-strong components is arbitrary and so are their signs: without this, one structure
    may show in green here and in magenta there. Each colour stays one component; the channels are
    exchanged and inverted as a whole, the same way in all pictures.

    Args:
        pictures: (N, 3, h, w) in [0, 1], as :func:`latent_pca` makes them.
        to: (N, 3, h', w') in [0, 1] of the same N pictures.

    Returns:
        (N, 3, h, w): of the 48 ways, the one of the largest summed correlation with ``to``.

    Raises:
        LumitokError: the two are not of the same pictures.
    """
    if pictures.ndim != 4 or to.ndim != 4 or pictures.shape[:2] != to.shape[:2] or pictures.shape[1] != 3:
        raise LumitokError(
            f"expected two batches (N, 3, h, w) of N pictures, got {tuple(pictures.shape)} and "
            f"{tuple(to.shape)}"
        )
    to = F.interpolate(to.double(), size=tuple(pictures.shape[2:]), mode="bilinear", antialias=True)
    mine, theirs = (colors.double().movedim(1, 0).flatten(1) for colors in (pictures, to))
    # A colour that does not vary correlates with nothing: 0, not NaN.
    both = torch.corrcoef(torch.cat([mine, theirs])).nan_to_num()[:3, 3:]
    best = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(float(both[k, i])) for i, k in enumerate(order)),
    )
    chosen = pictures[:, list(best)]
    inverted = torch.tensor([float(both[k, i]) < 0 for i, k in enumerate(best)]).view(1, 3, 1, 1)
    return torch.where(inverted, 1.0 - chosen, chosen)


def _principal_components(centred: Tensor) -> Tensor:
    """Return up to three unit directions (C, k), strongest first, each with its largest loading positive."""
    _, directions = torch.linalg.eigh(centred.T @ centred / centred.shape[0])
    directions = directions.flip(1)[:, :3]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    oriented: Tensor = directions * torch.where(largest < 0, -1.0, 1.0)
    return oriented


@dataclass(frozen=True)
class _Scheme:
    background: tuple[int, int, int]
    ink: tuple[int, int, int]


_SCHEMES = {  # Neutral greys: a tint around a picture changes how its colours are seen.
    "light": _Scheme((250, 250, 250), (64, 64, 64)),
    "dark": _Scheme((24, 24, 24), (196, 196, 196)),
}


def to_pil(picture: Picture) -> Image.Image:
    """Return a picture as an RGB PIL image.

    Raises:
        LumitokError: a tensor is not uint8 or not of shape (3, H, W).
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
        raise LumitokError(
            f"expected a uint8 picture (3, H, W), got {picture.dtype} {tuple(picture.shape)}; round it with "
            "lumitok.evaluation.image_quality.to_uint8 first"
        )
    return Image.fromarray(picture.permute(1, 2, 0).cpu().contiguous().numpy())


def resized(picture: Picture, width: int, height: int) -> Image.Image:
    """Resize to be looked at: nearest when it grows (pixels stay visible), Lanczos when it shrinks."""
    image = to_pil(picture)
    if image.size == (width, height):
        return image
    grows = width >= image.width and height >= image.height
    return image.resize((width, height), Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)


def grid(
    rows: Sequence[Sequence[Picture | None]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    cell: int | None = None,
    scheme: str = "light",
) -> Image.Image:
    """Compose a labelled sheet of pictures, one cell a picture, for a PNG file or TensorBoard.

    Args:
        rows: pictures row by row; ``None`` leaves a cell empty. Rows may differ in length.
        columns: a heading over each column, or nothing.
        labels: a name left of each row, of one line or several, or nothing.
        cell: side in pixels of a cell; ``None``: the longest side among the pictures. Each picture
            is scaled to fill its cell with its shape kept.
        scheme: ``light`` or ``dark`` ground.

    Returns:
        An RGB image.

    Raises:
        LumitokError: no picture at all, labels that do not fit in number, or an unknown scheme.
    """
    images = [[None if picture is None else to_pil(picture) for picture in row] for row in rows]
    sides = [max(image.size) for row in images for image in row if image is not None]
    if not sides:
        raise LumitokError("a sheet needs at least one picture, got none")
    wide = max(len(row) for row in images)
    for given, wanted, name in ((columns, wide, "column"), (labels, len(images), "row")):
        if given and len(given) != wanted:
            raise LumitokError(f"got {len(given)} labels for {wanted} {name}s; give one label a {name}")
    side = cell or max(sides)
    colors, font = _scheme(scheme), _font(side)
    gap, margin, line = max(4, side // 32), max(8, side // 12), round(1.7 * font.size)
    left = margin + (
        round(max(font.getlength(line) for label in labels for line in label.split("\n"))) + margin
        if labels
        else 0
    )
    top = margin + (line if columns else 0)
    size = (left + wide * (side + gap) - gap + margin, top + len(images) * (side + gap) - gap + margin)
    sheet = Image.new("RGB", size, colors.background)
    draw = ImageDraw.Draw(sheet)
    for x, text in enumerate(columns):
        fitted = _shorten(text, font, side)
        draw.text((left + x * (side + gap), margin), fitted, font=font, fill=colors.ink)
    for y, row in enumerate(images):
        middle = top + y * (side + gap) + side // 2
        if labels:
            draw.text((margin, middle), labels[y], font=font, fill=colors.ink, anchor="lm")
        for x, image in enumerate(row):
            if image is not None:
                scale = side / max(image.size)
                shown = resized(image, *(max(1, round(length * scale)) for length in image.size))
                corner = (left + x * (side + gap), middle - side // 2)
                sheet.paste(
                    shown, (corner[0] + (side - shown.width) // 2, corner[1] + (side - shown.height) // 2)
                )
    return sheet


def pyramid_sheet(
    images: Sequence[Picture], *, same_size: bool = False, scheme: str = "light"
) -> Image.Image:
    """Put one picture at every resolution side by side, small to large, each with its size under it.

    Args:
        images: the picture at each resolution, as ``decode(z, pyramid=True).pyramid`` gives them for one
            sample, after ``to_uint8``.
        same_size: scale each to the largest by repeating its pixels; otherwise every picture keeps
            its true size and stands on one line.
        scheme: ``light`` or ``dark`` ground.

    Returns:
        An RGB image.

    Raises:
        LumitokError: no picture, or an unknown scheme.
    """
    pictures = [to_pil(image) for image in images]
    if not pictures:
        raise LumitokError("a pyramid needs at least one picture, got none")
    largest = max(pictures, key=lambda picture: picture.width)
    names = [f"{picture.width} px" for picture in pictures]
    shown = [resized(picture, *largest.size) for picture in pictures] if same_size else pictures
    colors, font = _scheme(scheme), _font(largest.width)
    gap, margin, line = max(8, largest.width // 16), max(8, largest.width // 12), round(1.7 * font.size)
    widths = [max(p.width, round(font.getlength(n))) for p, n in zip(shown, names, strict=True)]
    size = (2 * margin + sum(widths) + gap * (len(shown) - 1), 2 * margin + largest.height + line)
    sheet = Image.new("RGB", size, colors.background)
    draw = ImageDraw.Draw(sheet)
    x, ground = margin, margin + largest.height
    for picture, name, width in zip(shown, names, widths, strict=True):
        sheet.paste(picture, (x, ground - picture.height))
        draw.text((x, ground + line // 3), name, font=font, fill=colors.ink)
        x += width + gap
    return sheet


def _scheme(name: str) -> _Scheme:
    if name not in _SCHEMES:
        raise LumitokError(f"unknown scheme '{name}'; choose one of {', '.join(_SCHEMES)}")
    return _SCHEMES[name]


def _font(side: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, large enough to read beside cells of this side."""
    font = ImageFont.load_default(size=min(32, max(12, side // 14)))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise LumitokError("this Pillow was built without FreeType; install Pillow's own wheel")
    return font


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a heading that would run into the next column."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
