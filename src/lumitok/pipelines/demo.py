"""The demo: pictures from pip packages, small tokenizers and a diffusion network, and a report to look at.

It is a list of steps, :data:`STEPS`. What each leaves behind lies in the demo's folder, where the steps after
it find it, and where it is found again when the demo is run a second time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from lumitok.config import Recipe, load_recipe
from lumitok.data.demo_pictures import DemoPictures, make_demo_pictures
from lumitok.errors import LumitokError
from lumitok.evaluation.results import default_path
from lumitok.pipelines.demo_diffusion import DemoDiffusion, draw_samples, encode_drawings, train_network
from lumitok.pipelines.demo_report import PICTURE_SIDE, write_report
from lumitok.pipelines.evaluate_reconstruction import evaluate_reconstruction
from lumitok.training import train
from lumitok.training.checkpoint import checkpoints

TOKENIZERS = {"VFM-VAE": "vfm-vae/demo", "AlignTok": "aligntok/demo"}
"""Recipes by the name that the report has for what they train; each has a folder of its own."""
ENCODED = "VFM-VAE"
"""The tokenizer whose latents the diffusion network is trained on."""
METRICS = ("psnr", "ssim", "l1")
PERCEPTUAL_ENCODER = "efficientnet-lite0"
"""Its weights come with pip, as the encoders' do; LPIPS and Inception would need a download."""
FAST = [
    *(f"stages.{stage}.{change}" for stage in (0, 1) for change in ("images=8", "batch_size=4")),
    *(f"training.{name}_every=1" for name in ("log", "grid")),
    *(f"training.{name}_images=16" for name in ("validation", "statistics")),
]
"""Changes to the recipes that leave two steps of each stage."""
FAST_PICTURES = 8
"""Of each class, of those to train on and of those held out, in a fast demo."""
FAST_MEASURED = 4
"""Pictures of each held-out set that a fast demo measures."""


@dataclass(frozen=True)
class Demo:
    """What the steps share.

    Attributes:
        out: folder for the pictures, the runs and the report.
        fast: a few steps on a few pictures, to see that all of it runs.
        console: where progress is told.
    """

    out: Path
    fast: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True))

    @cached_property
    def pictures(self) -> DemoPictures:
        """The pictures, drawn if they are not there yet."""
        with Progress(console=self.console, transient=True) as progress:
            task = progress.add_task("drawing the pictures")
            return make_demo_pictures(
                self.out / "pictures",
                PICTURE_SIDE,
                lambda done, total: progress.update(task, completed=done, total=total),
                limit=FAST_PICTURES if self.fast else None,
            )

    @property
    def held_out(self) -> list[Path]:
        """Folders of pictures that nothing is trained on."""
        return [self.pictures.held_out_drawings, self.pictures.held_out_photos]

    @property
    def report(self) -> Path:
        """The page that the demo ends with."""
        return self.out / "report.html"

    def run(self, recipe: str) -> Path:
        """Folder of the run of a recipe: ``vfm-vae`` of ``vfm-vae/demo``."""
        return self.out / recipe.removesuffix("/demo")

    def recipe(self, name: str) -> Recipe:
        """A recipe on the pictures of this folder."""
        drawings, photos = self.held_out
        changes = [
            f"out={self.run(name)}",
            f"data.train={self.pictures.train}",
            f"data.validation={{drawings: '{drawings}', photos: '{photos}'}}",
        ]
        return load_recipe(name, changes + (FAST if self.fast else []))

    @property
    def diffusion(self) -> DemoDiffusion:
        """What follows the tokenizers: latents, network and samples."""
        return DemoDiffusion(self.out, self.pictures, self.run(TOKENIZERS[ENCODED]), ENCODED, self.fast)

    def shown(self) -> dict[str, Path]:
        """What is measured and shown, by its name: folders of finished runs, and of a stage's checkpoint."""
        vfm_vae, aligntok = TOKENIZERS.values()
        return {
            "VFM-VAE": self.run(vfm_vae),
            "AlignTok, stage 1": stage_end(self.recipe(aligntok), 0),
            "AlignTok, stages 1 and 2": self.run(aligntok),
        }


def stage_end(recipe: Recipe, stage: int) -> Path:
    """Return the folder of the checkpoint that a stage of a run ended with.

    Args:
        recipe: of the run.
        stage: index of the stage, from 0.

    Raises:
        LumitokError: it is not there.
    """
    step = sum(stage.images // stage.batch_size for stage in recipe.stages[: stage + 1])
    for folder in checkpoints(Path(recipe.out)):
        if int(folder.name.removeprefix("step-")) == step:
            return folder
    raise LumitokError(
        f"{recipe.out} has no checkpoint of step {step}, where stage '{recipe.stages[stage].name}' ended; "
        "remove the folder, and it is trained anew"
    )


# ------------------------------------------------------------------------------------------------
# The steps


@dataclass(frozen=True)
class Step:
    """One step of the demo.

    Attributes:
        title: what it does, for the console.
        do: does it, or takes what an earlier demo in the same folder left.
    """

    title: str
    do: Callable[[Demo], None]


def draw_pictures(demo: Demo) -> None:
    """Make the pictures, or take them as they are."""
    counts = {part: sum(classes.values()) for part, classes in demo.pictures.counts.items()}
    demo.console.print(", ".join(f"{part}: {count}" for part, count in counts.items()), highlight=False)


def train_run(demo: Demo, name: str) -> None:
    """Train a recipe; a finished run stays as it is, one that was stopped goes on.

    Raises:
        LumitokError: the run's folder holds one of other settings.
    """
    recipe, run = demo.recipe(name), demo.run(name)
    if (run / "recipe.yaml").is_file() and load_recipe(str(run / "recipe.yaml")) != recipe:
        raise LumitokError(
            f"{run} was trained with other settings than today's; remove it, or choose another "
            "folder with --out"
        )
    if (run / "tokenizer" / "config.json").is_file():
        _tell_trained(demo, run)
    else:
        train(recipe, resume=True)


def _tell_trained(demo: Demo, run: Path) -> None:
    demo.console.print(f"{run} is trained already; remove {demo.out} to begin anew", highlight=False)


def encode(demo: Demo) -> None:
    """Encode the drawings with the chosen tokenizer."""
    store = encode_drawings(demo.diffusion)
    demo.console.print(f"{store.count} latents in {store.path}", highlight=False)


def train_diffusion_network(demo: Demo) -> None:
    """Train the diffusion network on the latents."""
    if not train_network(demo.diffusion):
        _tell_trained(demo, demo.diffusion.run)


def draw(demo: Demo) -> None:
    """Draw samples of each class."""
    draw_samples(demo.diffusion)


def measure(demo: Demo) -> None:
    """Measure all that is shown on the held-out pictures; the report finds the results in the runs."""
    for path in demo.shown().values():
        for folder in demo.held_out:
            results = evaluate_reconstruction(
                str(path),
                folder,
                count=FAST_MEASURED if demo.fast else None,
                metrics=METRICS,
                perceptual_encoder=PERCEPTUAL_ENCODER,
            )
            results.save(default_path(path, results))


def report(demo: Demo) -> None:
    """Write the report and its pictures as PNG files."""
    write_report(demo.report, demo.shown(), demo.diffusion)


STEPS = (
    Step("the pictures", draw_pictures),
    *(Step(f"training {name}", partial(train_run, name=recipe)) for name, recipe in TOKENIZERS.items()),
    Step(f"encoding drawings with {ENCODED}", encode),
    Step("training a diffusion network on their latents", train_diffusion_network),
    Step("drawing samples", draw),
    Step("measuring on held-out pictures", measure),
    Step("the report", report),
)
"""In the order they are done; each may use what those before it left."""


def run_demo(out: Path, *, fast: bool = False) -> Path:
    """Do all of :data:`STEPS` and return the path of the report.

    What is there already is used: a finished run is not trained again, one that was stopped goes on
    from its last checkpoint.

    Args:
        out: folder for the pictures, the runs and the report.
        fast: a few steps on a few pictures, to see that all of it runs.
    """
    demo = Demo(out, fast)
    for number, step in enumerate(STEPS, start=1):
        demo.console.print(f"[{number}/{len(STEPS)}] {step.title}", highlight=False, markup=False)
        start = time.monotonic()
        step.do(demo)
        demo.console.print(f"{step.title}: {time.monotonic() - start:.0f} s", highlight=False, markup=False)
    demo.console.print(f"open {demo.report.resolve().as_uri()}", highlight=False)
    return demo.report
