"""``lumitok encode`` and ``lumitok convert-latents``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DType = Literal["float32", "float16", "bfloat16"]


def encode(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder of a run, a checkpoint or a tokenizer, or a hub id."
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder or zip of pictures.")],
    out: Annotated[Path, typer.Option(metavar="STORE", help="Folder of the store.", show_default=False)],
    flip: Annotated[bool, typer.Option("--flip", help="Encode the mirrored pictures too.")] = False,
    moments: Annotated[
        bool,
        typer.Option(
            "--moments", help="Store the posterior's mean and standard deviation, to draw from at each step."
        ),
    ] = False,
    dtype: Annotated[DType, typer.Option(help="Of the numbers on disk.")] = "float32",
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="That the tokenizer computes in.")
    ] = "fp32",
    size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Side of the pictures in pixels; by default the tokenizer's.", show_default=False
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures, spread evenly; by default all.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws from the posteriors.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time, in each process.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that open pictures, for each process.")] = 2,
) -> None:
    """Encode a data set once, to train a diffusion network on its latents.

    Run by torchrun or accelerate launch, each process takes its share. A run that was stopped goes on when
    the same command is given again.
    """
    from lumitok.pipelines.encode import encode_pictures
    from lumitok.pipelines.keep_results import is_main

    encoded = encode_pictures(
        checkpoint,
        folder,
        out,
        flip=flip,
        moments=moments,
        dtype=dtype,
        precision=precision,
        size=size,
        count=count,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
    )
    if is_main():
        for note in encoded.notes:
            typer.echo(f"Note: {note}.", err=True)
        typer.echo(f"The store: {out} ({encoded.store.header.summary()})")


def convert_latents(
    source: Annotated[
        Path, typer.Argument(metavar="FROM", help="A latent store, or a folder of LightningDiT's shards.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TO", help="Folder to make, of the other kind.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            metavar="CHECKPOINT",
            help="Tokenizer that made the shards; the store then knows it. By default it is not known.",
        ),
    ] = "",
    dtype: Annotated[DType, typer.Option(help="Of the store's numbers on disk.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the shards' draws, where a store has moments.")] = 0,
) -> None:
    """Turn LightningDiT's safetensors shards into a latent store, or a store into such shards.

    Which way is seen from FROM. latents_stats.pt beside the shards is read, or written.
    """
    from lumitok.pipelines.convert_latents import convert

    converted = convert(source, target, tokenizer=tokenizer, dtype=dtype, seed=seed)
    for note in converted.notes:
        typer.echo(f"Note: {note}.", err=True)
    typer.echo(f"{target}: {converted.about}")
