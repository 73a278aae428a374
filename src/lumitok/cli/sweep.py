"""``lumitok sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lumitok.cli.arguments import (
    Classes,
    CropSize,
    JudgeWeights,
    PerClass,
    Precision,
    ReferencePictures,
    SampleBatchSize,
    class_names,
)
from lumitok.cli.tables import console, table

if TYPE_CHECKING:
    from lumitok.pipelines.sweep import SweepReport


def sweep(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Diffusion runs, checkpoints, networks or saved pipelines: a line of the plot each.",
        ),
    ],
    over: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=V1,V2",
            help="What is swept: guidance, steps, solver, shift, class-guidance, guidance-channels or eta "
            "with its values, or `checkpoint`, the training step. May be given several times: every "
            "combination is drawn, and the plot runs over the first that is a number.",
        ),
    ],
    reference: ReferencePictures,
    out: Annotated[Path, typer.Option(help="Folder to write to; gone on with where it holds points.")],
    count: Annotated[
        int | None, typer.Option(min=2, help="Samples a point; 5,000 by default.", show_default=False)
    ] = None,
    per_class: PerClass = None,
    classes: Classes = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all samples and labels, the same at every point.")] = 0,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A sampling setting for all points, such as steps=50 or guidance_interval=0.1,1; by default "
            "as each run's recipe says. May be given several times.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Network to judge by: inception (FID), or any encoder of `lumitok doctor` (FD-NAME).",
        ),
    ] = "inception",
    weights: JudgeWeights = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Measure this, as `lumitok evaluate generation` does; may be given several times, and the "
            "first is plotted. By default the Fréchet distance.",
            show_default=False,
        ),
    ] = None,
    size: CropSize = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="The tokenizer of all checkpoints; by default what each run's recipe names.",
            show_default=False,
        ),
    ] = None,
    batch_size: SampleBatchSize = 32,
    precision: Precision = "fp32",
    keep_samples: Annotated[
        bool, typer.Option(help="Keep each point's pictures, not only its sheet, once it is measured.")
    ] = True,
) -> None:
    """Samples of many settings or checkpoints, each measured: a table and a plot.

    Stopped, the same command goes on; points that are finished are read.
    """
    from lumitok.pipelines.keep_results import is_main
    from lumitok.pipelines.sweep import parse_settings, run_sweep

    report = run_sweep(
        checkpoints,
        over,
        reference,
        out,
        count=count,
        per_class=per_class,
        classes=class_names(classes),
        seed=seed,
        sampling=parse_settings(setting or ()),
        tokenizer=tokenizer,
        encoder=encoder,
        weights=weights,
        metrics=metric or None,
        size=size,
        batch_size=batch_size,
        precision=precision,
        keep_samples=keep_samples,
    )
    if is_main():
        _print(report)


def _print(report: SweepReport) -> None:
    numbers = [number.name for number in report.points[0].results.numbers]
    listed = table("", *(key.replace("_", " ") for key in report.over), *numbers)
    for one in report.points:
        swept = [
            f"{value:g}" if isinstance(value, float) else str(value) for value in one.point.values.values()
        ]
        listed.add_row(one.point.model, *swept, *(f"{number.value:.6g}" for number in one.results.numbers))
    printer = console()
    printer.print(listed)
    printer.print(f"All of them: {report.how}")
    read = sum(one.read for one in report.points)
    printer.print(f"{len(report.points)} points in {report.table}" + (f" ({read} read)" if read else ""))
    printer.print("Not plotted: no number is swept" if report.plot is None else f"Plot: {report.plot}")
    for warning in report.warnings:
        typer.secho(f"Warning: {warning}", fg=typer.colors.YELLOW, bold=True, err=True)
