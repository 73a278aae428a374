"""``lumitok info``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lumitok.cli.tables import console, table

if TYPE_CHECKING:
    from lumitok.pipelines.information import Information
    from lumitok.pipelines.network_information import NetworkInformation


def info(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_CHECKPOINT",
            help="A recipe's name, a YAML file, or the folder of a run, a checkpoint or a part of one.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a tokenizer's or a diffusion network's parameters, latent and cost.

    No weights are needed. The cost is counted in multiply-accumulates (MACs) for one picture.
    """
    from lumitok.pipelines.information import inform
    from lumitok.pipelines.network_information import NetworkInformation, inform_network, network_config

    network = network_config(name)
    information = inform(name) if network is None else inform_network(name, network)
    if as_json:
        typer.echo(json.dumps(information.as_dict(), indent=2))
    elif isinstance(information, NetworkInformation):
        _print_network(information)
    else:
        _print(information)


def _print_network(information: NetworkInformation) -> None:
    counts = table("parameters", "millions")
    counts.columns[1].justify = "right"
    for name, count in information.parts.items():
        counts.add_row(name, f"{count / 1e6:.2f}")
    counts.add_row("all of the above", f"{information.parameters / 1e6:.2f}")
    counts.add_row("fixed tables", f"{information.tables / 1e6:.2f}")
    latent, printer = information.latent, console()
    classes = f"{information.classes} classes" if information.classes else "no classes"
    printer.print(f"{information.name}: {information.network}, {classes}")
    printer.print(
        f"Latent: {latent['channels']} channels of {latent['height']} x {latent['width']}, "
        f"{information.tokens} tokens.\n"
    )
    printer.print(counts)
    printer.print(f"\nOne evaluation: {information.gmacs:.2f} GMACs.\n{information.how}")


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
