"""The demo: pictures from pip packages, a small VFM-VAE trained on them, and a report to look at."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from lumitok import __version__
from lumitok.config import Recipe, VFMVAEConfig, load_recipe
from lumitok.data.demo_pictures import DemoPictures, make_demo_pictures
from lumitok.errors import LumitokError
from lumitok.evaluation.pictures import grid, pyramid_sheet
from lumitok.evaluation.report import Report
from lumitok.evaluation.results import default_path
from lumitok.pipelines.evaluate_reconstruction import evaluate_reconstruction
from lumitok.pipelines.report import Material, compose, gather
from lumitok.pipelines.report_album import read_examples
from lumitok.pipelines.report_pictures import three_moments
from lumitok.training import train

RECIPE = "vfm-vae/demo"
PICTURE_SIDE = 96
"""Side in pixels of the pictures on disk; training crops squares of them."""
METRICS = ("psnr", "ssim", "l1")
PERCEPTUAL_ENCODER = "efficientnet-lite0"
"""Its weights come with pip, as the encoder's do; LPIPS and Inception would need a download."""
CREDITS = (
    "Drawings: OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0. Photos: the sample photos of "
    "scikit-image; CREDITS.txt beside the pictures names their makers. Encoder: EfficientNet-Lite0, trained "
    "on ImageNet."
)


def run_demo(out: Path, *, fast: bool = False) -> Path:
    """Make the pictures, train the recipe ``vfm-vae/demo``, write the report, and return its path.

    What is there already is used: a finished run is not trained again, one that was stopped goes on
    from its last checkpoint.

    Args:
        out: folder for the pictures, the run and the report.
        fast: a few steps on a few pictures, to see that all of it runs.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("drawing the pictures")
        pictures = make_demo_pictures(
            out / "pictures",
            PICTURE_SIDE,
            lambda done, total: progress.update(task, completed=done, total=total),
            limit=8 if fast else None,
        )
    recipe = demo_recipe(out, pictures, fast=fast)
    run = Path(recipe.out)
    if (run / "recipe.yaml").is_file() and load_recipe(str(run / "recipe.yaml")) != recipe:
        raise LumitokError(
            f"{run} was trained with other settings than today's; remove it, or choose another "
            "folder with --out"
        )
    if (run / "tokenizer" / "config.json").is_file():
        console.print(f"{run} is trained already; remove {out} to begin anew")
    else:
        train(recipe, resume=True)
    report = write_report(out, recipe, pictures, count=4 if fast else None)
    console.print(f"open {report.resolve().as_uri()}", highlight=False)
    return report


def demo_recipe(out: Path, pictures: DemoPictures, *, fast: bool = False) -> Recipe:
    """The demo's recipe on the pictures of this folder."""
    changes = [
        f"out={out / 'run'}",
        f"data.train={pictures.train}",
        f"data.validation={{drawings: '{pictures.held_out_drawings}', photos: '{pictures.held_out_photos}'}}",
    ]
    if fast:
        changes += [
            "stages.0.images=16",
            "stages.1.images=16",
            "training.log_every=1",
            "training.grid_every=1",
        ]
    return load_recipe(RECIPE, changes)


# ------------------------------------------------------------------------------------------------
# The report


def write_report(out: Path, recipe: Recipe, pictures: DemoPictures, *, count: int | None = None) -> Path:
    """Measure a finished run on its held-out pictures; write ``report.html`` and its pictures as PNG files.

    Args:
        out: folder of the demo.
        recipe: what was trained.
        pictures: those of the demo.
        count: pictures of each held-out set that are measured; None: all.
    """
    run = Path(recipe.out)
    held_out = [pictures.held_out_drawings, pictures.held_out_photos]
    for folder in held_out:
        results = evaluate_reconstruction(
            str(run), folder, count=count, metrics=METRICS, perceptual_encoder=PERCEPTUAL_ENCODER
        )
        results.save(default_path(run, results))
    material = gather([run], data=held_out)
    report = compose(
        material,
        title="A tokenizer trained on this machine",
        subtitle=f"VFM-VAE at {recipe.model.image_size} px on a frozen {_encoder_name(recipe)}, "
        f"{material.runs[0].images:,} pictures seen. Every picture below is one it was never trained on.",
    )
    _add_demo(report, pictures)
    _write_sheets(out, run, material)
    return report.write(out / "report.html")


def _encoder_name(recipe: Recipe) -> str:
    assert isinstance(recipe.model, VFMVAEConfig)  # The demo's own recipe.
    return recipe.model.encoder.name


def _add_demo(report: Report, pictures: DemoPictures) -> None:
    """Add what holds of this run alone: where its pictures come from, and the machine."""
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


def _write_sheets(out: Path, run: Path, material: Material) -> None:
    """Write the report's pictures as PNG files beside it."""
    moments = three_moments(material.runs[0].examples)
    columns = [read_examples(folder) for folder in (run / "examples" / "input", *moments)]
    labels = ["Input", *(f"Step {int(folder.name.removeprefix('step-')):,}" for folder in moments)]
    grid([list(column) for column in columns], labels=labels, cell=96).save(out / "reconstructions.png")
    for shown in material.album.shown:
        (look,) = shown.looks.values()
        assert look.latent is not None  # The run is finished: it has a tokenizer.
        levels = [*(image[0] for image in look.pyramid), shown.inputs[0]]
        pyramid_sheet(levels, same_size=True).save(out / f"resolutions-{shown.name}.png")
        rows = [list(pictures) for pictures in (shown.inputs, look.latent, look.outputs)]
        sheet = grid(rows, labels=["input", "latent", "reconstruction"], cell=96)
        sheet.save(out / f"latents-{shown.name}.png")


def _processor() -> str:
    """Name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
