"""What the demo ends with: a page on all that it made, and sheets of pictures beside it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch

from lumitok import __version__
from lumitok.data.demo_pictures import DemoPictures
from lumitok.evaluation.pictures import grid, pyramid_sheet
from lumitok.evaluation.report import Report
from lumitok.pipelines.demo_diffusion import DemoDiffusion
from lumitok.pipelines.demo_diffusion_report import add_samples
from lumitok.pipelines.information import inform
from lumitok.pipelines.report import PICTURES, Material, compose
from lumitok.pipelines.report_album import Shown, make_album, read_examples
from lumitok.pipelines.report_numbers import group_results
from lumitok.pipelines.report_pictures import three_moments
from lumitok.pipelines.report_runs import Run, open_runs

PICTURE_SIDE = 96
"""Side in pixels of the pictures on disk; training crops squares of them."""
CELL = 96
"""Side in pixels of a picture on the sheets."""
CREDITS = (
    "Drawings: OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0. Photos: the sample photos of "
    "scikit-image; CREDITS.txt beside the pictures names their makers. Encoder: EfficientNet-Lite0, trained "
    "on ImageNet."
)
TITLE = "Two tokenizers and a diffusion network trained on this machine"
SUBTITLE = (
    "VFM-VAE reads a frozen foundation encoder through a decoder made for it. AlignTok turns the encoder "
    "itself into the tokenizer's: in stage 1 it is frozen, and what it has left out of a picture cannot come "
    "back; in stage 2 it is trained for the details, held near its stage-1 latents. AlignTok's latents have "
    "twice as many numbers here. Every reconstruction below is of a picture that neither was trained on."
)


def write_report(page: Path, shown: Mapping[str, Path], diffusion: DemoDiffusion) -> None:
    """Write the page, and beside it the sheets.

    Args:
        page: the HTML file.
        shown: by their names: folders of finished runs that were measured, and of such checkpoints.
        diffusion: the network trained on the latents of one of them, and its samples.
    """
    pictures = diffusion.pictures
    material = _gather(shown, [pictures.held_out_drawings, pictures.held_out_photos])
    report = compose(material, title=TITLE, subtitle=SUBTITLE)
    add_samples(report, diffusion)
    _add_demo(report, pictures)
    _write_sheets(page.parent, material)
    report.write(page)


def _gather(shown: Mapping[str, Path], data: list[Path]) -> Material:
    opened = open_runs(list(shown.values()))
    runs = [replace(_as_far(run), name=name) for name, run in zip(shown, opened, strict=True)]
    return Material(
        runs=runs,
        groups=group_results(runs),
        album=make_album(runs, data, PICTURES),
        # A checkpoint on the way costs what the finished run does.
        information={run.name: inform(str(run.tokenizer)) for run in runs if run.history},
    )


def _as_far(run: Run) -> Run:
    """Leave out of the recipe of a checkpoint the stages that came after it."""
    if run.history or run.recipe is None or run.tokenizer_step is None:
        return run
    stages = run.recipe.stages
    ends = accumulate(stage.images // stage.batch_size for stage in stages)
    done = [stage for stage, end in zip(stages, ends, strict=True) if end <= run.tokenizer_step]
    return replace(run, recipe=run.recipe.model_copy(update={"stages": done}))


def _add_demo(report: Report, pictures: DemoPictures) -> None:
    """Add what holds of this demo alone: where its pictures come from, and the machine."""
    report.section("Pictures and machine", CREDITS)
    report.facts(
        {
            "Command": "lumitok demo",
            "Pictures to train on": sum(pictures.counts["train"].values()),
            "lumitok": __version__,
            "PyTorch": torch.__version__,
            "Machine": f"{_processor()}, {torch.get_num_threads()} threads, {platform.system()}",
        }
    )
    counts = ", ".join(f"{name} {count}" for name, count in pictures.counts["train"].items())
    report.text(
        f"Drawn at {PICTURE_SIDE} px. Classes of the training pictures: {counts}. Held out are drawings of "
        "which no variant is trained on, and the photos of a cat and of coffee, whole."
    )


def _processor() -> str:
    """Name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------------------
# Sheets


def _write_sheets(folder: Path, material: Material) -> None:
    """Write the report's pictures as PNG files."""
    for run in material.runs:
        if run.examples:
            _moments(run, folder / f"moments-{run.path.name}.png")
    for shown in material.album.shown:
        _side_by_side(shown, folder / f"side-by-side-{shown.name}.png")
        _latents(shown, folder / f"latents-{shown.name}.png")
        for look in shown.looks.values():
            if look.pyramid:
                levels = [*(image[0] for image in look.pyramid), shown.inputs[0]]
                pyramid_sheet(levels, same_size=True).save(folder / f"resolutions-{shown.name}.png")


def _side_by_side(shown: Shown, path: Path) -> None:
    """The pictures, and under them what each tokenizer makes of them."""
    rows = [shown.inputs, *(look.outputs for look in shown.looks.values())]
    labels = ["Input", *shown.looks]
    grid([list(row) for row in rows], labels=_folded(labels), cell=CELL).save(path)


def _latents(shown: Shown, path: Path) -> None:
    """The pictures, and under them each tokenizer's latent in colour."""
    latents = {f"Latent of {name}": look.latent for name, look in shown.looks.items()}
    rows = [shown.inputs, *(latent for latent in latents.values() if latent is not None)]
    labels = ["Input", *(label for label, latent in latents.items() if latent is not None)]
    grid([list(row) for row in rows], labels=_folded(labels), cell=CELL).save(path)


def _moments(run: Run, path: Path) -> None:
    """Held-out pictures, and under them what the run made of them early, later and last."""
    moments = three_moments(run.examples)
    rows = [read_examples(folder) for folder in (run.path / "examples" / "input", *moments)]
    labels = ["Input", *(f"Step {int(folder.name.removeprefix('step-')):,}" for folder in moments)]
    grid([list(row) for row in rows], labels=labels, cell=CELL).save(path)


def _folded(labels: list[str]) -> list[str]:
    """Break labels behind their commas: beside small pictures a line has little room."""
    return [label.replace(", ", ",\n") for label in labels]
