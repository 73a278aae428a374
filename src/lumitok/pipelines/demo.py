"""The demo: pictures from pip packages, a small VFM-VAE trained on them, and a report to look at."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from lumitok import __version__
from lumitok.config import Recipe, load_recipe
from lumitok.data import open_pictures, validation_batches
from lumitok.data.demo_pictures import DemoPictures, make_demo_pictures
from lumitok.errors import LumitokError
from lumitok.evaluation.curves import Series, plot_svg, read_history, series, value_names
from lumitok.evaluation.image_quality import PROTOCOL, to_uint8
from lumitok.evaluation.markup import Figure
from lumitok.evaluation.pictures import grid, latent_pca, pyramid_sheet, to_pil
from lumitok.evaluation.report import Report
from lumitok.tokenizers import Tokenizer
from lumitok.training import find_tokenizer, train
from lumitok.training.checkpoint import load_place
from lumitok.training.journal import HISTORY
from lumitok.training.measure import held_out_quality, to_pictures

RECIPE = "vfm-vae/demo"
PICTURE_SIDE = 96
"""Side in pixels of the pictures on disk; training crops squares of them."""
SETS = ("drawings", "photos")
CREDITS = (
    "Drawings: OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0. Photos: the sample photos of "
    "scikit-image; CREDITS.txt beside the pictures names their makers. Encoder: EfficientNet-Lite0, trained "
    "on ImageNet."
)


@dataclass
class Shown:
    """What the report shows of one set of held-out pictures; all uint8 (N, 3, side, side)."""

    name: str
    inputs: Tensor
    outputs: Tensor
    pyramid: list[Tensor]
    pca: Tensor


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
    report = write_report(out, recipe, pictures)
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


def write_report(out: Path, recipe: Recipe, pictures: DemoPictures) -> Path:
    """Look at a finished run and write ``report.html`` and its pictures as PNG files."""
    run = Path(recipe.out)
    tokenizer = Tokenizer.from_pretrained(find_tokenizer(run))
    folders = {"drawings": pictures.held_out_drawings, "photos": pictures.held_out_photos}
    opened = {name: open_pictures(path) for name, path in folders.items()}
    quality = {
        name: held_out_quality(tokenizer, found, batch_size=32, limit=len(found))[0]
        for name, found in opened.items()
    }
    shown = [_look(tokenizer, name, opened[name]) for name in SETS]
    history = read_history(run / HISTORY)
    report = Report(
        "A tokenizer trained on this machine",
        f"VFM-VAE at {recipe.model.image_size} px on a frozen {recipe.model.encoder.name}, "
        f"{history[-1]['images']:,} pictures seen. Every picture below is one it was never trained on.",
    )
    _numbers(report, tokenizer, quality, history)
    _moments(report, out, run)
    _resolutions(report, out, shown)
    _latents(report, out, shown, tokenizer)
    _curves(report, history)
    _what_was_run(report, recipe, tokenizer, pictures)
    return report.write(out / "report.html")


def _look(tokenizer: Tokenizer, name: str, pictures: Any) -> Shown:
    """Reconstruct eight pictures spread over a set."""
    side, count = tokenizer.config.image_size, min(8, len(pictures))
    chosen = torch.linspace(0, len(pictures) - 1, count).round().long().tolist()
    inputs = torch.cat(list(validation_batches(pictures.subset(chosen), side, count)))
    with torch.no_grad():
        z = tokenizer.encode(to_pictures(inputs, torch.device("cpu"))).latent_dist.mode()
        decoded = tokenizer.decode(z)
    pca = to_uint8(latent_pca(z), low=0.0, high=1.0)
    return Shown(name, inputs, to_uint8(decoded.sample), [to_uint8(image) for image in decoded.pyramid], pca)


def _numbers(
    report: Report, tokenizer: Tokenizer, quality: dict[str, dict[str, float]], history: list[dict[str, Any]]
) -> None:
    config, drawings = tokenizer.config, quality["drawings"]
    latent = config.latent_channels * (config.image_size // config.downsampling) ** 2
    pixels = 3 * config.image_size**2
    report.cards(
        [
            (
                "PSNR, drawings",
                quality["drawings"]["psnr"],
                "dB",
                f"{drawings['count']:.0f} held out",
            ),
            ("PSNR, photos", round(quality["photos"]["psnr"], 2), "dB", "cat and coffee, held out whole"),
            (
                "Trainable",
                round(sum(tokenizer.parts().values()) / 1e6, 2),
                "M",
                "parameters outside the encoder",
            ),
            ("Latent", f"{pixels / latent:g}", "x", f"fewer numbers: {latent:,} for {pixels:,}"),
            ("Training", round(_minutes(history), 1), "min", f"{history[-1]['step']:,} steps"),
        ]
    )
    report.table(
        ["Held-out pictures", "Count", "PSNR, dB", "SSIM", "L1"],
        [[n, int(q["count"]), q["psnr"], q["ssim"], q["l1"]] for n, q in quality.items()],
        caption="Reconstruction",
        protocol=(
            f"Pictures drawn at {PICTURE_SIDE} px, ADM's centre crop to {config.image_size} px; averaged "
            f"weights; the posterior's mean decoded. {PROTOCOL}"
        ),
    )


def _minutes(history: list[dict[str, Any]]) -> float:
    """Time spent on training steps, from the speeds in the history."""
    seconds, seen = 0.0, 0
    for record in history:
        speed = record["values"].get("images_per_second", 0)
        if record["kind"] == "train" and speed > 0:
            seconds += (record["images"] - seen) / speed
            seen = record["images"]
    return seconds / 60


def _moments(report: Report, out: Path, run: Path) -> None:
    """The same pictures at three moments of the training."""
    moments = sorted((run / "examples").glob("step-*"))
    chosen = [moments[0], moments[len(moments) // 3], moments[-1]] if len(moments) > 2 else moments
    columns = ["Input", *(f"Step {int(folder.name.removeprefix('step-')):,}" for folder in chosen)]
    folders = [run / "examples" / "input", *chosen]
    count = len(list(folders[0].glob("*.png")))
    rows = [[Image.open(folder / f"{i}.png").convert("RGB") for folder in folders] for i in range(count)]
    report.section(
        "Three moments",
        "Each row is a held-out picture, then what the tokenizer makes of it early, later and at the end of "
        "the training. The picture passes through the latent only: nothing else reaches the decoder.",
    )
    report.comparison(columns, [("", [Figure(p, pixelated=True) for p in row]) for row in rows])
    transposed = [list(column) for column in zip(*rows, strict=True)]
    grid(transposed, labels=columns, cell=96).save(out / "reconstructions.png")


def _resolutions(report: Report, out: Path, shown: list[Shown]) -> None:
    report.section(
        "An image at every resolution",
        "Each block of the decoder doubles the size and shows an image of its own; all of them are trained "
        "against the picture at that size (Eq. 6).",
    )
    for one in shown:
        pyramid = [to_pil(image[0]) for image in one.pyramid]
        sides = ", ".join(f"{image.width} px" for image in pyramid)
        pictures = [Figure(p, f"{p.width} px", pixelated=True) for p in pyramid]
        original = Figure(to_pil(one.inputs[0]), "input", pixelated=True)
        report.figures([*pictures, original], columns=len(pictures) + 1)
        report.text(f"One of the {one.name}, at {sides}, each scaled to one size.")
        pyramid_sheet([*pyramid, to_pil(one.inputs[0])], same_size=True).save(
            out / f"resolutions-{one.name}.png"
        )


def _latents(report: Report, out: Path, shown: list[Shown], tokenizer: Tokenizer) -> None:
    spec = tokenizer.latent_spec
    report.section(
        "The latent in colour",
        f"The {spec.channels} channels of the {spec.height} x {spec.width} latent, shown by their first "
        "three principal components as red, green and blue, fitted jointly over a row. Like colours are like "
        "latents: figure parts from ground, and parts of one kind share a colour.",
    )
    for one in shown:
        labels = ["input", "latent", "reconstruction"]
        rows = [list(one.inputs), list(one.pca), list(one.outputs)]
        columns = [str(i + 1) for i in range(len(one.inputs))]
        report.comparison(
            [f"{one.name.capitalize()} {number}" for number in columns],
            [
                (label, [Figure(to_pil(p), pixelated=True) for p in row])
                for label, row in zip(labels, rows, strict=True)
            ],
        )
        grid(rows, labels=labels, cell=96).save(out / f"latents-{one.name}.png")


def _curves(report: Report, history: list[dict[str, Any]]) -> None:
    report.section("Curves", "Losses before weighting, means of the steps since the point before.")
    titles = {
        "l1": "L1",
        "vf": "VF loss",
        "kl": "KL, nats a picture",
        "discriminator": "Discriminator",
        "gan": "Adversarial",
    }
    figures = []
    for name in value_names(history, "train"):
        if name in titles or name.startswith("feature-distance"):
            title = titles.get(name, "Feature distance")
            line = series(history, name, kind="train", label=title)
            figures.append(
                Figure(plot_svg([line], title=title, log=name == "l1"), alt=f"{title} over the steps")
            )
    for metric, title, unit in (("psnr", "PSNR, held out", "dB"), ("ssim", "SSIM, held out", "")):
        lines: list[Series] = [series(history, f"{s}/{metric}", kind="validation", label=s) for s in SETS]
        figures.insert(0, Figure(plot_svg(lines, title=title, unit=unit), alt=f"{title} over the steps"))
    report.figures(figures)


def _what_was_run(report: Report, recipe: Recipe, tokenizer: Tokenizer, pictures: DemoPictures) -> None:
    import yaml

    place = load_place(sorted((Path(recipe.out) / "checkpoints").glob("step-*"))[-1] / "training")
    report.section("What was run", CREDITS)
    report.facts(
        {
            "Command": "lumitok demo",
            "Recipe": recipe.name,
            "Pictures to train on": sum(pictures.counts["train"].values()),
            "Stages": ", ".join(f"{s.name}: {s.images:,} pictures" for s in recipe.stages),
            "Steps": f"{place.step:,}",
            "Encoder's weights": f"sha256 {tokenizer.encoder.weights_hash()[:16]}",
            "Latent statistics": f"from {tokenizer.config.latents_count:,} pictures",
            "lumitok": __version__,
            "PyTorch": torch.__version__,
            "Machine": f"{_processor()}, {torch.get_num_threads()} threads, {platform.system()}",
        }
    )
    text = yaml.safe_dump(recipe.model_dump(mode="json", exclude={"out", "data"}), sort_keys=False)
    report.code(text, title="The resolved recipe", folded=True)
    counts = ", ".join(f"{name} {count}" for name, count in pictures.counts["train"].items())
    report.text(f"Classes of the training pictures: {counts}.")


def _processor() -> str:
    """Name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
