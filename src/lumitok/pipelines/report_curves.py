"""Curves over training: one plot a value, one line a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lumitok.evaluation.curves import COLORS, Series, plot_svg, series, value_names
from lumitok.evaluation.markup import Figure
from lumitok.evaluation.report import Report
from lumitok.pipelines.report_runs import Run

TITLES = {
    "total": "Total, weighted",
    "l1": "L1",
    "multi_resolution_l1": "L1 at every resolution",
    "lpips": "LPIPS",
    "ssim": "SSIM loss",
    "vf": "VF loss",
    "kl": "KL, nats a picture",
    "gan": "Adversarial",
    "discriminator": "Discriminator",
    "patchgan": "Adversarial, PatchGAN",
    "patch_discriminator": "PatchGAN discriminator",
    "feature_matching": "Feature matching",
    "preservation": "Preservation of the latent",
    "velocity": "Velocity, mean square error",
    "cosine": "Velocity, 1 - cosine",
    "alignment": "Alignment with the encoder",
    "class_token": "Class token's velocity",
    "tokenizer_alignment": "Alignment, in the tokenizer's objective",
}
MEASURED = {
    "psnr": ("PSNR", "dB"),
    "ssim": ("SSIM", ""),
    "l1": ("L1", ""),
    "lpips": ("LPIPS", ""),
    "vf": ("VF loss", ""),
}
"""Titles and units of what is measured on held-out pictures."""
FEATURE_DISTANCE = "feature-distance/"
NOT_DRAWN = ("images_per_second", "skipped_steps", "vf_distance", "vf_cosine")
"""What the history keeps for a closer look; gradients too, and the weights that follow from them."""
LOGARITHMIC = ("l1", "multi_resolution_l1")
MOST_LINES = len(COLORS["light"])
LEGEND_LETTERS = 62
"""What fits over a plot in one line of names."""
POINTS = 60
"""More points than this are drawn as a running mean over the points themselves."""


def add_curves(report: Report, runs: Sequence[Run]) -> None:
    """Add the section of curves, where a run has a history."""
    drawn = [run for run in runs if run.history]
    if not drawn:
        return
    labels = _labels(drawn)
    report.section(
        "Curves",
        f"Over the {_seen(drawn)} seen. Losses are shown before "
        "weighting, as means of the steps since the point before"
        + (
            "."
            if all(run.network_alone for run in drawn)
            else "; what was held out is measured with the averaged weights, as each run's recipe says."
        )
        + ("" if labels == [r.name for r in drawn] else f" Lines: {_key(drawn, labels)}."),
    )
    report.figures([*_validation(drawn, labels), *_training(drawn, labels)])


def _labels(runs: Sequence[Run]) -> list[str]:
    """The runs' names, or numbers where the names would not fit over a plot."""
    names = [run.name for run in runs]
    if len(names) <= 4 and sum(len(name) + 4 for name in names) <= LEGEND_LETTERS:
        return names
    return [str(number) for number in range(1, len(names) + 1)]


def _key(runs: Sequence[Run], labels: Sequence[str]) -> str:
    return ", ".join(f"{label} {run.name}" for run, label in zip(runs, labels, strict=True))


def _validation(runs: Sequence[Run], labels: Sequence[str]) -> list[Figure]:
    """One plot a metric; of several runs, one a metric and held-out set."""
    metrics: dict[str, dict[str, None]] = {}
    for run in runs:
        for name in value_names(run.history, "validation"):
            part, metric = split_name(name)
            if metric != "count":
                metrics.setdefault(metric, {}).setdefault(part)
    figures = []
    for metric in sorted(metrics, key=_order):
        title, unit = _measured(metric)
        parts = list(metrics[metric])
        if len(runs) == 1:
            lines = [
                _line(runs[0], _join(part, metric), "validation", part or f"{title}, held out")
                for part in parts
            ]
            figures += _plots(lines, [runs[0]] * len(lines), f"{title}, held out", unit)
            continue
        for part in parts:
            lines = [
                _line(run, _join(part, metric), "validation", label)
                for run, label in zip(runs, labels, strict=True)
            ]
            figures += _plots(lines, runs, f"{title}, {part or 'held out'}", unit)
    return figures


def _training(runs: Sequence[Run], labels: Sequence[str]) -> list[Figure]:
    names = dict.fromkeys(name for run in runs for name in value_names(run.history, "train"))
    figures = []
    for name in names:
        if name in NOT_DRAWN or "gradient" in name or name.endswith("_weight"):
            continue
        title = TITLES.get(name, name)
        if name.startswith(FEATURE_DISTANCE):
            title = f"Feature distance, {name.removeprefix(FEATURE_DISTANCE)}"
        alone = len(runs) == 1
        lines = [
            _line(run, name, "train", title if alone else label)
            for run, label in zip(runs, labels, strict=True)
        ]
        figures += _plots(lines, runs, title, "", log=name in LOGARITHMIC)
    return figures


def split_name(name: str) -> tuple[str, str]:
    """Part the name of a held-out value into its set and its metric: ``photos/psnr``, or ``psnr``."""
    head, slash, tail = name.partition(FEATURE_DISTANCE)
    if slash:
        return head.rstrip("/"), slash + tail
    part, _, metric = name.rpartition("/")
    return part, metric


def _join(part: str, metric: str) -> str:
    return f"{part}/{metric}" if part else metric


def _measured(metric: str) -> tuple[str, str]:
    if metric.startswith(FEATURE_DISTANCE):
        return "Feature distance", ""
    return MEASURED.get(metric, (metric, ""))


def _order(metric: str) -> tuple[int, str]:
    known = list(MEASURED)
    return (known.index(metric) if metric in known else len(known), metric)


def _line(run: Run, name: str, kind: str, label: str) -> Series:
    """The values over images; an empty line where the run has none, so that each keeps its colour."""
    if name not in value_names(run.history, kind):
        return Series(label, [], [])
    return series(run.history, name, kind=kind, label=label, against="images")


def _plots(
    lines: Sequence[Series], runs: Sequence[Run], title: str, unit: str, *, log: bool = False
) -> list[Figure]:
    """One plot, or several where there are more lines than colours; ``runs``: whose each line is."""
    figures = []
    for start in range(0, len(lines), MOST_LINES):
        some = lines[start : start + MOST_LINES]
        seen = _seen(run for run, line in zip(runs[start:], some, strict=False) if line.steps)
        if not seen:
            continue
        smooth = max(1, max(len(line.steps) for line in some) // POINTS)
        svg = plot_svg(some, title=title, unit=unit, xlabel=seen, log=log, smooth=smooth)
        figures.append(Figure(svg, alt=f"{title} over the {seen} seen"))
    return figures


def _seen(runs: Iterable[Run]) -> str:
    """What runs are trained on, each kind once."""
    return " or ".join(dict.fromkeys(run.seen for run in runs))
