"""A drawing of a few measured points a line, each of them marked: a sweep, or values over depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lumitok.errors import LumitokError
from lumitok.evaluation.curves import COLORS, GREYS, Series
from lumitok.evaluation.plots import _SMALL, Plot, _canvas, _cycle, _style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEIGHT, _LEFT, _RIGHT = 2.65, 0.118, 0.985
_ROW = 0.19  # Inches of a row of names.
_PER_ROW = 4
_LETTERS = 62  # What fits over the axes in one line of names.
_DASHES = ("-", "--", ":", "-.")


def points_plot(lines: Sequence[Series], *, title: str, xlabel: str, note: str = "") -> Plot:
    """Draw lines with a dot at each point.

    Args:
        lines: their points in the order of ``steps``.
        title: over the plot, at its left.
        xlabel: name of the horizontal axis.
        note: at its right, such as the unit.

    Raises:
        LumitokError: there is no point.
    """
    if not any(line.steps for line in lines):
        raise LumitokError("a plot needs at least one line with a point in it")

    def draw(scheme: str) -> Figure:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        height, margins, where = _layout(lines)
        figure, axes = _canvas(title, note, scheme, height=height, margins=margins)
        for index, (line, color) in enumerate(zip(lines, _cycle(scheme), strict=False)):
            dashes = _DASHES[index // len(COLORS[scheme]) % len(_DASHES)]
            axes.plot(
                line.steps, line.values, dashes, marker="o", color=color, linewidth=1.5, markersize=3.6,
                markeredgewidth=0, label=line.label, zorder=3,
            )  # fmt: skip
        axes.margins(x=0.03, y=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        _style(axes, xlabel, scheme)
        axes.legend(
            **where, frameon=False, fontsize=_SMALL, labelcolor=GREYS[scheme][0], handlelength=1.4,
            handletextpad=0.5, columnspacing=1.4,
        )  # fmt: skip
        return figure

    return Plot(title, draw)


def _layout(
    lines: Sequence[Series],
) -> tuple[float, tuple[float, float, float, float], dict[str, Any]]:
    """Height in inches, the axes' left, right, low and high, and the legend's place.

    Names stand over the axes where one row of them fits, else below, in a figure that is the higher for it.
    """
    letters = [len(line.label) for line in lines]
    if len(lines) <= _PER_ROW and sum(letters) + 4 * len(lines) <= _LETTERS:
        where = {"loc": "lower left", "bbox_to_anchor": (-0.145, 1.01), "ncols": _PER_ROW}
        return _HEIGHT, (_LEFT, _RIGHT, 0.175, 0.785), where
    columns = max(1, min(_PER_ROW, _LETTERS // (max(letters) + 4)))
    below = _ROW * math.ceil(len(lines) / columns)
    height = _HEIGHT - 0.17 + below  # No row over the axes.
    margins = (_LEFT, _RIGHT, (0.46 + below) / height, 1 - 0.4 / height)
    place = (-0.145, -(0.4 + below) / (height - 0.86 - below))  # In parts of the axes' height.
    return height, margins, {"loc": "lower left", "bbox_to_anchor": place, "ncols": columns}


def _tick(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
