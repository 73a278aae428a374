"""``lumitok import-weights``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lumitok.cli.tables import console, table

if TYPE_CHECKING:
    from lumitok.pipelines.import_folder import ImportReport
    from lumitok.pipelines.import_network import Kind

TAKES = {
    "vfm-vae": {
        "encoder",
        "layers",
        "scale",
        "image_size",
        "encoder_weights",
        "latents_stats",
        "latents_count",
        "faults",
    },
    "diffusers": {"image_size", "faults"},
    "va-vae": {"image_size", "latents_stats", "latents_count", "faults"},
    "lightningdit": {"raw", "heads", "faults"},
    "sit": {"raw", "heads", "faults"},
    "repa": {"raw", "heads", "projector_block", "faults"},
    "reg": {"raw", "heads", "projector_block", "faults"},
}
"""What can be imported, and the options that each takes."""
NETWORKS = ("lightningdit", "sit", "repa", "reg")
"""Those that are diffusion networks; the others are tokenizers."""


def import_weights(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="What wrote the file: vfm-vae, va-vae or diffusers; lightningdit, sit, repa or reg.",
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The official checkpoint (.pth, .pt, .safetensors); of diffusers an AutoencoderKL's folder.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="vfm-vae: the frozen encoder (`lumitok doctor` lists them); siglip2-large-patch16-512.",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="vfm-vae: layers of the encoder that the file was trained on; 0,12,-1."
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            help="vfm-vae: side of the encoder's input over the picture's; by default as the shapes say."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the pictures in pixels; by default as the files say, else 256."),
    ] = None,
    encoder_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="vfm-vae: the encoder's weights under timm's names.")
    ] = None,
    latents_stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="vfm-vae, va-vae: latents_stats.pt, mean and std of the latent."),
    ] = None,
    latents_count: Annotated[
        int | None,
        typer.Option(min=1, help="vfm-vae, va-vae: pictures that the statistics were measured on; 10000."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Networks: the weights as trained (model), not their average (ema).")
    ] = False,
    heads: Annotated[
        int | None,
        typer.Option(min=1, help="Networks: attention heads, where neither the shapes nor the size say."),
    ] = None,
    projector_block: Annotated[
        int | None,
        typer.Option(
            min=1, help="repa, reg: the block that the projector reads; by default as the file says, else 8."
        ),
    ] = None,
    faults: Annotated[
        Path | None, typer.Option(metavar="FILE", help="List every wrong key here, where there are any.")
    ] = None,
) -> None:
    """Turn an official checkpoint into a tokenizer folder or a network folder.

    vfm-vae: the released VFM-VAE. va-vae: VA-VAE's checkpoints (LightningDiT), and others of latent
    diffusion's code. Where these have discriminators, `train ... init=` takes them up from the folder;
    unknown ones are left out, and the table says why.

    diffusers: a folder of an AutoencoderKL, such as the SD-VAE; its scaling and shift
    become the latent's statistics.

    lightningdit, sit, repa, reg: the diffusion networks of those names. Time and velocity of REPA and REG,
    which run the other way, are turned round in the weights.

    Nothing in the file is executed. A tokenizer or network with a key missing, left over or of another
    shape is refused.
    """
    given = {
        "encoder": encoder,
        "layers": layers,
        "scale": scale,
        "image_size": image_size,
        "encoder_weights": encoder_weights,
        "latents_stats": latents_stats,
        "latents_count": latents_count,
        "raw": raw or None,
        "heads": heads,
        "projector_block": projector_block,
        "faults": faults,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    _check(kind, options)
    if "layers" in options:
        options["layers"] = _layers(str(layers))
    report = _import(kind, file, out, options)
    listed = table("", "tensors", "about")
    listed.columns[1].justify = "right"
    for row in report.rows:
        listed.add_row(row.what, str(row.tensors) if row.tensors else "", row.about)
    printer = console()
    printer.print(listed)
    printer.print(f"\n{report.about}")
    typer.echo(f"The {'network' if kind in NETWORKS else 'tokenizer'}: {report.out}")


def _import(kind: str, file: Path, out: Path, options: dict[str, Any]) -> ImportReport[Any]:
    if kind == "vfm-vae":
        from lumitok.pipelines.import_weights import Options, import_vfm_vae

        return import_vfm_vae(file, out, Options(**options))
    if kind in NETWORKS:
        from lumitok.pipelines.import_network import NetworkOptions, import_network

        return import_network(cast("Kind", kind), file, out, NetworkOptions(**options))
    from lumitok.pipelines.import_ldm import LDMOptions, import_diffusers, import_va_vae

    return (import_diffusers if kind == "diffusers" else import_va_vae)(file, out, LDMOptions(**options))


def _check(kind: str, options: dict[str, Any]) -> None:
    """Raise a LumitokError for an unknown kind, or an option that belongs to another."""
    from lumitok.errors import LumitokError, nearest

    if kind not in TAKES:
        raise LumitokError(f"lumitok imports {', '.join(TAKES)}, not '{kind}'{nearest(kind, TAKES)}")
    for name in options:
        if name not in TAKES[kind]:
            flag = f"--{name.replace('_', '-')}"
            owners = " and ".join(other for other, names in TAKES.items() if name in names)
            raise LumitokError(f"{flag} is an option of {owners}; {kind} does not take it, leave it out")
    if "latents_count" in options and "latents_stats" not in options:
        raise LumitokError("--latents-count counts the pictures of --latents-stats; name that file too")


def _layers(text: str) -> tuple[int, ...]:
    from lumitok.errors import LumitokError

    try:
        return tuple(int(number) for number in text.strip("[]").split(","))
    except ValueError:
        raise LumitokError(f"--layers are whole numbers such as 0,12,-1, not '{text}'") from None
