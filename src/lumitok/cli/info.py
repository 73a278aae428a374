"""``lumitok info``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lumitok.cli.tables import console, table

if TYPE_CHECKING:
    from lumitok.pipelines.information import Information


def info(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_CHECKPOINT",
            help="A recipe's name, a YAML file, or the folder of a run, a checkpoint or a tokenizer.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a tokenizer's parameters, latent and cost.

    No weights are needed. The cost is counted in multiply-accumulates (MACs) for one picture.
    """
    from lumitok.pipelines.information import inform

    information = inform(name)
    if as_json:
        typer.echo(json.dumps(information.as_dict(), indent=2))
    else:
        _print(information)


def _print(information: Information) -> None:
    parameters, latent = information.parameters, information.latent
    counts = table("parameters", "millions")
    counts.columns[1].justify = "right"
    rows = [*parameters.parts.items(), ("trainable, all of the above", parameters.trainable)]
    rows.append(("frozen encoder", parameters.frozen))
    if parameters.discriminator is not None:
        rows.append(("discriminators, for training only", parameters.discriminator))
    for name, count in rows:
        counts.add_row(name, f"{count / 1e6:.2f}")
    printer = console()
    printer.print(f"{information.name}: {information.model} for {information.image_size} px")
    printer.print(
        f"Latent: {latent['channels']} channels of {latent['height']} x {latent['width']}, "
        f"{information.downsampling} times smaller than the picture a side.\n"
    )
    printer.print(counts)
    if information.stages:
        stages = table("stage", "images", "of these trained, millions")
        for stage in information.stages:
            stages.add_row(stage.name, f"{stage.images:,}", f"{stage.trainable / 1e6:.2f}")
        for column in stages.columns[1:]:
            column.justify = "right"
        printer.print()
        printer.print(stages)
    printer.print(
        f"\nOne picture: encode {information.gmacs['encode']:.2f} GMACs, "
        f"decode {information.gmacs['decode']:.2f} GMACs.\n{information.how}"
    )
