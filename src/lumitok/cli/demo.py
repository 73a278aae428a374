"""``lumitok demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write to; default runs/demo, with --fast runs/demo-fast."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="A few steps of each training, to see that all of it runs.")
    ] = False,
) -> None:
    """Train small tokenizers here and write a report that shows them side by side.

    It needs no network: the encoder and the pictures come with pip packages.
    """
    from lumitok.pipelines.demo import run_demo

    report = run_demo(out or Path("runs/demo-fast" if fast else "runs/demo"), fast=fast)
    typer.echo(f"The report: {report}")
