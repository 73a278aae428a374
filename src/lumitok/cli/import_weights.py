"""``lumitok import-weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumitok.cli.tables import console, table

KINDS = ("vfm-vae",)


def import_weights(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What wrote the file: vfm-vae.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The official checkpoint: .pth or .safetensors.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    encoder: Annotated[
        str, typer.Option(metavar="NAME", help="The frozen encoder (`lumitok doctor` lists them).")
    ] = "siglip2-large-patch16-512",
    layers: Annotated[
        str, typer.Option(metavar="N,N,...", help="Layers of the encoder that the file was trained on.")
    ] = "0,12,-1",
    scale: Annotated[
        float | None,
        typer.Option(help="Side of the encoder's input over the picture's; by default as the shapes say."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the pictures in pixels; by default as the file says, else 256."),
    ] = None,
    encoder_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The encoder's weights under timm's names.")
    ] = None,
    latents_stats: Annotated[
        Path | None, typer.Option(metavar="FILE", help="latents_stats.pt: mean and std of the latent.")
    ] = None,
    latents_count: Annotated[
        int, typer.Option(min=1, help="Pictures that the statistics were measured on.")
    ] = 10_000,
    faults: Annotated[
        Path | None, typer.Option(metavar="FILE", help="If the file is refused, list every wrong key here.")
    ] = None,
) -> None:
    """Turn an official checkpoint into a tokenizer folder.

    Nothing in the file is executed. A file with a key missing, left over or of another shape is refused.
    """
    from lumitok.errors import LumitokError, nearest

    if kind not in KINDS:
        raise LumitokError(f"lumitok imports {', '.join(KINDS)}, not '{kind}'{nearest(kind, KINDS)}")
    read = _layers(layers)
    from lumitok.pipelines.import_weights import Options, import_vfm_vae

    options = Options(
        encoder=encoder,
        layers=read,
        scale=scale,
        image_size=image_size,
        encoder_weights=encoder_weights,
        latents_stats=latents_stats,
        latents_count=latents_count,
        faults=faults,
    )
    report = import_vfm_vae(file, out, options)
    listed = table("", "tensors", "about")
    listed.columns[1].justify = "right"
    for row in report.rows:
        listed.add_row(row.what, str(row.tensors) if row.tensors else "", row.about)
    settings = report.settings
    printer = console()
    printer.print(listed)
    noise = ", with the constant noise of the released weights" if settings.legacy_noise else ""
    printer.print(
        f"\nA VFM-VAE for {settings.image_size} px, f{settings.downsampling}d{settings.latent_channels}, "
        f"encoder {settings.encoder.name} at layers {settings.encoder.layers} and scale "
        f"{settings.encoder.scale:g}{noise}."
    )
    typer.echo(f"The tokenizer: {report.out}")


def _layers(text: str) -> tuple[int, ...]:
    from lumitok.errors import LumitokError

    try:
        return tuple(int(number) for number in text.strip("[]").split(","))
    except ValueError:
        raise LumitokError(f"--layers are whole numbers such as 0,12,-1, not '{text}'") from None
