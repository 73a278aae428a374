"""Runs side by side on one page: what ``lumitok report`` and the end of ``lumitok demo`` write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import yaml

from lumitok.config import AnyRecipe, DiffusionStageConfig, PictureRecipe, Recipe, StageConfig
from lumitok.errors import LumitokError
from lumitok.evaluation.results import FOLDER
from lumitok.pipelines.information import HOW, Information, inform
from lumitok.pipelines.network_information import NetworkInformation, inform_network
from lumitok.pipelines.report_album import Album, make_album
from lumitok.pipelines.report_curves import add_curves
from lumitok.pipelines.report_networks import (
    NETWORKS,
    add_layers,
    add_network_cost,
    in_words,
    maker_of,
    network_facts,
    network_fingerprints,
    without_blocks,
)
from lumitok.pipelines.report_numbers import GENERATED, Group, RunsReport, group_results
from lumitok.pipelines.report_pictures import (
    add_evaluation_pictures,
    add_latents,
    add_moments,
    add_reconstructions,
    add_resolutions,
    latent_shape,
)
from lumitok.pipelines.report_runs import Run, open_runs
from lumitok.pipelines.report_samples import add_samples, add_sweeps

PICTURES = 8
"""Pictures of each set that are shown."""


@dataclass(frozen=True)
class Material:
    """All that a report is made of."""

    runs: list[Run]
    groups: list[Group]
    album: Album
    information: dict[str, Information]
    """On the tokenizers, by the run's name."""
    networks: dict[str, NetworkInformation] = field(default_factory=dict)
    """On the networks, by the run's name."""
    makers: dict[str, str | None] = field(default_factory=dict)
    """Which tokenizers made the networks' latents, by the run's name."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of the networks, by the run's name; those of the tokenizers are the album's."""


def write_report(
    runs: Sequence[Path], out: Path, *, data: Sequence[Path] = (), count: int = PICTURES, title: str = ""
) -> Path:
    """Set runs side by side in one HTML file that needs nothing beside it, and return its path.

    Args:
        runs: folders that ``lumitok train`` wrote, whatever they train; the folder of a checkpoint, a
            tokenizer or a network has no curves.
        out: the HTML file; its folder is made if need be.
        data: folders or zips whose pictures every tokenizer reconstructs; none: the held-out examples in
            the runs' folders.
        count: pictures of each that are shown.
        title: over the page.

    Raises:
        LumitokError: a folder is no run, was given twice, or holds a damaged file; ``data`` holds no
            picture, or no run has a tokenizer to reconstruct it; or ``out`` is not a file to write.
    """
    if out.is_dir() or count < 1:
        raise LumitokError(
            f"the report goes to a file and shows at least one picture; got '{out}' and {count}"
        )
    return compose(gather(runs, data=data, count=count), title=title).write(out)


def gather(runs: Sequence[Path], *, data: Sequence[Path] = (), count: int = PICTURES) -> Material:
    """Read the runs, reconstruct the pictures and count the cost; see :func:`write_report`."""
    opened = open_runs(runs)
    return Material(
        runs=opened,
        groups=group_results(opened),
        album=make_album(opened, data, count),
        information={run.name: inform(_described_by(run)) for run in opened if _described_by(run)},
        networks={run.name: inform_network(run.name, run.network) for run in opened if run.network},
        makers={run.name: maker_of(run) for run in opened},
        fingerprints=network_fingerprints(opened),
    )


def _described_by(run: Run) -> str:
    if run.tokenizer is not None:
        return str(run.tokenizer)
    return str(run.path / "recipe.yaml") if isinstance(run.recipe, Recipe) else ""


def compose(material: Material, *, title: str = "", subtitle: str = "") -> RunsReport:
    """Lay a report out; empty words are made from the runs."""
    runs = material.runs
    report = RunsReport(title or _title(runs), subtitle or _subtitle(material))
    if len(runs) == 1:
        _cards(report, material)
    _numbers(report, material)
    add_reconstructions(report, material.album, alone=len(runs) == 1)
    add_moments(report, runs)
    add_resolutions(report, material.album)
    add_latents(report, material.album, material.information, alone=len(runs) == 1)
    add_samples(report, runs)
    add_layers(report, material.groups)
    add_sweeps(report, runs)
    add_curves(report, runs)
    add_evaluation_pictures(report, runs)
    _cost(report, material)
    _what_was_run(report, material)
    return report


def _title(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side"
    return runs[0].recipe.name if runs[0].recipe is not None and runs[0].recipe.name else runs[0].name


def _subtitle(material: Material) -> str:
    runs = material.runs
    if len(runs) > 1:
        return ", ".join(run.name for run in runs)
    (run,) = runs
    sentences = [run.recipe.about] if run.recipe is not None else []
    if run.network is not None:
        sentences.append(in_words(run.network, material.networks.get(run.name)))
    sentences += [f"{run.images:,} {run.seen} seen"] if run.images is not None else []
    return " ".join(f"{sentence.rstrip('.')}." for sentence in sentences if sentence)


# ------------------------------------------------------------------------------------------------
# Numbers


def _cards(report: RunsReport, material: Material) -> None:
    """The numbers that matter, of one run."""
    (run,) = material.runs
    cards: list[tuple[str, str | int | float | None, str, str]] = []
    for group in [g for g in material.groups if g.kind in ("reconstruction", *NETWORKS)][:4]:
        numbers = group.rows[0][2].numbers
        main = next((number for number in numbers if number.name == "PSNR"), numbers[0])
        note = f"{main.protocol.data.count:,} {'samples' if group.kind == GENERATED else 'pictures'}"
        cards.append((f"{main.name}, {group.data.name}", float(f"{main.value:.4g}"), main.unit, note))
    information = material.information.get(run.name)
    if information is not None:
        latent = _product(information.latent)
        pixels = 3 * information.image_size**2
        trainable = round(information.parameters.trainable / 1e6, 2)
        cards.append(("Trainable", trainable, "M", "parameters outside a frozen encoder"))
        fewer = f"fewer numbers: {latent:,} for {pixels:,}"
        cards.append(("Latent", f"{pixels / latent:.3g}", "x", fewer))
    network = material.networks.get(run.name)
    if network is not None:
        size = round(network.parameters / 1e6, 2)
        cards.append(("Network", size, "M", f"parameters; {network.tokens:,} tokens a latent"))
        cards.append(("One evaluation", float(f"{network.gmacs:.3g}"), "GMACs", "of one latent"))
    if run.training_seconds:
        minutes = run.training_seconds / 60
        value, unit = (minutes, "min") if minutes < 120 else (minutes / 60, "h")
        cards.append(("Training", round(value, 1), unit, f"{run.step:,} steps"))
    if cards:
        report.cards(cards)


def _product(latent: dict[str, int]) -> int:
    return latent["channels"] * latent["height"] * latent["width"]


def _numbers(report: RunsReport, material: Material) -> None:
    marks = (
        "One table a kind of evaluation and set of pictures; the best value of a column is bold. A letter "
        "marks a number that was made in another way than the others of its column, and never the best: "
        "what differs stands under the table. A * or \u2020 at a run's name leads to a note on its whole row."
    )
    report.section("Numbers", marks if len(material.runs) > 1 else "")
    for group in material.groups:
        there = {run.name for run, _, _ in group.rows}
        missing = [
            (run.name, f"No such results: `{_command(group.kind, run)}` makes them.")
            for run in material.runs
            if run.name not in there and _can(run, group.kind)
        ]
        # A network has a fingerprint of its own.
        fingerprints = material.fingerprints if group.kind in NETWORKS else material.album.fingerprints
        report.results(without_blocks(group), missing, fingerprints)
    if not material.groups:
        kinds = ("reconstruction", *NETWORKS)
        wanted = [_command(kind, run) for run in material.runs for kind in kinds if _can(run, kind)]
        commands = "\n".join(wanted)
        several = "This run has" if len(material.runs) == 1 else "These runs have"
        report.text(f"{several} not been evaluated. What makes the numbers:").code(commands)


def _can(run: Run, kind: str) -> bool:
    """Whether a run has what a kind of evaluation measures."""
    return run.network is not None if kind in NETWORKS else not run.network_alone


def _command(kind: str, run: Run) -> str:
    if kind == GENERATED:
        kept = f"{run.path}/{FOLDER}/generation.json"
        judge = f"lumitok evaluate generation SAMPLES/samples --reference REFERENCE --json {kept}"
        return f"lumitok sample {run.path} --count N --out SAMPLES && {judge}"
    return f"lumitok evaluate {kind} {run.path} --data FOLDER"


# ------------------------------------------------------------------------------------------------
# Cost, and what was run


def _cost(report: RunsReport, material: Material) -> None:
    rows: list[list[str | float | None]] = []
    for run in material.runs:
        found = material.information.get(run.name)
        if found is None:
            continue
        judges = found.parameters.discriminator
        rows.append(
            [
                run.name,
                found.parameters.trainable / 1e6,
                found.parameters.frozen / 1e6,
                None if judges is None else judges / 1e6,
                found.gmacs["encode"],
                found.gmacs["decode"],
                run.images_per_second,
            ]
        )
    if not (rows or material.networks):
        return
    report.section("Cost")
    if rows:
        _tokenizers_cost(report, rows)
    if material.networks:
        add_network_cost(report, material.runs, material.networks)


def _tokenizers_cost(report: RunsReport, rows: list[list[str | float | None]]) -> None:
    columns = [
        "Run", "Trainable, M", "Frozen encoder, M", "Discriminators, M", "Encode, GMACs", "Decode, GMACs",
        "Training, images/s",
    ]  # fmt: skip
    report.table(
        columns,
        rows,
        "Parameters, cost of one picture at the run's own size, and speed of the training",
        f"{HOW} Speed: median over the log lines of the history, on the machine that the run was trained on; "
        "speeds of two machines do not compare.",
    )


def _what_was_run(report: RunsReport, material: Material) -> None:
    report.section("What was run")
    stages = max(len(run.recipe.stages) if run.recipe is not None else 0 for run in material.runs)
    facts = {run.name: _facts(run, material, stages) for run in material.runs}
    names = [name for name in next(iter(facts.values())) if any(values[name] for values in facts.values())]
    if len(facts) == 1:
        (values,) = facts.values()
        report.facts({name: values[name] for name in names})
    else:
        report.table(
            ["", *facts],
            [[name, *(values[name] for values in facts.values())] for name in names],
            "Run by run",
            "Read from each run's recipe, history and weights. Time is that of the training steps alone.",
        )
    for run in material.runs:
        if run.recipe is not None:
            title = "The resolved recipe" + ("" if len(facts) == 1 else f" of {run.name}")
            report.code(shown_recipe(run.recipe), title=title, folded=True)


def _facts(run: Run, material: Material, stages: int) -> dict[str, str | None]:
    """What a run says of itself; None for what it does not say."""
    recipe, config, information = run.recipe, run.config, material.information.get(run.name)
    facts: dict[str, str | None] = {
        "Recipe": (recipe.name or "without a name") if recipe is not None else None
    }
    if information is None:
        facts |= {"Model": None, "Latent": None}
    else:
        facts["Model"] = f"{information.model}, {information.image_size} px"
        facts["Latent"] = f"{latent_shape(information)}, 1/{information.downsampling} of a side"
    described = config or (recipe.model.model_dump() if isinstance(recipe, PictureRecipe) else {})
    encoder = described.get("encoder") or {}
    facts["Encoder"] = encoder.get("name")
    facts["Encoder's weights"] = f"sha256 {encoder['sha256'][:16]}" if encoder.get("sha256") else None
    facts |= network_facts(run, material.networks.get(run.name), material.makers.get(run.name))
    for index in range(stages):
        there = recipe is not None and index < len(recipe.stages)
        stage = recipe.stages[index] if recipe is not None and there else None
        facts[f"Stage {index + 1}"] = None if stage is None else _stage(stage, run.seen)
    steps = None if run.step is None else f"{run.step:,}"
    if steps and run.total_steps and run.total_steps != run.step:
        steps += f" of {run.total_steps:,}"
    facts["Steps"] = steps
    for what in ("pictures", "latents"):
        counts = run.images is not None and what == run.seen
        facts[f"{what.capitalize()} seen"] = f"{run.images:,}" if counts else None
    facts["Training time"] = _duration(run.training_seconds) if run.training_seconds else None
    speed = run.images_per_second
    facts["Speed"] = f"{speed:.3g} {run.seen} a second" if speed else None
    facts["Precision"] = recipe.training.precision if recipe is not None else None
    facts["Seed"] = str(recipe.training.seed) if recipe is not None else None
    other = run.tokenizer is not None and run.tokenizer_step != run.step
    facts["Tokenizer shown"] = f"of step {run.tokenizer_step:,}" if other else None
    count = config.get("latents_count")
    facts["Latent statistics"] = f"from {count:,} pictures" if count else None
    return facts


def _stage(stage: StageConfig | DiffusionStageConfig, seen: str) -> str:
    return f"{stage.name}: {stage.images:,} {seen}, {stage.batch_size} a step"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{seconds / 60:.1f} min"


def shown_recipe(recipe: AnyRecipe) -> str:
    """Return a resolved recipe as YAML without the folder of the run; of other full paths the last part.

    A report is made to be passed on, and a full path tells more of its maker's machine than of the run.
    """
    values = recipe.model_dump(mode="json", exclude={"out"})
    text: str = yaml.safe_dump(_without_paths(values), sort_keys=False, allow_unicode=True)
    return text


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if isinstance(value, str) and (value.startswith(("~", "/")) or PurePath(value).is_absolute()):
        return f".../{PurePath(value).name}"
    return value
