"""``lumitok reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumitok.cli.tables import console, table


def reconstruct(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder of a run, a checkpoint or a tokenizer, or a hub id."
        ),
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Pictures of any size.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("runs/reconstructions"),
    whole: Annotated[
        bool, typer.Option("--whole", help="Take the pictures as they are, without a crop.")
    ] = False,
    tile: Annotated[
        int,
        typer.Option(min=0, metavar="PX", help="With --whole: side of tiles, for large pictures; 0: none."),
    ] = 0,
) -> None:
    """Write pictures beside their reconstructions.

    Pictures of any size are centre-cropped to the tokenizer's; with --whole they keep theirs, and large
    ones can go tile by tile. PSNR and SSIM are printed.
    """
    from lumitok.pipelines.reconstruct import reconstruct_files

    report = reconstruct_files(checkpoint, images, out, whole=whole, tile=tile)
    listed = table("input beside reconstruction", "PSNR (dB)", "SSIM")
    for row in report.rows:
        similarity = "-" if row.ssim is None else f"{row.ssim:.4f}"
        listed.add_row(str(row.written), f"{row.psnr:.2f}", similarity)
    printer = console()
    printer.print(listed)
    printer.print(report.how)
