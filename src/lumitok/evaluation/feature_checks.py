"""What a matrix of features must be before a distance is taken from it."""

from __future__ import annotations

import torch
from torch import Tensor

from lumitok.errors import LumitokError


def check_features(
    features: Tensor, name: str, *, minimum: int = 2, why: str = "", dim: int | None = None
) -> None:
    """Refuse features that no distribution can be judged by.

    Args:
        features: one row an image (n, d), floating point.
        name: what they are of, for the message, such as ``reference``.
        minimum: the fewest images that will do.
        why: says, for the message, what needs so many.
        dim: the d they must have; None takes any.

    Raises:
        LumitokError: another shape, type or d; too few images; NaN or infinity; all rows equal.
    """
    check_matrix(features, name, dim=dim)
    if len(features) < minimum:
        raise LumitokError(
            f"the {name} features are of {len(features)} image(s), at least {minimum} are needed"
            f"{why and ' for '}{why}; give more images"
        )
    low, high = extremes(features, name)
    if bool((low == high).all()):
        raise_constant(name, len(features))


def check_matrix(features: Tensor, name: str, *, dim: int | None = None) -> None:
    """Refuse what is not a floating-point matrix (n, d), or has another d than ``dim``."""
    if features.ndim != 2 or not features.is_floating_point() or not features.shape[1]:
        raise LumitokError(
            f"the {name} features are {features.dtype} of shape {tuple(features.shape)}, wanted floating "
            "point (images, dimensions); give one row of features an image"
        )
    if dim is not None and features.shape[1] != dim:
        raise LumitokError(
            f"the {name} features have {features.shape[1]} dimensions, wanted {dim}; features can only be "
            "compared where one extractor made both"
        )


def extremes(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of each dimension, (d,) both.

    Raises:
        LumitokError: a value is NaN or infinite.
    """
    low, high = torch.aminmax(features.detach(), dim=0)  # NaN comes through both; nothing n x d is made.
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        wrong = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
        raise LumitokError(
            f"the {name} features of {len(wrong)} of {len(features)} images are NaN or infinite, the first "
            f"at index {int(wrong[0])}; look at these images, and run the extractor in float32"
        )
    return low, high


def raise_constant(name: str, count: int) -> None:
    """Say that features do not vary, which leaves nothing to measure."""
    raise LumitokError(
        f"the {name} features of all {count} images are equal, wanted features that vary; the images are "
        "one image over and over, or the extractor's weights are broken"
    )
