"""``lumitok demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("runs/demo"),
    fast: Annotated[bool, typer.Option("--fast", help="A few steps, to see that all of it runs.")] = False,
) -> None:
    """Train a small tokenizer here and write a report.

    It needs no network: the encoder and the pictures come with pip packages.
    """
    from lumitok.pipelines.demo import run_demo

    report = run_demo(out, fast=fast)
    typer.echo(f"The report: {report}")
