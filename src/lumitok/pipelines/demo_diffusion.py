"""The demo's second half: latents of its drawings, a diffusion network trained on them, samples by class."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lumitok.config import DiffusionRecipe, load_diffusion_recipe
from lumitok.data import evenly
from lumitok.data.demo_pictures import DemoPictures
from lumitok.data.latent_store import LatentStore
from lumitok.errors import LumitokError
from lumitok.pipelines.encode import encode_pictures
from lumitok.pipelines.sample import Wanted, sample_pictures
from lumitok.training import train_diffusion

RECIPE = "lightningdit/demo"
CLASSES = {
    "animals": (
        "nature",
        "1F400-1F43F 1F54A 1F577 1F980-1F99F 1F9A1-1F9AE 1FAB0-1FAB3 1FABC 1FABF 1FACE-1FACF",
    ),
    "faces": ("faces", ""),
    "flags": ("flags", ""),
    "hands": (
        "people",
        "261D 270A-270D 1F446-1F450 1F590 1F596 1F64C 1F64F 1F90C 1F90F 1F918-1F91F 1F932 1FAF0-1FAF8",
    ),
    "people": (
        "people",
        "1F46E 1F470-1F478 1F47C 1F481-1F482 1F575 1F645-1F647 1F64B 1F64D-1F64E 1F926 1F934-1F937 "
        "1F9B8-1F9B9 1F9CF 1F9D2-1F9D5 1F9D9-1F9DD",
    ),
}
"""What the network draws: the folder of each class, and the first code points of those that are meant.

Classes with a look of their own. Some of the demo's folders are too mixed for that: that of people holds
hands, busts and runners, and objects, symbols and the like cannot be told apart even as they were drawn."""
MOST = 300
"""Drawings of a class at most: people are the same few in all tones."""
PER_CLASS = 8
SEED = 0
FAST = [
    "stages.0.images=8",
    "stages.0.batch_size=4",
    "stages.0.warmup_steps=1",
    "samples.sampling.steps=2",
    "training.log_every=1",
]
"""Changes to the recipe that leave two steps of training, and two of sampling."""
FAST_PER_CLASS = 2


@dataclass(frozen=True)
class DemoDiffusion:
    """Where the second half lies, and what it is made of.

    Attributes:
        out: folder of the demo.
        pictures: those of the demo.
        tokenizer: folder of the run whose tokenizer makes the latents and decodes the samples.
        name: the tokenizer's in the report.
        fast: a few steps on a few pictures.
    """

    out: Path
    pictures: DemoPictures
    tokenizer: Path
    name: str
    fast: bool = False

    @property
    def drawings(self) -> Path:
        """A zip of the drawings that the network is trained on."""
        return self.out / "drawings.zip"

    @property
    def latents(self) -> Path:
        """The store of their latents."""
        return self.out / "latents"

    @property
    def run(self) -> Path:
        """Folder of the network's training."""
        return self.out / "lightningdit"

    @property
    def samples(self) -> Path:
        """Folder of the samples."""
        return self.out / "samples"

    def recipe(self) -> DiffusionRecipe:
        """The recipe on the latents of this folder."""
        changes = [f"out={self.run}", f"data.latents={self.latents}", f"data.tokenizer={self.tokenizer}"]
        if self.fast:  # So few pictures have none of some classes.
            changes += [*FAST, f"network.classes={len(chosen(self.pictures))}"]
        return load_diffusion_recipe(RECIPE, changes)


def of_class(folder: Path, name: str) -> list[Path]:
    """The drawings of one of :data:`CLASSES`, sorted.

    Args:
        folder: of class folders: the demo's training pictures, or its held-out drawings.
        name: of the class.
    """
    inside, points = CLASSES[name]
    firsts = _firsts(points.split())
    return [
        path
        for path in sorted((folder / inside).glob("*.png"))
        if not firsts or int(re.split("[-.]", path.name)[0], 16) in firsts
    ]


def _firsts(spans: Iterable[str]) -> set[int]:
    """Code points of spans such as ``1F400-1F43F`` or ``1F54A``, ends included."""
    ends = [[int(end, 16) for end in span.split("-")] for span in spans]
    return {point for span in ends for point in range(span[0], span[-1] + 1)}


def chosen(pictures: DemoPictures) -> dict[str, list[Path]]:
    """The drawings to train on, by class: at most :data:`MOST`, spread over the names."""
    found = {name: of_class(pictures.train, name) for name in CLASSES}
    return {
        name: [drawings[place] for place in evenly(len(drawings), MOST)]
        for name, drawings in found.items()
        if drawings
    }


def pack_drawings(pictures: DemoPictures, path: Path) -> None:
    """Put the drawings to train on into a zip, in class folders; one of the same drawings stays as it is."""
    wanted = {
        f"{name}/{drawing.name}": drawing
        for name, drawings in chosen(pictures).items()
        for drawing in drawings
    }
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            if packed.namelist() == list(wanted):
                return
    partial = path.with_name(f"{path.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as packed:
        for name, drawing in wanted.items():
            packed.write(drawing, name)
    partial.replace(path)


def encode_drawings(demo: DemoDiffusion) -> LatentStore:
    """Encode the drawings; latents that are there already stay as they are.

    Raises:
        LumitokError: the folder holds the latents of another tokenizer.
    """
    pack_drawings(demo.pictures, demo.drawings)
    return encode_pictures(str(demo.tokenizer), demo.drawings, demo.latents, workers=0).store


def train_network(demo: DemoDiffusion) -> bool:
    """Train the network and say whether there was anything to train.

    A finished run stays as it is, one that was stopped goes on.

    Raises:
        LumitokError: the run's folder holds one of other settings.
    """
    recipe, written = demo.recipe(), demo.run / "recipe.yaml"
    if written.is_file() and load_diffusion_recipe(str(written)) != recipe:
        raise LumitokError(
            f"{demo.run} was trained with other settings than today's; remove it, or choose another "
            "folder with --out"
        )
    if (demo.run / "network" / "config.json").is_file():
        return False
    train_diffusion(recipe, resume=True)
    return True


def draw_samples(demo: DemoDiffusion) -> None:
    """Draw samples of each class with the recipe's sampling; those that are there already stay.

    Raises:
        LumitokError: the folder holds samples of another network.
    """
    count = FAST_PER_CLASS if demo.fast else PER_CLASS
    sample_pictures(str(demo.run), demo.samples, Wanted(per_class=count, seed=SEED))
    shutil.copyfile(demo.samples / "sheet.png", demo.out / "samples.png")
