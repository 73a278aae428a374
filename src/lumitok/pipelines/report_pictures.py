"""The sections of a report that are looked at: reconstructions, moments, the pyramid, latents in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lumitok.evaluation.markup import Figure
from lumitok.evaluation.pictures import to_pil
from lumitok.evaluation.report import Report
from lumitok.pipelines.evaluate_layers import KIND as LAYERS
from lumitok.pipelines.information import Information
from lumitok.pipelines.report_album import ERROR_GAIN, Album, Look, Shown, error_of, psnr_of, read_examples
from lumitok.pipelines.report_runs import Run

PLACES = 6
"""Pictures side by side at most, where one set of columns would leave room."""
WITH_ERRORS = 3
"""Up to so many runs have their errors beside them; more would be too small to see."""
MOMENT_PICTURES = (8, 4)
"""Pictures shown at three moments: of one run alone, and of each of several."""


def _figures(pictures: Tensor, alt: str, captions: Sequence[str] = ()) -> list[Figure]:
    texts = captions or [""] * len(pictures)
    return [
        Figure(to_pil(picture), text, f"{alt}, picture {i + 1}", pixelated=True)
        for i, (picture, text) in enumerate(zip(pictures, texts, strict=True))
    ]


def _side_by_side(
    report: Report, columns: Sequence[tuple[str, list[Figure]]], label: str = "", caption: str = ""
) -> None:
    """Columns of equally many pictures, repeated to the right while there is room."""
    repeats = max(1, min(PLACES // len(columns), len(columns[0][1])))
    headings = [heading for heading, _ in columns] * repeats
    figures = list(zip(*(pictures for _, pictures in columns), strict=True))
    rows: list[tuple[str, list[Figure | None]]] = []
    for start in range(0, len(figures), repeats):
        row: list[Figure | None] = [
            figure for several in figures[start : start + repeats] for figure in several
        ]
        rows.append((label if start == 0 else "", row + [None] * (len(headings) - len(row))))
    report.comparison(headings, rows, caption)


def add_reconstructions(report: Report, album: Album, *, alone: bool) -> None:
    """Add every set of pictures with what the runs make of it; ``alone``: the report is of one run."""
    if not (album.shown or album.notes):
        return
    report.section(
        "Reconstructions",
        "The picture passes through the latent only, the posterior's mean: nothing else reaches the decoder. "
        "Under each its PSNR, of 8-bit pictures."
        + (f" The error is |input - reconstruction|, {ERROR_GAIN} times as bright." if album.shown else ""),
    )
    sizes = {shown.inputs.shape[-1] for shown in album.shown}
    several = len({shown.name for shown in album.shown}) < len(album.shown)
    if several:
        report.text(
            "Not all runs have the same pictures or the same size"
            f"{' (' + ', '.join(f'{side} px' for side in sorted(sizes)) + ')' if len(sizes) > 1 else ''}: "
            "those that have stand together, and PSNR compares only within one set of rows."
        )
    for shown in album.shown:
        columns = [("Input", _figures(shown.inputs, "input"))]
        for name, look in shown.looks.items():
            heading = "Reconstruction" if alone else name
            values = [f"{value:.2f} dB" for value in psnr_of(look.outputs, shown.inputs)]
            columns.append((heading, _figures(look.outputs, name, values)))
            if len(shown.looks) <= WITH_ERRORS:
                error = error_of(look.outputs, shown.inputs)
                columns.append(("Error", _figures(error, f"error of {name}")))
        _side_by_side(report, columns, caption=f"{_set_title(shown)}.")
    for note in album.notes:
        report.text(note)


def _set_title(shown: Shown) -> str:
    side = shown.inputs.shape[-1]
    return f"{shown.name[:1].upper()}{shown.name[1:]}, {side} x {side} px"


def add_moments(report: Report, runs: Sequence[Run]) -> None:
    """Add the same pictures at three moments of each training."""
    kept = [run for run in runs if run.examples]
    if not kept:
        return
    report.section(
        "Three moments",
        "A held-out picture, then what the tokenizer makes of it early, later and last.",
    )
    for run in kept:
        chosen = three_moments(run.examples)
        columns = [("Input", run.path / "examples" / "input")]
        columns += [(f"Step {int(folder.name.removeprefix('step-')):,}", folder) for folder in chosen]
        read = [(heading, read_examples(folder)) for heading, folder in columns]
        count = min(MOMENT_PICTURES[len(runs) > 1], *(len(pictures) for _, pictures in read))
        if count:
            shown = [(heading, _figures(pictures[:count], heading)) for heading, pictures in read]
            _side_by_side(report, shown, label="" if len(runs) == 1 else run.name)


def three_moments(examples: Sequence[Path]) -> Sequence[Path]:
    """Choose the first, an early and the last of a run's examples; all where they are fewer."""
    if len(examples) < 3:
        return examples
    return [examples[0], examples[len(examples) // 3], examples[-1]]


def add_resolutions(report: Report, album: Album) -> None:
    """Add what each block of a decoder shows, where it shows something."""
    found = [
        (shown, name, look) for shown in album.shown for name, look in shown.looks.items() if look.pyramid
    ]
    if not found:
        return
    report.section(
        "An image at every resolution",
        "Each block of the decoder doubles the size and shows an image of its own; all of them are trained "
        "against the picture at that size (VFM-VAE, Eq. 6).",
    )
    for shown, name, look in found:
        pictures = [to_pil(image[0]) for image in look.pyramid]
        figures = [Figure(p, f"{p.width} px", pixelated=True) for p in pictures]
        original = Figure(to_pil(shown.inputs[0]), "input", pixelated=True)
        report.figures([*figures, original], columns=len(figures) + 1)
        sides = ", ".join(f"{picture.width} px" for picture in pictures)
        whose = "" if len(shown.looks) == 1 and len({n for _, n, _ in found}) == 1 else f"{name}: "
        report.text(
            f"{whose}{'one' if whose else 'One'} of the {shown.name}, at {sides}, scaled to one size."
        )


def add_latents(report: Report, album: Album, information: Mapping[str, Information], *, alone: bool) -> None:
    """Add latents and encoders' features in colour; ``alone``: the report is of one run."""
    if not any(look.latent is not None for shown in album.shown for look in shown.looks.values()):
        return
    shown_names = {
        name for shown in album.shown for name, look in shown.looks.items() if look.latent is not None
    }
    shapes = {name: latent_shape(i) for name, i in information.items() if name in shown_names}
    which = (
        f"The latent of {next(iter(shapes.values()))}"
        if len(shapes) == 1
        else f"Latents ({'; '.join(f'{name}: {shape}' for name, shape in shapes.items())})"
    )
    report.section(
        "The latent in colour",
        f"{which} and the last map of the foundation encoder, each shown by its first three principal "
        "components as red, green and blue, fitted jointly over a row. Like colours are like latents: figure "
        "parts from ground, and parts of one kind share a colour. A latent's components stand in the order "
        "and with the signs that bring them nearest to the encoder's colours.",
    )
    for shown in album.shown:
        rows: list[tuple[str, Sequence[Figure | None]]] = [("input", _figures(shown.inputs, "input"))]
        for name, look in shown.looks.items():
            rows += _latent_rows(rows, name, look, alone=alone)
        columns = [f"{i + 1}" for i in range(len(shown.inputs))]
        report.comparison(columns, rows, f"{_set_title(shown)}.")


def _latent_rows(
    before: Sequence[tuple[str, Any]], name: str, look: Look, *, alone: bool
) -> list[tuple[str, list[Figure]]]:
    """The encoder's features where no run above has shown them, then the latent."""
    if look.latent is None:
        return []
    encoder, rows = f"features of {look.encoder}", []
    if look.features is not None and encoder not in [label for label, _ in before]:
        rows.append((encoder, _figures(look.features, encoder)))
    latent = "latent" if alone else f"latent of {name}"
    rows.append((latent, _figures(look.latent, latent)))
    if alone:
        rows.append(("reconstruction", _figures(look.outputs, "reconstruction")))
    return rows


def latent_shape(information: Information) -> str:
    """Channels, rows and columns in words."""
    latent = information.latent
    return f"{latent['channels']} channels, {latent['height']} x {latent['width']}"


def add_evaluation_pictures(report: Report, runs: Sequence[Run]) -> None:
    """Add the PNG files that lie beside the results, each with its name."""
    # The report draws networks over their depth itself, all in one plot.
    layers = {stem for run in runs for stem, results in run.results.items() if results.kind == LAYERS}
    names = {path.stem for run in runs for path in run.pictures} - layers
    if not names:
        return
    report.section("Pictures of the evaluations", "As the evaluations wrote them, beside their results.")
    for name in sorted(names):
        for run in runs:
            for path in [path for path in run.pictures if path.stem == name]:
                report.figure(path, name if len(runs) == 1 else f"{name}: {run.name}")
