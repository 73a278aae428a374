"""``lumitok cost``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lumitok.cli.tables import console, table
from lumitok.errors import LumitokError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lumitok.pipelines.cost import Cost, Costs
    from lumitok.pipelines.cost_child import Measurement

TIMES = ("fastest to slowest", "peak MiB")


def cost(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE...]",
            help="Recipes, YAML files, or folders of a run, a checkpoint or a tokenizer (without training); "
            "changes hold for all recipes.",
        ),
    ],
    sizes: Annotated[str, typer.Option(metavar="N,N", help="Sides of the pictures in pixels.")] = (
        "256,512,1024"
    ),
    batch_sizes: Annotated[str, typer.Option(metavar="N,N", help="Pictures at a time.")] = "1,4,8",
    device: Annotated[
        Literal["cpu", "cuda", "mps"] | None,
        typer.Option(help="Where to compute; by default where a run would.", show_default=False),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"] | None,
        typer.Option(help="The recipe's by default; the paper's inference is fp32.", show_default=False),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs after the warm-up.")] = 5,
    limit_seconds: Annotated[
        float, typer.Option(min=0, help="What takes longer is not measured, and said so.")
    ] = 120,
    training: Annotated[
        bool, typer.Option("--training/--no-training", help="Measure a training step of each stage.")
    ] = True,
    train_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images of a training step; the stage's by default.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what tokenizers cost on this machine: parameters, GMACs, time and memory.

    No weights are needed: all are random, and cost does not depend on them.
    """
    from lumitok.pipelines.cost import Request, measure_costs

    request = Request(
        sizes=_numbers("--sizes", sizes),
        batch_sizes=_numbers("--batch-sizes", batch_sizes),
        device=device,
        precision=precision,
        repeats=repeats,
        limit=limit_seconds,
        training=training,
        train_batch=train_batch,
    )
    found = measure_costs(recipes, request, say=lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _print(found)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise LumitokError(f"{option} is whole numbers with commas, such as 256,512; not '{text}'") from None


def _print(costs: Costs) -> None:
    printer = console()
    for each in costs.costs:
        printer.print(f"{each.name}: {each.model}, {each.precision}\n")
        parts = _right("parameters", "millions")
        for part in ("encoder", "decoder", "trainable", "frozen"):
            parts.add_row(part, _millions(getattr(each.parameters, part)))
        printer.print(parts)
        _print_verbs(printer, each, costs.limit_seconds)
        _print_stages(printer, each, costs.limit_seconds)
        printer.print()
    machine = ", ".join(name for name in costs.machine if name.split(":")[0].startswith(costs.device))
    versions = ", ".join(f"{name} {costs.versions[name]}" for name in ("lumitok", "torch"))
    printer.print(f"{machine}; {costs.threads} threads; {costs.machine['system']}; {versions}; {costs.made}")
    for sentence in costs.how:
        printer.print(sentence)


def _print_verbs(printer: Console, cost: Cost, limit: float) -> None:
    for verb in ("encode", "decode"):
        rows = _right(verb, "batch", "GMACs a picture", "ms", *TIMES)
        for row in cost.verbs:
            if row.verb == verb:
                cells = _cells(row.measured, limit, 1e3, ".1f")
                rows.add_row(f"{row.size} px", str(row.batch), f"{row.gmacs:.2f}", *cells)
        printer.print()
        printer.print(rows)


def _print_stages(printer: Console, cost: Cost, limit: float) -> None:
    if not cost.stages:
        return
    rows = _right(
        "training step", "batch", "trained, M", "discriminator, M", "frozen, M", "s", *TIMES, "hours a stage"
    )
    for stage in cost.stages:
        counted = stage.parameters
        rows.add_row(
            stage.name,
            str(stage.batch),
            _millions(counted.trainable + counted.discriminator),
            _millions(counted.discriminator),
            _millions(counted.frozen),
            *_cells(stage.measured, limit, 1, ".3f"),
            "" if stage.hours is None else f"{stage.hours:.2f}",
        )
    printer.print()
    printer.print(rows)
    printer.print("trained: the discriminator's too, as the paper's Table 6 counts.")


def _cells(measured: Measurement, limit: float, factor: float, form: str) -> list[str]:
    """Time, spread and memory, or why there are none."""
    if measured.seconds is None or measured.fastest is None or measured.slowest is None:
        why = f"over {limit:g} s" if measured.status == "over the limit" else measured.status
        return [why, measured.note, ""]
    median, low, high = (
        format(factor * value, form) for value in (measured.seconds, measured.fastest, measured.slowest)
    )
    peak = "" if measured.peak_bytes is None else f"{measured.peak_bytes / 2**20:.0f}"
    return [median, f"{low} to {high}", peak]


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _right(first: str, *headings: str) -> Table:
    made = table(first, *headings)
    for column in made.columns[1:]:
        column.justify = "right"
    return made
