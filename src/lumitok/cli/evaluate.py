"""``lumitok evaluate``: reconstruction, generation, representation, latents, layers.

Long because every option of five verbs stands here with its help.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lumitok.cli.arguments import (
    CropSize,
    JudgeWeights,
    LatentsTokenizer,
    NetworkCheckpoint,
    ReferencePictures,
)
from lumitok.cli.tables import console, table

if TYPE_CHECKING:
    from lumitok.pipelines.keep_results import Results

evaluate = typer.Typer(
    help="Measure tokenizers and generated pictures; every number says how it was made.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Checkpoint = Annotated[
    str,
    typer.Argument(metavar="CHECKPOINT", help="Folder of a run, a checkpoint or a tokenizer, or a hub id."),
]
Data = Annotated[
    Path, typer.Option(help="Folder, zip or npz of pictures; each is centre-cropped to the tokenizer's size.")
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Where to keep the results; by default evaluation/ in the checkpoint's folder.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures at a time in each process.")]
Latent = Annotated[Literal["mean", "sample"], typer.Option(help="The posterior's mean, or one draw from it.")]


@evaluate.command()
def reconstruction(
    checkpoint: Checkpoint,
    data: Data,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures to measure, spread evenly; all by default.", show_default=False),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Measure only this: rfid, ris, psnr, ssim, ssim-range-2, ms-ssim, l1, lpips, dists; may be "
            "given several times.",
            show_default=False,
        ),
    ] = None,
    perceptual_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Also measure a feature distance on this registered encoder; it is not LPIPS.",
            show_default=False,
        ),
    ] = None,
    vgg16: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="torchvision's VGG16 weights, for LPIPS and DISTS.", show_default=False
        ),
    ] = None,
    set_encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Network on which the two sets are compared: inception (rFID, rIS) or a registered encoder "
            "(rFD-NAME).",
        ),
    ] = "inception",
    set_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="That network's weights.", show_default=False)
    ] = None,
    latent: Latent = "mean",
    rounding: Annotated[
        Literal["nearest", "legacy"],
        typer.Option(help="How decoded values become 8 bits; legacy truncates, as some published code."),
    ] = "nearest",
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    per_image: Annotated[bool, typer.Option(help="Keep every picture's scores.")] = True,
    save_reconstructions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Empty folder for originals and reconstructions.", show_default=False
        ),
    ] = None,
    json: Json = None,
) -> None:
    """How close pictures come back: rFID, rIS, PSNR, SSIM, MS-SSIM, LPIPS, DISTS, L1."""
    from lumitok.pipelines.evaluate_reconstruction import evaluate_reconstruction
    from lumitok.pipelines.keep_results import check_target

    check_target(json)
    results = evaluate_reconstruction(
        checkpoint,
        str(data),
        count=count,
        metrics=metric or None,
        perceptual_encoder=perceptual_encoder,
        vgg16=vgg16,
        set_encoder=set_encoder,
        set_weights=set_weights,
        latent=latent,
        rounding=rounding,
        seed=seed,
        batch_size=batch_size,
        per_image=per_image,
        save_reconstructions=save_reconstructions,
    )
    _keep_and_print(results, json, beside=checkpoint)


@evaluate.command()
def generation(
    samples: Annotated[
        Path, typer.Argument(metavar="SAMPLES", help="Folder, zip or npz (arr_0) of generated pictures.")
    ],
    reference: ReferencePictures,
    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Network to judge by; any encoder of `lumitok doctor` gives the same distances under its "
            "own name.",
        ),
    ] = "inception",
    weights: JudgeWeights = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Measure only this: fid, sfid, is, precision, recall, kid; on other encoders fd, precision, "
            "recall, kd; may be given several times.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, help="Judge so many samples, drawn with the seed; all by default.", show_default=False
        ),
    ] = None,
    size: CropSize = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    neighbours: Annotated[int, typer.Option(min=1, help="k of precision and recall.")] = 3,
    split_size: Annotated[int, typer.Option(min=1, help="Samples a split of the Inception score.")] = 5000,
    kid_subsets: Annotated[int, typer.Option(min=1, help="Draws of KID.")] = 100,
    kid_subset_size: Annotated[int, typer.Option(min=2, help="Pictures a draw of KID.")] = 1000,
    labels: Annotated[
        str | None,
        typer.Option(
            help="For the protocol: how the classes were chosen; by default as the npz says.",
            show_default=False,
        ),
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(help="For the protocol: guidance scale and interval.", show_default=False)
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="For the protocol: the flow's solver.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="For the protocol: its evaluations.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Keep the results there.", show_default=False),
    ] = None,
) -> None:
    """How good generated pictures are: FID, sFID, IS, precision, recall, KID, FD-DINOv2."""
    from lumitok.pipelines.evaluate_generation import evaluate_generation
    from lumitok.pipelines.generation_plan import Settings
    from lumitok.pipelines.keep_results import check_target

    settings = Settings(
        k=neighbours, split_size=split_size, kid_subsets=kid_subsets, kid_subset_size=kid_subset_size
    )
    check_target(json)
    results = evaluate_generation(
        samples,
        reference,
        encoder=encoder,
        weights=weights,
        metrics=metric or None,
        count=count,
        size=size,
        batch_size=batch_size,
        seed=seed,
        settings=settings,
        labels=labels,
        guidance=guidance,
        solver=solver,
        steps=steps,
    )
    _keep_and_print(results, json)


@evaluate.command()
def representation(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help="A tokenizer (run, checkpoint, folder or hub id), an encoder's name (NAME=FILE names its "
            "weights), or `pixels`.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="Pictures to measure on: folder, zip or npz.")],
    train_data: Annotated[
        Path | None,
        typer.Option(
            help="Pictures to train linear probes on, in the same class folders; without it no probe.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENCODER",
            help="Encoder that CKNNA compares with, may be given several times; by default the tokenizer's "
            "own at its own input size.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str,
        typer.Option(
            metavar="1,3,-1", help="Layers of the encoder that is measured; its end is always read."
        ),
    ] = "",
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PX",
            help="Side of the pictures; by default the tokenizer's, otherwise as stored.",
            show_default=False,
        ),
    ] = None,
    encoder_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PX",
            help="Side at which named encoders see the pictures; by default 16 patches, or a pyramid's "
            "training size.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, help="Pictures for all but the probe, evenly spread over the listing.")
    ] = 10_000,
    k: Annotated[int, typer.Option("--k", min=2, help="Neighbours of CKNNA.")] = 10,
    latent: Latent = "sample",
    changes: Annotated[
        bool, typer.Option(help="Measure SE-CKNNA and invariance too; six times as long.")
    ] = True,
    scaled: Annotated[
        Literal["back", "smaller"],
        typer.Option(help="Whether a picture with another scale is brought back to its size."),
    ] = "back",
    train_count: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures to train probes on; all by default.", show_default=False),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the probe.")] = 3,
    standardize: Annotated[
        bool, typer.Option(help="Standardise features before the probe; AlignTok does not say.")
    ] = False,
    memory: Annotated[
        float, typer.Option(min=0.1, help="GiB of stored features; beyond it they are read in every epoch.")
    ] = 4.0,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """What a latent or an encoder knows: CKNNA, SE-CKNNA, invariance, linear probe."""
    from lumitok.errors import LumitokError
    from lumitok.pipelines.evaluate_representation import ProbeSettings, evaluate_representation
    from lumitok.pipelines.keep_results import check_target

    try:
        read = [int(layer) for layer in layers.split(",")] if layers else None
    except ValueError:
        raise LumitokError(f"--layers is numbers parted by commas, such as 1,3,-1, not '{layers}'") from None
    check_target(json)
    results = evaluate_representation(
        subject,
        str(data),
        train_data=None if train_data is None else str(train_data),
        references=reference or (),
        layers=read,
        size=size,
        encoder_side=encoder_side,
        count=count,
        k=k,
        latent=latent,
        changes=changes,
        scaled=scaled,
        probe=ProbeSettings(epochs=epochs, standardize=standardize, seed=seed),
        train_count=train_count,
        memory=memory,
        batch_size=batch_size,
        seed=seed,
    )
    _keep_and_print(results, json, beside=subject)


@evaluate.command()
def latents(
    checkpoint: Checkpoint,
    data: Data,
    count: Annotated[
        int, typer.Option(min=1, help="Pictures to measure at most, spread evenly over the listing.")
    ] = 10_000,
    runs: Annotated[
        int,
        typer.Option(min=1, help="Draws of positions for the density, each with a t-SNE; papers average 10."),
    ] = 1,
    latent: Latent = "sample",
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where pictures go: latents in colour, interpolations, spectrum, channels, density; by "
            "default beside the results.",
            show_default=False,
        ),
    ] = None,
    density: Annotated[
        bool, typer.Option(help="Measure the density figures, which need scikit-learn and scipy.")
    ] = True,
    json: Json = None,
) -> None:
    """What the latent space is like: density, variance, rank, spectrum, and pictures of it."""
    from lumitok.pipelines.evaluate_latents import evaluate_latents
    from lumitok.pipelines.keep_results import check_target, results_folder

    check_target(json)
    results = evaluate_latents(
        checkpoint,
        str(data),
        count=count,
        runs=runs,
        latent=latent,
        seed=seed,
        batch_size=batch_size,
        out=out or results_folder(checkpoint),
        density=density,
    )
    _keep_and_print(results, json, beside=checkpoint)


@evaluate.command()
def layers(
    checkpoint: NetworkCheckpoint,
    data: Data,
    tokenizer: LatentsTokenizer = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENCODER",
            help="Encoder to compare with (NAME=FILE names its weights), may be given several times; by "
            "default the tokenizer's own.",
            show_default=False,
        ),
    ] = None,
    time: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How far the latents are from noise, 0, to data, 1.")
    ] = 0.5,
    encoder_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PX",
            help="Side at which named encoders see the pictures; by default 16 patches.",
            show_default=False,
        ),
    ] = None,
    class_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="ENCODER",
            help="Gives the class token that a network of REG sees; by default the encoder of its recipe.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures, evenly spread over the listing.")] = 10_000,
    k: Annotated[int, typer.Option("--k", min=2, help="Neighbours of CKNNA.")] = 10,
    latent: Latent = "sample",
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """How each block of a diffusion network sees pictures: CKNNA with encoders, and a plot over depth."""
    from lumitok.pipelines.evaluate_layers import evaluate_layers, layers_plot
    from lumitok.pipelines.keep_results import check_target

    check_target(json)
    results = evaluate_layers(
        checkpoint,
        str(data),
        tokenizer=tokenizer,
        references=reference or (),
        time=time,
        encoder_side=encoder_side,
        class_encoder=class_encoder,
        count=count,
        k=k,
        latent=latent,
        batch_size=batch_size,
        seed=seed,
    )
    kept = _keep_and_print(results, json, beside=checkpoint)
    if kept is not None:
        plot = kept.with_suffix(".png")
        plot.write_bytes(layers_plot(results).png())
        console().print(f"Plot: {plot}")


def _keep_and_print(results: Results, json: Path | None, beside: str = "") -> Path | None:
    """Write the results, and print the numbers, how they were made, and what was left out.

    Returns where they were written; None where nowhere, and on every process but the main one.
    """
    from lumitok.pipelines.keep_results import is_main, keep_results

    kept = keep_results(results, json, beside)
    if not is_main():
        return None
    listed = table("", "value", "", "how")
    shared, own = results.how()
    marks: dict[str, int] = {}  # How a number was made -> its mark; many are made alike.
    for number, how in zip(results.numbers, own, strict=True):
        spread = "" if number.spread is None else f" ± {number.spread:.4g}"
        mark = str(marks.setdefault(how, len(marks) + 1)) if how else ""
        listed.add_row(number.name, f"{number.value:.6g}{spread}", number.unit, mark)
    printer = console()
    printer.print(listed)
    for how, place in marks.items():
        printer.print(f"{place}  {how}")
    if shared:
        printer.print(f"All of them: {shared}")
    for name, why in results.tables.get("not measured", {}).items():
        printer.print(f"Not measured: {name}: {why}")
    for reason, count in results.left_out.items():
        printer.print(f"Left out: {count} ({reason})")
    for warning in results.tables.get("warnings", []):
        typer.secho(f"Warning: {warning}", fg=typer.colors.YELLOW, bold=True, err=True)
    printer.print("Not kept: name a file with --json" if kept is None else f"Kept in {kept}")
    return kept
