"""The same pictures through every run of a report: reconstructions, pyramids, latents in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lumitok.data import (
    BadPicture,
    Pictures,
    evenly,
    open_pictures,
    read_picture,
    reason_of,
    validation_batches,
)
from lumitok.errors import LumitokError
from lumitok.evaluation.image_quality import psnr, to_uint8
from lumitok.evaluation.pictures import align_colors, latent_pca
from lumitok.pipelines.report_runs import Run, unique_names
from lumitok.tokenizers import Tokenizer
from lumitok.training.measure import to_pictures
from lumitok.training.precision import default_device

BATCH = 8
ERROR_GAIN = 4
"""How many times brighter the absolute error is shown."""


@dataclass(frozen=True)
class Look:
    """What a run makes of some pictures; all uint8 (N, 3, side, side), but for the pyramid's sizes.

    Attributes:
        outputs: the reconstructions.
        pyramid: what each block of the decoder shows, small to large; of a decoder with one image, none.
        latent: the latent's first three principal components, fitted over these pictures; their order and
            signs, which are arbitrary, as they come nearest to ``features``.
        features: the same of the foundation encoder's last map, where the tokenizer has an encoder.
        encoder: its name and layer.
    """

    outputs: Tensor
    pyramid: list[Tensor] = field(default_factory=list)
    latent: Tensor | None = None
    features: Tensor | None = None
    encoder: str = ""


@dataclass
class Shown:
    """The same pictures in several runs.

    Attributes:
        name: of the set of pictures.
        inputs: uint8 (N, 3, side, side).
        names: of the pictures.
        looks: by the run's name.
    """

    name: str
    inputs: Tensor
    names: list[str]
    looks: dict[str, Look] = field(default_factory=dict)


@dataclass(frozen=True)
class Album:
    """All pictures of a report, and what had to stay out of it and why.

    Attributes:
        shown: the pictures.
        notes: what stayed out.
        fingerprints: of the tokenizers, by the run's name, where there are results to hold against them.
    """

    shown: list[Shown]
    notes: list[str]
    fingerprints: dict[str, str] = field(default_factory=dict)


def make_album(runs: Sequence[Run], data: Sequence[Path], count: int) -> Album:
    """Reconstruct pictures with every run that has a tokenizer.

    Args:
        runs: in the order they are shown.
        data: folders or zips of pictures; none: the examples that each run keeps of its held-out pictures.
        count: at most so many of each folder, spread evenly over it.

    Returns:
        Pictures that are equal in several runs stand together; a run with others, or with another size,
        has a set of its own.

    Raises:
        LumitokError: pictures that are damaged, or are given and no run has a tokenizer.
    """
    if data and all(run.network_alone for run in runs):
        raise LumitokError(
            "pictures were given to reconstruct, and what the runs hold are diffusion networks, which "
            "reconstruct nothing; leave the pictures out, or name the run of their tokenizer too"
        )
    opened = {}
    for name, path in zip(unique_names(data), data, strict=True):
        pictures = open_pictures(path)
        opened[name] = pictures.subset(evenly(len(pictures), count))
    shown: list[Shown] = []
    notes: list[str] = []
    fingerprints: dict[str, str] = {}
    for run in runs:
        if run.network_alone:
            continue
        tokenizer = _open(run, notes)
        if tokenizer is not None and any(results.fingerprint for results in run.results.values()):
            fingerprints[run.name] = tokenizer.fingerprint()
        for given in _from_folders(tokenizer, opened, notes) if opened else _from_examples(run, count, notes):
            look = _look(tokenizer, given.inputs) if tokenizer is not None else _last_examples(run, given)
            _together(shown, given).looks[run.name] = look
    return Album(shown, list(dict.fromkeys(notes)), fingerprints)


def psnr_of(outputs: Tensor, inputs: Tensor) -> list[float]:
    """PSNR in dB of each of two batches of 8-bit pictures."""
    values: list[float] = psnr(outputs / 255.0, inputs / 255.0).tolist()
    return values


def error_of(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Absolute difference of 8-bit pictures, :data:`ERROR_GAIN` times brighter."""
    return ((outputs.int() - inputs.int()).abs() * ERROR_GAIN).clamp(max=255).to(torch.uint8)


def _open(run: Run, notes: list[str]) -> Tokenizer | None:
    if run.tokenizer is None:
        kept = f"; its reconstructions are those of {_moment(run)}" if run.examples else ""
        notes.append(f"{run.name} has no checkpoint{kept}.")
        return None
    try:
        tokenizer: Tokenizer = Tokenizer.from_pretrained(run.tokenizer).to(default_device())
    except LumitokError as error:  # Its curves and numbers are worth showing all the same.
        notes.append(f"{run.name} could not be opened: {error}.")
        return None
    return tokenizer


def _together(shown: list[Shown], given: Shown) -> Shown:
    """Find the set of these pictures, or begin it."""
    for other in shown:
        if other.name == given.name and torch.equal(other.inputs, given.inputs):
            return other
    shown.append(given)
    return given


def _from_folders(
    tokenizer: Tokenizer | None, opened: Mapping[str, Pictures], notes: list[str]
) -> list[Shown]:
    """Pictures of the user's, cropped to the run's size."""
    if tokenizer is None:
        return []
    found = []
    for name, pictures in opened.items():
        bad: list[BadPicture] = []
        batches = validation_batches(pictures, tokenizer.config.image_size, len(pictures), report=bad.append)
        inputs = torch.cat(list(batches))
        left_out = {picture.name for picture in bad}
        notes += [f"{name}: {picture.name} was left out: {picture.reason}." for picture in bad]
        names = [n for n in sorted(pictures.names) if n not in left_out]
        found.append(Shown(name, inputs, names))
    return found


def _from_examples(run: Run, count: int, notes: list[str]) -> list[Shown]:
    """The held-out pictures that the run keeps."""
    inputs = read_examples(run.path / "examples" / "input")[:count] if run.examples else torch.empty(0)
    if not len(inputs):
        notes.append(f"{run.name} keeps no held-out pictures; with --data it is shown on pictures of yours.")
        return []
    return [Shown("held-out pictures", inputs, [f"held-out picture {i + 1}" for i in range(len(inputs))])]


def read_examples(folder: Path) -> Tensor:
    """Read the PNG files 0.png, 1.png ... that a run keeps, as uint8 (N, 3, side, side).

    Raises:
        LumitokError: a file is damaged, or of another size than the others.
    """
    files = sorted(folder.glob("*.png"), key=lambda path: (len(path.stem), path.stem))
    pictures = []
    for file in files:
        try:
            pictures.append(torch.from_numpy(np.array(read_picture(file))).permute(2, 0, 1))
        except Exception as error:  # Damaged files make Pillow raise nearly anything.
            raise LumitokError(f"'{file}' is damaged ({reason_of(error)}); remove {folder}") from None
    if len({picture.shape for picture in pictures}) > 1:
        raise LumitokError(f"the pictures in '{folder}' differ in size; remove the folder")
    return torch.stack(pictures) if pictures else torch.empty(0, dtype=torch.uint8)


def _last_examples(run: Run, given: Shown) -> Look:
    outputs = read_examples(run.examples[-1])[: len(given.inputs)]
    if outputs.shape != given.inputs.shape:
        raise LumitokError(f"'{run.examples[-1]}' does not fit the pictures in 'input' beside it; remove it")
    return Look(outputs)


def _moment(run: Run) -> str:
    return f"step {int(run.examples[-1].name.removeprefix('step-')):,}"


@torch.no_grad()
def _look(tokenizer: Tokenizer, inputs: Tensor) -> Look:
    """Encode and decode pictures with the posterior's mean, and show latents and features in colour."""
    latents, features, pyramids = [], [], []
    for batch in inputs.split(BATCH):
        output = tokenizer(to_pictures(batch, tokenizer.device), sample_posterior=False)
        latents.append(output.mean)
        pyramids.append([to_uint8(image).cpu() for image in output.pyramid])
        if output.features is not None:
            features.append(output.features.float())
    pyramid = [torch.cat(images) for images in zip(*pyramids, strict=True)]
    latent = latent_pca(torch.cat(latents))
    look = Look(pyramid[-1], pyramid if len(pyramid) > 1 else [])
    if not features or tokenizer.foundation is None:
        return replace(look, latent=to_uint8(latent, low=0.0))
    colors = latent_pca(torch.cat(features))
    encoder = tokenizer.foundation.config
    return replace(
        look,
        latent=to_uint8(align_colors(latent, to=colors), low=0.0),
        features=to_uint8(colors, low=0.0),
        encoder=f"{encoder.name}, layer {encoder.layers[-1]}",
    )
