"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A name from `lumitok recipes`, or a YAML file.")
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the recipe, such as data.train=photos stages.0.batch_size=16.",
        show_default=False,
    ),
]

# Of what draws from a diffusion network, or looks into one.
NetworkCheckpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Folder of a diffusion run, a checkpoint, a network or a saved pipeline, or a hub id.",
    ),
]
LatentsTokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="The tokenizer that made the latents; by default what the run's recipe names.",
        show_default=False,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="3,7,NAME",
        help="Classes by number or name, taken in turn; by default one drawn for each sample.",
        show_default=False,
    ),
]
PerClass = Annotated[
    int | None,
    typer.Option(min=1, help="Exactly so many of each class, in place of --count.", show_default=False),
]
SampleBatchSize = Annotated[int, typer.Option(min=1, help="Samples at a time in each process.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="bf16: autocast; auto: that where the device is fast in it."),
]

# Of what judges pictures as a set.
ReferencePictures = Annotated[
    Path,
    typer.Option(metavar="REF", help="Folder, zip or npz of real pictures, or ADM's reference statistics."),
]
JudgeWeights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Its weights; by default from the cache, or fetched.", show_default=False
    ),
]
CropSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="PX",
        help="Centre-crop samples and reference to this side; by default as stored.",
        show_default=False,
    ),
]


def class_names(classes: str | None) -> list[str] | None:
    """What ``--classes`` lists."""
    return None if classes is None else [name.strip() for name in classes.split(",")]
