"""The samples of the demo by class, each above the training drawings that are nearest to it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch import Tensor

from lumitok.data import open_pictures, validation_batches
from lumitok.data.latent_store import LatentStore, open_latent_store
from lumitok.evaluation.extractors import Extractor, open_extractor
from lumitok.evaluation.image_quality import to_uint8
from lumitok.evaluation.nearest import METHOD, Neighbours, nearest_neighbours
from lumitok.evaluation.picture_sets import PictureSource, open_picture_set
from lumitok.evaluation.pictures import grid
from lumitok.evaluation.progress import show_progress
from lumitok.evaluation.report import Report
from lumitok.pipelines.demo_diffusion import DemoDiffusion, of_class
from lumitok.pipelines.generation_features import extract
from lumitok.pipelines.network_information import inform_network
from lumitok.pipelines.reconstruct import open_tokenizer
from lumitok.pipelines.report_networks import network_facts
from lumitok.pipelines.report_runs import Run, open_runs
from lumitok.pipelines.sample import LISTING
from lumitok.tokenizers import Tokenizer
from lumitok.training.measure import to_pictures

ENCODER = "efficientnet-lite0"
"""Its features tell how near two drawings are; its weights come with pip."""
SHOWN = 2
"""Training drawings under each sample."""
BATCH = 4
"""Larger ones took up to three times as long a picture on the processors it was tried on."""
CELL = 96


@dataclass(frozen=True)
class ClassLook:
    """What is shown and told of one class.

    Attributes:
        samples: uint8 (n, 3, side, side).
        near: (n, SHOWN) training drawings under each sample, uint8 (3, side, side) each, the nearest first.
        distances: of each sample to its nearest.
        own: share of the samples whose nearest training drawing is of their own class, in percent.
        held_out_distances: of each held-out drawing of the class, through the tokenizer, likewise.
        held_out_own: as ``own``, of those; None where there are none.
        trained: training drawings of the class.
    """

    samples: Tensor
    near: list[list[Tensor]]
    distances: list[float]
    own: float
    held_out_distances: list[float]
    held_out_own: float | None
    trained: int


@dataclass(frozen=True)
class DiffusionLook:
    """What the report says of the network's samples."""

    classes: dict[str, ClassLook]
    features: str
    """The extractor in one line."""
    facts: dict[str, str]


def look(demo: DemoDiffusion) -> DiffusionLook:
    """Find the training drawings that are nearest to each sample, and to each held-out drawing."""
    tokenizer = open_tokenizer(str(demo.tokenizer))
    side = int(tokenizer.config.image_size)
    extractor = open_extractor(ENCODER)
    store = open_latent_store(demo.latents)
    drawings = open_picture_set(demo.drawings, size=side)
    samples = open_picture_set(demo.samples / "samples")
    there = _trained(store, tokenizer, extractor)
    seen = extract(samples, range(len(samples)), extractor, {"rows"}, BATCH, "samples")
    found = nearest_neighbours(torch.cat(seen.rows), there, k=SHOWN)
    names = [name.split("/")[0] for name in store.names]
    shown = [drawings.names.index(name) for name in store.names]
    labels = _classes(demo.samples / LISTING, samples)
    classes = {}
    for name in dict.fromkeys(labels):
        places = [place for place, label in enumerate(labels) if label == name]
        beside = _held_out(demo, name, tokenizer, extractor, there)
        mine = Neighbours(found.distances[places], found.indices[places])
        classes[name] = ClassLook(
            samples=_pixels(samples, places),
            near=[list(_pixels(drawings, [shown[index] for index in row])) for row in mine.indices.tolist()],
            distances=mine.distances[:, 0].tolist(),
            own=_share(mine, names, name),
            held_out_distances=[] if beside is None else beside.distances[:, 0].tolist(),
            held_out_own=None if beside is None else _share(beside, names, name),
            trained=names.count(name),
        )
    return DiffusionLook(classes, extractor.description, _facts(demo))


@torch.no_grad()
def _trained(store: LatentStore, tokenizer: Tokenizer, extractor: Extractor) -> Tensor:
    """Features (n, d) of the training drawings, decoded from the very latents that the network has seen.

    Beside drawings that no decoder has blurred, nearly all samples are nearest to the same few.
    """
    rows = []
    with show_progress("training drawings", store.count) as tell:
        for places in torch.arange(store.count).split(BATCH):
            latents = store.read(places, torch.zeros(len(places), dtype=torch.bool))
            pictures = tokenizer.decode(latents.to(tokenizer.device)).sample
            rows.append(extractor(to_uint8(pictures.float())).pooled.cpu())
            tell(int(places[-1]) + 1)
    return torch.cat(rows)


def _classes(listing: Path, samples: PictureSource) -> list[str]:
    """The class of each sample, in the order of the source."""
    with listing.open(newline="", encoding="utf-8") as file:
        classes = {row["file"]: row["class"] for row in csv.DictReader(file)}
    return [classes[name] for name in samples.names]


@torch.no_grad()
def _held_out(
    demo: DemoDiffusion, name: str, tokenizer: Tokenizer, extractor: Extractor, there: Tensor
) -> Neighbours | None:
    """What is nearest to the held-out drawings of a class as the samples' decoder shows them."""
    folder = demo.pictures.held_out_drawings
    listed = open_pictures(folder)
    wanted = {path.relative_to(folder).as_posix() for path in of_class(folder, name)}
    pictures = listed.subset([place for place, one in enumerate(listed.names) if one in wanted])
    if not len(pictures):
        return None

    def rows() -> Iterator[Tensor]:
        for pixels in validation_batches(pictures, int(tokenizer.config.image_size), BATCH):
            latents = tokenizer.encode(to_pictures(pixels, tokenizer.device)).latent_dist.mode()
            yield extractor(to_uint8(tokenizer.decode(latents).sample.float())).pooled

    return nearest_neighbours(torch.cat(list(rows())), there)


def _pixels(source: PictureSource, places: list[int]) -> Tensor:
    return torch.cat([pixels for pixels, _ in source.batches(places, BATCH)])


def _share(found: Neighbours, names: list[str], name: str) -> float:
    nearest = found.indices[:, 0].tolist()
    return float(100 * sum(names[index] == name for index in nearest) / len(nearest))


def _facts(demo: DemoDiffusion) -> dict[str, str]:
    (run,) = open_runs([demo.run])
    assert run.network is not None  # It has been trained.
    told = network_facts(run, inform_network(run.name, run.network), demo.name)
    return {name: text for name, text in told.items() if text} | {"Training": _training(run)}


def _training(run: Run) -> str:
    assert run.recipe is not None  # The demo's own.
    (stage,) = run.recipe.stages
    return (
        f"{run.step:,} steps of {stage.batch_size} latents, {run.images_per_second:.3g} latents a second, "
        f"{(run.training_seconds or 0) / 60:.1f} min"
    )


# ------------------------------------------------------------------------------------------------
# The page


def add_samples(report: Report, demo: DemoDiffusion) -> None:
    """Add the section of the samples, and write its sheets beside the page as PNG files."""
    found = look(demo)
    report.section(
        "Samples by class",
        f"A small LightningDiT was trained on the latents that {demo.name} makes of the drawings of "
        f"{len(found.classes)} classes. Each sample below was drawn from noise and a class; none was chosen. "
        f"Under it stand the {SHOWN} training drawings nearest to it, of whatever class, so that a copy "
        "would show.",
    )
    report.facts(found.facts)
    for name, one in found.classes.items():
        sheet = _sheet(one)
        sheet.save(demo.out / f"samples-{name}.png")
        report.figure(
            sheet,
            f"{name}: samples, over each its distance to the nearest training drawing; below them those",
            alt=f"{len(one.samples)} samples of the class {name}, and the training drawings nearest to each",
        )
    _distances(report, found)


def _sheet(one: ClassLook) -> Image.Image:
    nearest = [[drawings[rank] for drawings in one.near] for rank in range(SHOWN)]
    return grid(
        [list(one.samples), *nearest],
        columns=[f"{distance:.2f}" for distance in one.distances],
        labels=["Samples", "Nearest", *(f"Nearest, {rank + 1}" for rank in range(1, SHOWN))],
        cell=CELL,
    )


def _distances(report: Report, found: DiffusionLook) -> None:
    columns = [
        "Class", "Training drawings", "Samples", "Distance, samples", "Distance, held out",
        "Own class, samples, %", "Own class, held out, %",
    ]  # fmt: skip
    rows = [
        [
            name,
            one.trained,
            len(one.samples),
            median(one.distances),
            median(one.held_out_distances) if one.held_out_distances else None,
            one.own,
            one.held_out_own,
        ]
        for name, one in found.classes.items()
    ]
    counts = ", ".join(f"{len(one.held_out_distances)} {name}" for name, one in found.classes.items())
    report.table(
        columns,
        rows,
        "How near the nearest training drawing is, and how often it is of the same class",
        f"{METHOD}, medians, between features of {found.features}; each picture beside all training "
        "drawings, decoded from the latents that the network has seen. Held out, to compare with: drawings "
        f"that neither was trained on ({counts}), encoded and decoded. Samples much nearer than these would "
        "be copies. Own class: share of them whose nearest training drawing is of their class.",
    )
