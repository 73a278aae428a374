"""Line plots of a run's history, as SVG for the report or PNG for everything else.

A history is a file of JSON lines, one record a line::

    {"step": 500, "images": 16000, "stage": "joint", "kind": "train", "values": {"loss/l1": 0.08}}
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumitok.errors import LumitokError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Line colours that stay apart from each other, also for most colour-blind readers, on each ground.
COLORS = {
    "light": ("#1f6fb4", "#c8541b", "#2b8a5b", "#8a55b8", "#b28600", "#b83a6b", "#3d8c99", "#6b7280"),
    "dark": ("#6cb2f0", "#f0925c", "#67c796", "#bd96e6", "#dcb53f", "#ee82a8", "#70c3d0", "#a2a9b4"),
}
GREYS = {  # Text, quiet text, rules and ground.
    "light": ("#1c1c1c", "#636363", "#e3e3e3", "#ffffff"),
    "dark": ("#e8e8e8", "#a0a0a0", "#333333", "#181818"),
}


@dataclass(frozen=True)
class Series:
    """One line of a plot: ``values[i]`` at ``steps[i]``, with the name that the legend shows."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


def read_history(path: Path | str) -> list[dict[str, Any]]:
    """Read the records of a ``history.jsonl``.

    A last line without its line break is one that the run is writing at this moment, and is left out.

    Raises:
        LumitokError: there is no such file, or a line is not a record.
    """
    path = Path(path)
    if not path.is_file():
        raise LumitokError(f"there is no history at '{path}'; give the folder of a run that has begun")
    records: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n") or not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise LumitokError(f"{path}, line {number}: not JSON ({error}); remove the line") from error
        if not (isinstance(record, dict) and {"step", "values"} <= record.keys()):
            raise LumitokError(f"{path}, line {number}: a record needs 'step' and 'values'; remove the line")
        records.append(record)
    return records


def value_names(records: Iterable[Mapping[str, Any]], kind: str | None = None) -> list[str]:
    """Return the names of all values in the records, in the order in which they first appear."""
    return list(dict.fromkeys(n for r in records if kind in (None, r.get("kind")) for n in r["values"]))


def series(
    records: Iterable[Mapping[str, Any]],
    name: str,
    *,
    kind: str | None = None,
    label: str | None = None,
    against: str = "step",
) -> Series:
    """Take one value out of the records.

    A run that was resumed has some steps twice; the later record counts. Values that are null or not
    finite stay as gaps in the line.

    Args:
        records: as :func:`read_history` returns them.
        name: the value, for example ``loss/l1``.
        kind: only records of this kind (``train`` or ``validation``); ``None``: all.
        label: what the legend shows; ``None``: ``name``.
        against: the horizontal axis, ``step`` or ``images``.

    Raises:
        LumitokError: no record has the value.
    """
    records = [record for record in records if kind in (None, record.get("kind"))]
    points: dict[float, float] = {}
    for record in records:
        if name in record["values"]:
            value = record["values"][name]
            points[float(record[against])] = math.nan if value is None else float(value)
    if not points:
        raise LumitokError(f"no record holds a value '{name}'{nearest(name, value_names(records))}")
    steps = sorted(points)
    return Series(label or name, steps, [points[step] for step in steps])


def plot_svg(
    lines: Sequence[Series],
    *,
    title: str = "",
    log: bool = False,
    xlabel: str = "step",
    unit: str = "",
    smooth: int = 1,
) -> str:
    """Draw lines over steps as an SVG that follows the page it is put into.

    Text and axes take ``currentColor``, lines take the CSS variables ``--series-1`` to ``--series-8``
    (with the light colours where a page does not set them), so one drawing serves light and dark.
    The same lines give the same text, byte for byte.

    Args:
        lines: one or more; several runs of one value are several lines with the runs' names.
        title: over the plot, at its left.
        log: logarithmic vertical axis; values that are not positive are gaps.
        xlabel: name of the horizontal axis.
        unit: unit of the vertical axis, for example ``dB``.
        smooth: draw the mean of this many points up to each one, over the points themselves, faint.

    Returns:
        SVG text.
    """
    return svg_text(_draw(lines, title, log, xlabel, unit, smooth, "light", transparent=True), title)


def svg_text(figure: Figure, title: str) -> str:
    """Return a figure drawn in the light scheme as an SVG that follows the page, see :func:`plot_svg`."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title or "lumitok"}):
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r"<defs>\s*<style.*?</defs>", "", text, count=1, flags=re.DOTALL
    )  # It would reach the page.
    text = text.replace("<svg ", '<svg stroke-linejoin="round" ', 1)
    text = re.sub(r'font: ((?:bold|\d+) )?([\d.]+)px [^;"]*|font-family: [^;"]*', _font_style, text)
    for index, color in enumerate(COLORS["light"]):
        text = text.replace(color, f"var(--series-{index + 1}, {color})")
    ink, quiet, rule, _ = GREYS["light"]
    text = text.replace(ink, "currentColor").replace(quiet, f"var(--quiet, {quiet})")
    return text.replace(rule, f"var(--rule, {rule})")


def _font_style(match: re.Match[str]) -> str:
    """The page's own typeface in place of the one the drawing was measured with."""
    size = f"font-size: {match[2]}px; " if match[2] else ""
    weight = "font-weight: 600; " if match[1] else ""
    return f"{weight}{size}font-family: inherit"


def plot_png(
    lines: Sequence[Series],
    *,
    title: str = "",
    log: bool = False,
    xlabel: str = "step",
    unit: str = "",
    smooth: int = 1,
    scheme: str = "light",
) -> bytes:
    """Draw the plot of :func:`plot_svg` as a PNG of 1056 by 636 pixels on a light or dark ground.

    Raises:
        LumitokError: an unknown scheme, or nothing to draw.
    """
    if scheme not in COLORS:
        raise LumitokError(f"unknown scheme '{scheme}'; choose one of {', '.join(COLORS)}")
    return png_bytes(_draw(lines, title, log, xlabel, unit, smooth, scheme, transparent=False))


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as a PNG, the same bytes every time."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=240, metadata={"Software": None})
    return out.getvalue()


def _draw(
    lines: Sequence[Series],
    title: str,
    log: bool,
    xlabel: str,
    unit: str,
    smooth: int,
    scheme: str,
    *,
    transparent: bool,
) -> Figure:
    from matplotlib.figure import Figure

    if not lines:
        raise LumitokError("a plot needs at least one line, got none")
    ink, quiet, rule, ground = GREYS[scheme]
    named = len(lines) > 1 or lines[0].label != title
    figure = Figure(figsize=(4.4, 2.65), facecolor="none" if transparent else ground)
    left, right, low, high = 0.118, 0.872, 0.175, 0.785 if named else 0.85
    axes = figure.add_axes((left, low, right - left, high - low), facecolor="none")
    ends = _add_lines(axes, lines, log, smooth, COLORS[scheme])
    _set_axes(axes, log and bool(ends), xlabel, quiet, rule)
    _label_ends(figure, axes, ends)
    start = 0.006
    figure.text(start, 0.935, title, fontsize=10.5, fontweight="bold", color=ink, va="center")
    figure.text(0.988, 0.935, unit, fontsize=8.5, color=quiet, va="center", ha="right")
    if named:
        _legend(figure, lines, scheme, start, ink)
    return figure


def _add_lines(
    axes: Any, lines: Sequence[Series], log: bool, smooth: int, colors: Sequence[str]
) -> list[tuple[float, str, str]]:
    """Draw the lines; return each one's last value, its colour and its text."""
    ends = []
    for index, line in enumerate(lines):
        color = colors[index % len(colors)]
        shown = [v if math.isfinite(v) and (v > 0 or not log) else math.nan for v in line.values]
        if smooth > 1:
            axes.plot(line.steps, shown, color=color, linewidth=1, alpha=0.3, solid_joinstyle="round")
            shown = _running_mean(shown, smooth)
        axes.plot(
            line.steps, shown, color=color, linewidth=1.5, solid_joinstyle="round", solid_capstyle="round"
        )
        last = next(
            (p for p in zip(line.steps[::-1], shown[::-1], strict=True) if not math.isnan(p[1])), None
        )
        if last:
            axes.plot(*last, "o", color=color, markersize=3.6, clip_on=False, markeredgewidth=0)
            ends.append((last[1], color, _short(last[1], pad=True)))
    return ends


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of up to ``width`` values that end at each one; gaps stay gaps and count for nothing."""
    means = []
    for end, value in enumerate(values, start=1):
        window = [v for v in values[max(0, end - width) : end] if not math.isnan(v)]
        means.append(math.nan if math.isnan(value) else math.fsum(window) / len(window))
    return means


def _set_axes(axes: Any, log: bool, xlabel: str, quiet: str, rule: str) -> None:
    """Few round ticks, a grid line at each height, no frame."""
    from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axes.margins(x=0.0, y=0.08)
    if log:
        axes.set_yscale("log")
        axes.autoscale_view()
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(*axes.get_ylim())))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.autoscale_view()  # Now, so that the last values find their places.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", which="major", color=rule, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(rule)
    axes.tick_params(which="both", length=0, labelsize=8.5, labelcolor=quiet, pad=5)
    axes.set_xlabel(xlabel, fontsize=8.5, color=quiet, loc="right", labelpad=2)


def _label_ends(figure: Figure, axes: Any, ends: list[tuple[float, str, str]]) -> None:
    """Write each line's last value beside its end, pushed apart where they would touch."""
    height, low = axes.get_position().height, axes.get_position().y0
    places = []
    for value, color, text in ends:
        y = axes.transAxes.inverted().transform(axes.transData.transform((0, value)))[1]
        places.append([low + height * min(1.0, max(0.0, float(y))), color, text])
    places.sort(key=lambda place: place[0])
    for one, other in itertools.pairwise(places):
        other[0] = max(other[0], one[0] + 0.066)
    for y, color, text in places:
        figure.text(0.888, y, text, fontsize=8.5, color=color, va="center", fontweight="bold")


def _legend(figure: Figure, lines: Sequence[Series], scheme: str, left: float, ink: str) -> None:
    from matplotlib.lines import Line2D

    colors = itertools.cycle(COLORS[scheme])
    # A line without a point only keeps its colour from the others.
    shown = [(line.label, color) for line, color in zip(lines, colors, strict=False) if line.steps]
    handles = [Line2D([], [], color=color, linewidth=2) for _, color in shown]
    figure.legend(
        handles, [label for label, _ in shown], loc="upper left", bbox_to_anchor=(left - 0.006, 0.9),
        ncols=max(1, min(4, len(shown))), frameon=False, fontsize=8.5, labelcolor=ink, handlelength=1.1,
        handletextpad=0.5, columnspacing=1.4, borderaxespad=0, borderpad=0.3,
    )  # fmt: skip


def _log_ticks(low: float, high: float) -> list[float]:
    """Return between three and seven round values of a logarithmic axis, each with its own grid line."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        every = max(1, len(decades) // 6) if digits == (1,) else 1
        ticks = [digit * 10.0**power for power in decades[::every] for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks
    return [low + (high - low) * part for part in (0.1, 0.5, 0.9)]


def _short(value: float, *, pad: bool = False) -> str:
    """Three significant digits, no exponent where that is readable; ``pad`` keeps zeros at the end."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    value = float(f"{value:.3g}")
    text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text and not pad else text
