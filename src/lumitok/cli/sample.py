"""``lumitok sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lumitok.cli.arguments import (
    Classes,
    LatentsTokenizer,
    NetworkCheckpoint,
    PerClass,
    Precision,
    SampleBatchSize,
    class_names,
)
from lumitok.cli.tables import console
from lumitok.errors import LumitokError


def sample(
    checkpoint: NetworkCheckpoint,
    out: Annotated[Path, typer.Option(help="Folder to write to; gone on with where it holds such samples.")],
    tokenizer: LatentsTokenizer = None,
    classes: Classes = None,
    count: Annotated[
        int | None, typer.Option(min=0, help="Samples; 16 by default.", show_default=False)
    ] = None,
    per_class: PerClass = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps of the solver. This and what follows is by default as the run's recipe or the "
            "pipeline says.",
            show_default=False,
        ),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1.0, help="Guidance scale; 1: none.", show_default=False)
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Times at which it guides, from 0, noise, to 1, data.",
            show_default=False,
        ),
    ] = None,
    guidance_channels: Annotated[
        int | None,
        typer.Option(min=1, help="Guide only so many channels, from the first on.", show_default=False),
    ] = None,
    class_guidance: Annotated[
        float | None, typer.Option(min=1.0, help="Guidance of REG's class token.", show_default=False)
    ] = None,
    autoguidance: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="A weaker network to lead away from, in place of the network without a class.",
            show_default=False,
        ),
    ] = None,
    solver: Annotated[
        Literal["euler", "heun", "dopri5", "euler-maruyama", "ddim"] | None,
        typer.Option(help="From noise to data.", show_default=False),
    ] = None,
    shift: Annotated[
        float | None,
        typer.Option(help="Below 1 the steps lie closer together near noise.", show_default=False),
    ] = None,
    batch_size: SampleBatchSize = 32,
    precision: Precision = "fp32",
    npz: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write all samples, shuffled, as ADM's evaluator reads them.",
            show_default=False,
        ),
    ] = None,
    save_pipeline: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also save tokenizer and network as one pipeline of diffusers.",
            show_default=False,
        ),
    ] = None,
    bundle_encoder: Annotated[
        bool, typer.Option(help="Save the frozen encoder's weights in the pipeline too.")
    ] = False,
) -> None:
    """Draw pictures from a diffusion network.

    Single PNG files, a sheet of the first 100, and with --npz a file for evaluators. A sample depends on the
    seed and its number alone, not on batch size or processes.
    """
    from lumitok.pipelines.keep_results import is_main
    from lumitok.pipelines.sample import Wanted, sample_pictures

    changes: dict[str, Any] = {
        "steps": steps,
        "guidance": guidance,
        "guidance_interval": None if guidance_interval is None else _interval(guidance_interval),
        "guidance_channels": guidance_channels,
        "class_guidance": class_guidance,
        "solver": solver,
        "shift": shift,
    }
    if autoguidance is not None:
        changes["autoguidance"] = autoguidance
    report = sample_pictures(
        checkpoint,
        out,
        Wanted(count, class_names(classes), per_class, seed),
        tokenizer=tokenizer,
        sampling=changes,
        batch_size=batch_size,
        precision=precision,
        npz=npz,
        save_pipeline=save_pipeline,
        bundle_encoder=bundle_encoder,
    )
    if not is_main():
        return
    printer = console()
    if report.pipeline is not None:
        printer.print(f"Saved the pipeline in {report.pipeline}")
    if report.sheet is None:
        return
    speed = f", {report.drawn / report.seconds:.3g} a second" if report.drawn else ""
    printer.print(f"{report.count} samples in {report.out} ({report.drawn} drawn now{speed})")
    printer.print(report.how)
    printer.print(f"Sheet: {report.sheet}")
    if report.npz is not None:
        printer.print(f"For evaluators, shuffled: {report.npz}")


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise LumitokError(
            f"--guidance-interval is two times parted by a comma, such as 0.1,1, not '{text}'"
        ) from None
    return low, high
