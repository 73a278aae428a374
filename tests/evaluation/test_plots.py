"""Drawings read as the text and the pixels they are."""

from __future__ import annotations

import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lumitok.errors import LumitokError
from lumitok.evaluation.curves import COLORS, Series
from lumitok.evaluation.plots import Plot, channels_plot, directions_plot, scatter_plot, spectrum_plot

POINTS = np.random.default_rng(0).normal(size=(50, 2))
PLOTS = {
    "spectrum": spectrum_plot(
        [
            Series("latent", [1, 2, 4], [0.1, 0.02, 0.005]),
            Series("pictures", [1, 2, 4, 8], [0.2, 0.03, 1e-3, 1e-5]),
        ],
        noise=0.01,
    ),
    "channels": channels_plot([0.0, 1.0, -1.0], [1.0, 2.0, 0.001], [False, False, True]),
    "directions": directions_plot([3.0, 1.0], 1.75),
    "scatter": scatter_plot(POINTS, np.arange(50.0), "CV 0.5"),
}


def texts(svg: str) -> set[str]:
    return {e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")}


def uses(svg: str, color: str) -> list[tuple[float, float]]:
    """Places of the markers of one colour."""
    return [
        (float(e.get("x", "")), float(e.get("y", "")))
        for e in ElementTree.fromstring(svg).iter()
        if e.tag.endswith("}use") and e.get("x") and color in e.get("style", "")
    ]


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())
def test_every_plot_in_both_forms_and_schemes(plot: Plot) -> None:
    assert plot.svg() == plot.svg()
    assert plot.title in texts(plot.svg())
    corners = {}
    for scheme in COLORS:
        with Image.open(io.BytesIO(plot.png(scheme))) as image:
            assert image.width == 1056
            pixels = np.asarray(image.convert("L"))
        corners[scheme] = pixels[0, 0]
        assert pixels.std() > 3
    assert corners["light"] == 255
    assert corners["dark"] < 40
    with pytest.raises(LumitokError, match="unknown scheme 'night'"):
        plot.png("night")


@pytest.mark.parametrize("name", ["spectrum", "channels", "directions"])
def test_drawings_follow_the_page(name: str) -> None:
    svg = PLOTS[name].svg()
    assert not re.search(r"(?<!, )#[0-9a-f]{6}\b", svg)
    assert "currentColor" in svg


def test_a_spectrum_is_straight_on_its_axes_where_it_is_a_power_law() -> None:
    law = Series("law", [1, 2, 4, 8], [1.0, 0.25, 0.0625, 0.015625])
    places = np.array(uses(spectrum_plot([law]).svg(), "series-1"))
    assert len(places) == 4
    steps = np.diff(places, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-3)
    assert steps[0, 1] > 0  # Downwards.
    svg = PLOTS["spectrum"].svg()
    assert {"latent", "pictures", "white noise", "cycles a picture", "8", "0.1", "1e-5"} <= texts(svg)


def test_what_has_no_place_on_logarithmic_axes() -> None:
    for steps, values in (([0.0, 1.0], [1.0, 1.0]), ([1.0], [0.0]), ([1.0], [math.nan])):
        with pytest.raises(LumitokError, match="not positive and finite"):
            spectrum_plot([Series("x", steps, values)])
    with pytest.raises(LumitokError, match="at least one line"):
        spectrum_plot([])
    with pytest.raises(LumitokError, match="at least one line"):
        spectrum_plot([Series("x", [], [])])


def test_channels_and_which_are_near_dead() -> None:
    svg = PLOTS["channels"].svg()
    assert {"1 of 3 near-dead", "channel"} <= texts(svg)
    places = uses(svg, "series-1")
    assert len(places) == 2
    assert places[0][1] > places[1][1]  # A larger mean stands higher.
    assert "mean ± standard deviation" in texts(channels_plot([0.0], [1.0], [False]).svg())
    for lists in (([0.0], [1.0, 2.0], [False]), ([], [], [])):
        with pytest.raises(LumitokError, match="each a channel"):
            channels_plot(*lists)  # type: ignore[arg-type]


def test_directions_and_their_rank() -> None:
    svg = PLOTS["directions"].svg()
    assert {"effective rank 1.8", "% of the variance", "direction, strongest first"} <= texts(svg)
    with pytest.raises(LumitokError, match="positive sum"):
        directions_plot([0.0, 0.0], 1.0)


def test_the_scatter_is_coloured_by_density() -> None:
    where = np.array([[-1.0, 0.0], [1.0, 0.0]])
    png = scatter_plot(where, [0.0, 1.0]).png()
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    middle = pixels[150:950]  # Between the title and the key.
    sides = [half[(half.sum(axis=2) < 700)].mean(axis=0) for half in np.split(middle, 2, axis=1)]
    assert sides[0][2] > sides[0][1]  # Sparse: violet.
    assert sides[1][1] > sides[1][2]  # Dense: towards yellow.
    assert {"sparse", "dense", "CV 0.5"} <= texts(PLOTS["scatter"].svg())


def test_ten_thousand_points_stay_a_small_drawing() -> None:
    points = np.random.default_rng(0).normal(size=(10_000, 2))
    assert len(scatter_plot(points, np.ones(10_000)).svg()) < 600_000


@pytest.mark.parametrize(
    ("points", "density"),
    [(np.zeros((3, 3)), np.ones(3)), (np.zeros((3, 2)), np.ones(2)), (np.zeros((0, 2)), np.ones(0))],
)
def test_points_that_do_not_fit(points: np.ndarray, density: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(LumitokError, match=r"points \(n, 2\)"):
        scatter_plot(points, density)
    with pytest.raises(LumitokError, match="NaN or infinite"):
        scatter_plot(POINTS, np.full(50, math.nan))
