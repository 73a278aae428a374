"""``lumitok report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders of runs, whatever they train; of a checkpoint, a tokenizer or a network too, which "
            "have no curves.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("runs/report.html"),
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder or zip of pictures that every tokenizer reconstructs; may be given several times. "
            "Without it: the held-out pictures that each run keeps.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pictures of each to show, spread evenly.")
    ] = 8,
    title: Annotated[str, typer.Option(help="Title of the page.", show_default=False)] = "",
) -> None:
    """Set runs side by side in one HTML file.

    Numbers are those that `lumitok evaluate` left in the runs' folders; the page holds all it needs.
    """
    from lumitok.pipelines.report import write_report

    page = write_report(runs, out, data=data or (), count=pictures, title=title)
    typer.echo(f"The report: {page}")
