"""Points of a few lines, with names that fit wherever they stand."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from lumitok.errors import LumitokError
from lumitok.evaluation.curves import Series
from lumitok.evaluation.points_plot import points_plot


def size(lines: list[Series]) -> tuple[int, int]:
    found: tuple[int, int] = Image.open(io.BytesIO(points_plot(lines, title="FID", xlabel="x").png())).size
    return found


def test_long_names_stand_below_in_a_higher_figure() -> None:
    short = [Series(name, [1, 2.5, 3], [4, 2, 3]) for name in "ab"]
    long = [Series(name * 40, [1, 2.5, 3], [4, 2, 3]) for name in "ab"]
    width, height = size(short)
    assert size(long) > (width, height)
    assert size(long)[0] == width


def test_names_and_ticks_are_there() -> None:
    plot = points_plot([Series("mine", [0, 20_000, 80_000], [9, 4, 3])], title="FID", xlabel="step", note="n")
    drawn = plot.svg()
    for text in ("mine", "FID", "step", "20k"):
        assert f">{text}<" in drawn
    with pytest.raises(LumitokError, match="at least one line"):
        points_plot([Series("mine", [], [])], title="", xlabel="")
