"""Drawings of a latent space in the style of the curves: spectrum, channels, principal directions, t-SNE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lumitok.errors import LumitokError
from lumitok.evaluation.curves import COLORS, GREYS, Series, png_bytes, svg_text

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_SMALL = 8.5
_PIXELS = 240  # Dots an inch of what an SVG holds as pixels.


@dataclass(frozen=True)
class Plot:
    """A drawing, to be had as SVG that follows its page, or as PNG on a light or dark ground."""

    title: str
    draw: Callable[[str], Figure]
    """Scheme -> figure."""

    def svg(self) -> str:
        """Return SVG text, see :func:`~lumitok.evaluation.curves.plot_svg`."""
        figure = self.draw("light")
        figure.set_facecolor("none")
        return svg_text(figure, self.title)

    def png(self, scheme: str = "light") -> bytes:
        """Return a PNG, 1056 pixels wide.

        Raises:
            LumitokError: an unknown scheme.
        """
        if scheme not in COLORS:
            raise LumitokError(f"unknown scheme '{scheme}'; choose one of {', '.join(COLORS)}")
        return png_bytes(self.draw(scheme))


def spectrum_plot(lines: Sequence[Series], *, noise: float | None = None, title: str = "Spectrum") -> Plot:
    """Draw power over frequency, both axes logarithmic.

    Args:
        lines: ``steps`` are frequencies in cycles a picture, ``values`` the share of power of a mode.
        noise: level of white noise on the latent grid, drawn as a broken line.
        title: over the plot.

    Raises:
        LumitokError: no line, or a frequency or power that is not positive.
    """
    if not lines or any(not line.steps for line in lines):
        raise LumitokError("a spectrum needs at least one line with a point in it")
    for line in lines:
        if not all(0 < value < math.inf for value in (*line.steps, *line.values)):
            raise LumitokError(
                f"'{line.label}' has frequencies or powers that are not positive and finite; they have no "
                "place on logarithmic axes"
            )

    def draw(scheme: str) -> Figure:
        figure, axes = _canvas(title, "share of power of a mode", scheme, named=True)
        for line, color in zip(lines, _cycle(scheme), strict=False):
            axes.loglog(line.steps, line.values, color=color, linewidth=1.5, label=line.label, zorder=3)
            if len(line.steps) <= 16:
                axes.plot(
                    line.steps, line.values, "o", color=color, markersize=3, markeredgewidth=0, zorder=3
                )
        if noise is not None:
            end = max(lines[0].steps)
            axes.plot([1, end], [noise, noise], color=GREYS[scheme][1], linewidth=1, dashes=(3, 2),
                      label="white noise")  # fmt: skip
        _log_ticks(axes.xaxis, plain=True)
        _log_ticks(axes.yaxis, plain=False)
        _style(axes, "cycles a picture", scheme)
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.145, 1.01), ncols=4, frameon=False, fontsize=_SMALL,
            labelcolor=GREYS[scheme][0], handlelength=1.4, handletextpad=0.5, columnspacing=1.4,
        )  # fmt: skip
        return figure

    return Plot(title, draw)


def channels_plot(
    mean: Sequence[float], std: Sequence[float], dead: Sequence[bool], *, title: str = "Channels"
) -> Plot:
    """Draw each channel's mean as a dot and one standard deviation up and down as a bar.

    Args:
        mean: of C channels.
        std: of the same.
        dead: which of them are near-dead; they are drawn hollow and grey.
        title: over the plot.

    Raises:
        LumitokError: lists that differ in length, or are empty.
    """
    if not (len(mean) == len(std) == len(dead) > 0):
        raise LumitokError(
            f"got {len(mean)} means, {len(std)} standard deviations and {len(dead)} marks; give one of "
            "each a channel"
        )

    def draw(scheme: str) -> Figure:
        note = f"{sum(dead)} of {len(dead)} near-dead" if any(dead) else "mean ± standard deviation"
        figure, axes = _canvas(title, note, scheme)
        _, quiet, rule, _ = GREYS[scheme]
        axes.axhline(0, color=quiet, linewidth=0.8, zorder=1)
        size = min(4.0, max(1.6, 160 / len(mean)))
        for channel, (centre, spread, is_dead) in enumerate(zip(mean, std, dead, strict=True)):
            color = quiet if is_dead else COLORS[scheme][0]
            axes.plot([channel] * 2, [centre - spread, centre + spread], color=color, linewidth=size * 0.45,
                      alpha=0.55, solid_capstyle="round", zorder=2)  # fmt: skip
            axes.plot(channel, centre, "o", markersize=size, markeredgecolor=color, markeredgewidth=1,
                      markerfacecolor="none" if is_dead else color, zorder=3)  # fmt: skip
        axes.set_xlim(-0.8, len(mean) - 0.2)
        _linear_ticks(axes)
        _style(axes, "channel", scheme)
        axes.grid(axis="y", color=rule, linewidth=0.8)
        return figure

    return Plot(title, draw)


def directions_plot(
    eigenvalues: Sequence[float], rank: float, *, title: str = "Principal directions"
) -> Plot:
    """Draw the share of variance of each principal direction, with the effective rank marked.

    Args:
        eigenvalues: of the channel covariance, largest first.
        rank: effective rank.
        title: over the plot.

    Raises:
        LumitokError: no eigenvalue, or none that is positive.
    """
    total = sum(eigenvalues)
    if not total > 0:
        raise LumitokError("the eigenvalues of a covariance have a positive sum; these do not")

    def draw(scheme: str) -> Figure:
        figure, axes = _canvas(title, "% of the variance", scheme)
        rule = GREYS[scheme][2]
        shares = [100 * value / total for value in eigenvalues]
        places = range(1, len(shares) + 1)
        axes.bar(places, shares, width=0.72, color=COLORS[scheme][0], linewidth=0, zorder=2)
        axes.axvline(rank, color=COLORS[scheme][1], linewidth=1.5, zorder=3)
        to_right = rank < 0.6 * len(shares)
        axes.annotate(
            f"effective rank {rank:.1f}", (rank, 0.97), xycoords=("data", "axes fraction"),
            xytext=(5 if to_right else -5, 0), textcoords="offset points", va="top",
            ha="left" if to_right else "right", fontsize=_SMALL, fontweight="bold", color=COLORS[scheme][1],
        )  # fmt: skip
        axes.set_xlim(0.3, len(shares) + 0.7)
        _linear_ticks(axes)
        _style(axes, "direction, strongest first", scheme)
        axes.grid(axis="y", color=rule, linewidth=0.8)
        return figure

    return Plot(title, draw)


def scatter_plot(
    points: npt.ArrayLike, density: npt.ArrayLike, note: str = "", *, title: str = "Latents by t-SNE"
) -> Plot:
    """Draw points in the plane, coloured by how dense it is where they lie.

    The axes of a t-SNE mean nothing and are not drawn. In an SVG the points are pixels: ten thousand
    circles would be megabytes.

    Args:
        points: (n, 2).
        density: (n,).
        note: figures to print beside the title.
        title: over the plot.

    Raises:
        LumitokError: shapes that do not fit, or values that are not finite.
    """
    where, dense = np.asarray(points, dtype=np.float64), np.asarray(density, dtype=np.float64)
    if where.ndim != 2 or where.shape[1] != 2 or dense.shape != where.shape[:1] or not len(where):
        raise LumitokError(f"expected points (n, 2) and n densities, got {where.shape} and {dense.shape}")
    if not (np.isfinite(where).all() and np.isfinite(dense).all()):
        raise LumitokError("points or densities are NaN or infinite")

    def draw(scheme: str) -> Figure:
        figure, axes = _canvas(title, note, scheme, height=4.4, margins=(0.02, 0.98, 0.075, 0.915))
        order = np.argsort(dense, kind="stable")  # The dense parts on top.
        size = min(14.0, max(1.2, 9000 / len(where)))
        axes.scatter(
            *where[order].T, c=dense[order], s=size, cmap=_colormap(scheme), linewidths=0, rasterized=True
        )
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.03)
        axes.axis("off")
        _key(figure, scheme)
        return figure

    return Plot(title, draw)


def _colormap(scheme: str) -> Colormap:
    """Viridis, without the end that would sink into the ground."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    low, high = {"light": (0.0, 0.93), "dark": (0.22, 1.0)}[scheme]
    return ListedColormap(colormaps["viridis"](np.linspace(low, high, 256)))


def _key(figure: Figure, scheme: str) -> None:
    """A strip of the colours from sparse to dense."""
    quiet = GREYS[scheme][1]
    strip = figure.add_axes((0.4, 0.035, 0.2, 0.014))
    strip.imshow(np.linspace(0, 1, 128)[None], aspect="auto", cmap=_colormap(scheme))
    strip.axis("off")
    for x, text, side in ((0.385, "sparse", "right"), (0.615, "dense", "left")):
        figure.text(x, 0.041, text, fontsize=_SMALL, color=quiet, va="center", ha=side)


def _canvas(
    title: str,
    note: str,
    scheme: str,
    *,
    height: float = 2.65,
    named: bool = False,
    margins: tuple[float, float, float, float] | None = None,
) -> tuple[Figure, Any]:
    """A figure with its title at the left, a note at the right, and axes under them."""
    from matplotlib.figure import Figure

    ink, quiet, _, ground = GREYS[scheme]
    figure = Figure(figsize=(4.4, height), facecolor=ground, dpi=_PIXELS)
    left, right, low, high = margins or (0.118, 0.985, 0.175, 0.785 if named else 0.85)
    axes = figure.add_axes((left, low, right - left, high - low), facecolor="none")
    line = 1 - 0.172 / height  # The same distance from the top in inches, whatever the height.
    figure.text(0.006, line, title, fontsize=10.5, fontweight="bold", color=ink, va="center")
    figure.text(0.988, line, note, fontsize=_SMALL, color=quiet, va="center", ha="right")
    return figure, axes


def _cycle(scheme: str) -> list[str]:
    return list(COLORS[scheme]) * 8


def _style(axes: Any, xlabel: str, scheme: str) -> None:
    _, quiet, rule, _ = GREYS[scheme]
    axes.grid(axis="y", which="major", color=rule, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(rule)
    axes.tick_params(which="both", length=0, labelsize=_SMALL, labelcolor=quiet, pad=5)
    axes.set_xlabel(xlabel, fontsize=_SMALL, color=quiet, loc="right", labelpad=2)


def _linear_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 4, 5, 8, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def _log_ticks(axis: Any, *, plain: bool) -> None:
    """Powers of two for frequencies, of ten for power."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=2.0 if plain else 10.0, numticks=9 if plain else 6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _level(value, plain=plain)))


def _level(value: float, *, plain: bool) -> str:
    return f"{value:g}" if plain or value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
