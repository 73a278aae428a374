"""``lumitok export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumitok.cli.tables import console, table


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder of a run, a checkpoint or a tokenizer, or a hub id."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|HxW",
            help="Picture size in pixels to check, again for more; by default the tokenizer's own and one "
            "twice as wide.",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference to torch, relative to its largest value over 1.")
    ] = 1e-3,
) -> None:
    """Write a tokenizer as encoder.onnx and decoder.onnx, checked with onnxruntime.

    Pictures are in [-1, 1], latents raw; tokenizer.json beside the graphs has the latent's statistics. Sizes
    that the network does not allow to stay open are fixed, a file each, which is then said.
    """
    from lumitok.pipelines.export import export_checkpoint, parse_size

    report = export_checkpoint(checkpoint, out, [parse_size(text) for text in size or []], tolerance)
    listed = table("file", "outputs", "open", "batch", "picture", "largest difference", "relative")
    for graph in report.graphs:
        for check in graph.checks:
            listed.add_row(
                graph.file,
                ", ".join(graph.outputs),
                graph.open,
                str(check.batch),
                f"{check.height} x {check.width}",
                f"{check.difference:.1e}",
                f"{check.relative:.1e}",
            )
    printer = console()
    printer.print(listed)
    for graph in report.graphs:
        if graph.why_fixed:
            printer.print(f"{graph.file} leaves {graph.open} of its shape open: {graph.why_fixed}")
    if report.description["latents_mean"] is None:
        printer.print(
            "The tokenizer carries no latent statistics, so tokenizer.json has none; `lumitok statistics` "
            "measures them."
        )
    typer.echo(f"Written: {report.out}")
