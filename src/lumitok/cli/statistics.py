"""``lumitok statistics``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumitok.cli.tables import console, table


def statistics(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, a checkpoint or a tokenizer.")
    ],
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="Folder or zip of pictures such as it was trained on.")
    ],
    count: Annotated[int, typer.Option(min=2, help="Pictures at most, spread evenly.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the draws from the posteriors.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    replace: Annotated[bool, typer.Option("--replace", help="Measure also where there are some.")] = False,
) -> None:
    """Measure a tokenizer's latent statistics and store them with it.

    Diffusion whitens latents with them, channel by channel. A training run measures them at its end; imported
    tokenizers and checkpoints in the middle of a run have none.
    """
    from lumitok.pipelines.statistics import store_statistics

    report = store_statistics(
        str(checkpoint), pictures, count=count, seed=seed, batch_size=batch_size, replace=replace
    )
    listed = table("channel", "mean", "standard deviation")
    for index, (mean, std) in enumerate(zip(report.mean, report.std, strict=True)):
        listed.add_row(str(index), f"{mean:.4f}", f"{std:.4f}")
    printer = console()
    printer.print(listed)
    printer.print(report.how)
    if report.unreadable:
        printer.print(f"{report.unreadable} pictures could not be read and were left out.")
    typer.echo(f"Stored in {report.folder / 'config.json'}")
