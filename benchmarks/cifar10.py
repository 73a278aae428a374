"""The family side by side on CIFAR-10: trains, measures, prints docs/cifar10.md's tables, draws its figures.

    python benchmarks/cifar10.py --train cifar10-train.zip --test cifar10-test.zip

The two are zips of pictures with a folder a class. What a run or a measurement has left in ``--out`` is used
and not made again, so a stopped command goes on where it was. A recipe takes about a quarter of an hour on
one core: several commands with OMP_NUM_THREADS=1 and different ``--only`` share a machine, but none may need
a run that another is still training (AlignTok's stages begin with one another).
"""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lumitok.config import EncoderConfig, load_recipe
from lumitok.evaluation.image_quality import to_uint8
from lumitok.evaluation.probe import ProbeSettings
from lumitok.evaluation.results import Results

RECIPES = {
    "VAE": "vae",
    "VA-VAE": "va-vae",
    "VFM-VAE": "vfm-vae",
    "AlignTok stage 1": "aligntok-1",
    "AlignTok stage 2": "aligntok-2",
    "AlignTok stage 3": "aligntok-3",
    "AlignTok stage 2, weight 0.1": "aligntok-2-weight-0.1",
    "AlignTok stage 2, weight 0": "aligntok-2-weight-0",
}
CURVES = {"1": "aligntok-2", "0.1": "aligntok-2-weight-0.1", "0": "aligntok-2-weight-0"}
"""Stage 2 by its preservation weight."""
AFTER = dict.fromkeys(CURVES.values(), "aligntok-1") | {"aligntok-3": "aligntok-2"}
"""The recipe whose run another begins with."""
PERCEPTUAL = "efficientnet-lite2"
"""No training sees this network, so it judges all of them alike."""
REFERENCE = EncoderConfig(name="efficientnet-lite2", scale=4.0)
PROBE_PICTURES, TEST_PICTURES, CKNNA_PICTURES = 5_000, 2_000, 1_000
CURVE_PROBE_PICTURES, CURVE_TEST_PICTURES = 2_000, 1_000
CURVE_STEPS = (100, 200, 400, 700)
"""Of stage 2; the curves begin with the end of stage 1."""


def train(name: str, out: Path, pictures: Path, held_out: Path) -> Path:
    """Train a recipe, and what it begins with; go on with it, or find it done."""
    from lumitok.training import train as run

    folder = out / name
    if (folder / "tokenizer" / "config.json").is_file():
        return folder
    changes = [f"data.train={pictures}", f"data.validation={held_out}", f"out={folder}"]
    if name in AFTER:
        changes.append(f"init={train(AFTER[name], out, pictures, held_out)}")
    return run(load_recipe(f"cifar10/{name}", changes), resume=True)


def first_pictures(source: Path, count: int, out: Path) -> Path:
    """A zip of the first pictures of each class, ``count`` in all."""
    target = out / f"{source.stem}-{count}.zip"
    if not target.is_file():
        out.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.partial")  # Another command may be making it too.
        with zipfile.ZipFile(source) as whole, zipfile.ZipFile(partial, "w") as part:
            classes: dict[str, list[str]] = {}
            for name in sorted(name for name in whole.namelist() if not name.endswith("/")):
                classes.setdefault(name.rpartition("/")[0], []).append(name)
            for names in classes.values():
                for name in names[: count // len(classes)]:
                    part.writestr(name, whole.read(name))
        partial.rename(target)
    return target


def measured(subject: Path, train: Path, test: Path, *, curve: bool = False) -> tuple[Results, Results]:
    """Measure a run or a checkpoint, or read what was measured before; a point of a curve needs less."""
    from lumitok.evaluation.representations import TokenizerLatent
    from lumitok.pipelines.evaluate_reconstruction import evaluate_reconstruction
    from lumitok.pipelines.evaluate_representation import evaluate_representation
    from lumitok.pipelines.reconstruct import open_tokenizer

    count, probe = TEST_PICTURES, PROBE_PICTURES
    if curve:
        count, probe = CURVE_TEST_PICTURES, CURVE_PROBE_PICTURES
    test = first_pictures(test, count, subject.parents[2 if curve and "step-" in subject.name else 0])
    found = []
    for kind in ("reconstruction", "representation"):
        path = subject / "evaluation" / f"cifar10-{kind}-{count}-{probe}.json"
        if not path.is_file():
            if kind == "reconstruction":
                results = evaluate_reconstruction(
                    str(subject), test, metrics=("psnr", "ssim", "l1"),
                    perceptual_encoder=None if curve else PERCEPTUAL,
                )  # fmt: skip
            else:
                # The latent alone, not the tokenizer: its encoder's own features are of no interest here.
                latent = TokenizerLatent(open_tokenizer(str(subject)), "mean", 0)
                results = evaluate_representation(
                    latent, test, train_data=train, size=32, references=() if curve else (REFERENCE,),
                    count=CKNNA_PICTURES, changes=False, probe=ProbeSettings(seed=0),
                    train_count=probe, memory=8.0,
                )  # fmt: skip
            results.save(path)
        found.append(Results.load(path))
    return found[0], found[1]


def value(results: Results, *words: str) -> float:
    """The one number whose name has all these words."""
    chosen = [n.value for n in results.numbers if all(word in n.name for word in words)]
    if len(chosen) != 1:
        raise SystemExit(f"{len(chosen)} numbers of {results.subject} have {words} in their names: "
                         f"{[n.name for n in results.numbers]}")  # fmt: skip
    return chosen[0]


def table(out: Path, names: Sequence[str], train: Path, test: Path) -> list[str]:
    """One row a tokenizer."""
    lines = [
        "| Tokenizer | Trainable | PSNR | SSIM | Perceptual | Probe | CKNNA |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for title, name in RECIPES.items():
        if name not in names:
            continue
        near, meaning = measured(out / name, train, test)
        lines.append(
            f"| {title} | {trainable(out / name):.2f} M "
            f"| {value(near, 'PSNR'):.2f} dB | {value(near, 'SSIM'):.3f} "
            f"| {value(near, PERCEPTUAL):.3f} | {value(meaning, 'linear probe, latent', 'flattened'):.1f} % "
            f"| {value(meaning, 'CKNNA'):.3f} |"
        )
    return lines


def trainable(run: Path) -> float:
    """Millions of parameters that the run's stage trains."""
    import torch

    from lumitok.tokenizers import build_tokenizer
    from lumitok.training.steps import choose_trainable

    recipe = load_recipe(str(run / "recipe.yaml"))
    with torch.device("meta"):
        tokenizer = build_tokenizer(recipe.model, load_weights=False)
    return sum(p.numel() for p in choose_trainable(tokenizer, recipe.stages[-1])) / 1e6


def curves(out: Path, train: Path, test: Path, figure: Path) -> list[str]:
    """PSNR and linear probe over the steps of stage 2 (AlignTok's Figure 3), as a table and a figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    weights = [f"weight {weight}" for weight in CURVES]
    titles = " | ".join(f"{what}, {weight}" for what in ("PSNR", "Probe") for weight in weights)
    lines = [f"| Step of stage 2 | {titles} |", "|--:" * (1 + 2 * len(weights)) + "|"]
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for title, name in zip(weights, CURVES.values(), strict=True):
        begin = {0: out / AFTER[name]}
        steps = {step: out / name / "checkpoints" / f"step-{step:08d}" for step in CURVE_STEPS}
        found[title] = {}
        for step, subject in sorted((begin | steps).items()):
            near, meaning = measured(subject, train, test, curve=True)
            point = value(near, "PSNR"), value(meaning, "linear probe, latent", "flattened")
            found[title][step] = point
    for step in (0, *CURVE_STEPS):
        points = [curve[step] for curve in found.values()]
        row = [f"{psnr:.2f} dB" for psnr, _ in points] + [f"{probe:.1f} %" for _, probe in points]
        lines.append(f"| {step} | {' | '.join(row)} |")
    drawn, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, place, label in zip(axes, (0, 1), ("PSNR, dB", "linear probe, %"), strict=True):
        for title, points in found.items():
            axis.plot(list(points), [point[place] for point in points.values()], marker="o", label=title)
        axis.set(xlabel="step of stage 2", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend()
    drawn.savefig(figure, dpi=120)
    return lines


def sheet(out: Path, names: Sequence[str], test: Path) -> Image.Image:
    """The first test picture of each class, and what each tokenizer makes of it."""
    import torch

    from lumitok.evaluation.picture_sets import open_picture_set
    from lumitok.evaluation.pictures import grid
    from lumitok.pipelines.reconstruct import open_tokenizer

    source = open_picture_set(first_pictures(test, 10, out), size=32)
    pixels = torch.cat([batch for batch, _ in source.batches(range(10), 10)])
    rows, labels = [list(pixels)], ["original"]
    for title, name in RECIPES.items():
        if name in names:
            tokenizer = open_tokenizer(str(out / name))
            with torch.no_grad():
                back = tokenizer.reconstruct(pixels.float() / 127.5 - 1)
            rows.append(list(to_uint8(back)))
            labels.append(title)
    return grid(rows, labels=labels, cell=64)


def main() -> None:
    """Train, measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, help="CIFAR-10's training pictures, a folder a class")
    parser.add_argument("--test", type=Path, help="its test pictures")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument(
        "--only", nargs="*", choices=[*RECIPES.values(), "curves"], help="these rows, or the curves"
    )
    chosen = parser.parse_args()
    if chosen.train is None or chosen.test is None:
        print("left out: it needs CIFAR-10 as pictures; see --help")
        return
    names = chosen.only or [*RECIPES.values(), "curves"]
    wanted = [name for name in names if name != "curves"] + (
        list(CURVES.values()) if "curves" in names else []
    )
    for name in wanted:
        train(name, chosen.out, chosen.train, chosen.test)
    print("\n".join(table(chosen.out, names, chosen.train, chosen.test)))
    sheet(chosen.out, names, chosen.test).save(chosen.out / "pictures.png")
    if "curves" in names:
        print()
        print("\n".join(curves(chosen.out, chosen.train, chosen.test, chosen.out / "preservation.png")))


if __name__ == "__main__":
    main()
