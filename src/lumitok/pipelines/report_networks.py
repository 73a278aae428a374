"""What a report says of diffusion networks: what they are, on which latents, their cost, their blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lumitok.config import DiffusionLossConfig, DiffusionRecipe, EndToEndRecipe
from lumitok.config.networks import AnyNetwork, DiTDHConfig
from lumitok.config.saved import look_for_saved
from lumitok.data.latent_store import HEADER, Header
from lumitok.diffusion import DiffusionNetwork
from lumitok.errors import LumitokError
from lumitok.evaluation.protocol import SHOWN_DIGITS
from lumitok.evaluation.report import Report
from lumitok.foundation.weights import hash_weights
from lumitok.pipelines.evaluate_layers import KIND as LAYERS
from lumitok.pipelines.evaluate_layers import compare_layers, depth_plot
from lumitok.pipelines.network_information import HOW, NetworkInformation
from lumitok.pipelines.report_numbers import GENERATED, Group, RunsReport, protocol_lines
from lumitok.pipelines.report_runs import Run
from lumitok.pipelines.sample import describe
from lumitok.tokenizers import Tokenizer
from lumitok.tokenizers.provenance import read_provenance

NETWORKS = (GENERATED, LAYERS)
"""Kinds of evaluation that need a network; all others need a tokenizer."""
LOSSES = ("velocity", "cosine", "alignment", "class_token")


def side_of_network(run: Run) -> DiffusionRecipe | None:
    """A network's recipe; of a run that trains a tokenizer too, the network's side of it."""
    if isinstance(run.recipe, EndToEndRecipe):
        return run.recipe.diffusion()
    return run.recipe if isinstance(run.recipe, DiffusionRecipe) else None


def network_facts(
    run: Run, information: NetworkInformation | None, made_by: str | None
) -> dict[str, str | None]:
    """What a run says of its network; None for what it does not say, or has not.

    Args:
        run: of any kind.
        information: on its network, where it has one.
        made_by: the tokenizer of the latents, in words.
    """
    recipe = side_of_network(run)
    classes = run.latents.classes if run.latents is not None and run.network and run.network.classes else ()
    return {
        "Network": None if run.network is None else in_words(run.network, information),
        "Latents learnt": _latents(run, information),
        "Latents made by": made_by,
        "Classes": f"{len(classes):,}: {_some(classes)}" if classes else None,
        "Losses": None if recipe is None else _then([_losses(stage.losses) for stage in recipe.stages]),
        "Sampling": None if recipe is None else describe(recipe.samples.sampling),
    }


def in_words(network: AnyNetwork, information: NetworkInformation | None) -> str:
    """Name, patch, blocks and size of a network."""
    name = type(network).__name__.removesuffix("Config")
    words = f"{name}, patch {network.patch}, {network.depth} blocks of {network.width}"
    if isinstance(network, DiTDHConfig):
        words += f" and {network.head_depth} of {network.head_width}"
    return words if information is None else f"{words}, {information.parameters / 1e6:.2f} M parameters"


def _latents(run: Run, information: NetworkInformation | None) -> str | None:
    if information is None:
        return None
    shape = " x ".join(map(str, information.latent.values()))
    header = _header(run)
    if header is None:
        return shape
    kind = "" if header.kind == "samples" else ", as means and deviations"
    views = ", with their mirrored views" if len(header.views) > 1 else ""
    return f"{header.count:,} of {shape}{kind}, of {Path(header.pictures).name}{views}"


def _header(run: Run) -> Header | None:
    """What the store of the latents says, where it is at hand and is the one that the network learnt."""
    if not isinstance(run.recipe, DiffusionRecipe) or run.latents is None:
        return None
    try:
        path = Path(run.recipe.data.latents).expanduser() / HEADER
        header = Header.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return header if header.spec == run.latents.spec else None


def maker_of(run: Run) -> str | None:
    """Say which tokenizer made the latents of a network, and how it was trained where that is known."""
    if run.network is None:
        return None
    if not isinstance(run.recipe, DiffusionRecipe):
        return "the tokenizer trained along with it" if isinstance(run.recipe, EndToEndRecipe) else None
    named = run.recipe.data.tokenizer
    words = [_short(named)] if named else []
    fingerprint = None if run.latents is None else run.latents.spec.tokenizer
    if fingerprint:
        words.append(f"fingerprint {fingerprint[:SHOWN_DIGITS]}")
        words += [_training_of(named, fingerprint)] if named else []
    return "; ".join(word for word in words if word) or None


def _short(named: str) -> str:
    """The last part of a tokenizer's path, as of all paths here; of a checkpoint, its run's and its step."""
    path = Path(named.removesuffix("/tokenizer"))
    step = re.fullmatch(r"step-(\d+)", path.name)
    if step is None or path.parent.name != "checkpoints":
        return path.name
    return f"{path.parent.parent.name}, step {int(step[1]):,}"


def _training_of(named: str, fingerprint: str) -> str:
    """How a tokenizer was trained, if it is at hand and still has the weights that made the latents."""
    folder = look_for_saved(Path(named).expanduser(), "tokenizer")
    try:
        told = None if folder is None else read_provenance(folder)
        if folder is None or told is None:
            return ""
        if Tokenizer.from_pretrained(folder).latent_fingerprint() != fingerprint:
            return "it has other weights by now"
    except LumitokError:  # Such as an encoder whose weights are not on this machine.
        return ""
    return f"recipe {told.recipe}, {told.images:,} pictures of {told.data} seen in {told.step:,} steps"


def network_fingerprints(runs: Sequence[Run]) -> dict[str, str]:
    """Hash the networks' weights, by the run's name, where there are results to hold against them."""
    found = {}
    for run in runs:
        kept = [results for results in run.results.values() if results.kind == LAYERS]
        if run.network is None or not any(results.fingerprint for results in kept):
            continue
        try:
            network = DiffusionNetwork.from_pretrained(run.path)
        except LumitokError:  # A run before its first checkpoint, or a damaged one: nothing to hold against.
            continue
        found[run.name] = hash_weights(network.state_dict().items())
    return found


def _losses(losses: DiffusionLossConfig) -> str:
    weights = {name: float(getattr(losses, name)) for name in LOSSES}
    words = ", ".join(f"{name.replace('_', ' ')} {weight:g}" for name, weight in weights.items() if weight)
    encoder = losses.alignment_encoder
    return words if encoder is None else f"{words}; encoder {encoder.name}"


def _then(stages: Sequence[str]) -> str:
    return ", then ".join(dict.fromkeys(stages))


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


# ------------------------------------------------------------------------------------------------
# Sections


def add_network_cost(
    report: Report, runs: Sequence[Run], information: Mapping[str, NetworkInformation]
) -> None:
    """Add a table of what the networks cost; the section has begun."""
    rows: list[list[str | int | float | None]] = [
        [
            run.name,
            information[run.name].parameters / 1e6,
            information[run.name].tokens,
            information[run.name].gmacs,
            run.images_per_second if run.network_alone else None,
        ]
        for run in runs
        if run.name in information
    ]
    report.table(
        ["Run", "Parameters, M", "Tokens", "An evaluation, GMACs", "Training, latents/s"],
        rows,
        "Parameters of the networks, cost of one evaluation of one latent, and speed of the training",
        f"{HOW} Speed: median over the log lines of the history, on the machine that the run was trained on.",
    )


def without_blocks(group: Group) -> Group:
    """Leave the blocks' own values out of a table: they are drawn over depth."""
    if group.kind != LAYERS:
        return group
    rows = [
        (run, name, replace(results, numbers=[n for n in results.numbers if "mean over blocks" in n.name]))
        for run, name, results in group.rows
    ]
    return replace(group, rows=rows)


def add_layers(report: RunsReport, groups: Sequence[Group]) -> None:
    """Add CKNNA over the depth of the networks: a plot an encoder and way of measuring, a line a network."""
    named = [(name, results) for group in groups if group.kind == LAYERS for _, name, results in group.rows]
    if not named:
        return
    report.section(
        "Alignment over depth",
        "How far each block of a network sees pictures as a foundation encoder does: CKNNA of its tokens "
        "with the encoder's features (VFM-VAE, Figure 4). Networks stand in one plot where they were "
        "measured alike.",
    )
    for one in compare_layers(named):
        plot = depth_plot([(name, values) for name, _, values in one.lines], f"CKNNA with {one.reference}")
        ends = "; ".join(
            f"{name}: highest {max(values):.3f} at block {values.index(max(values)) + 1} of {len(values)}"
            for name, _, values in one.lines
        )
        report.figure(plot.svg(), ends, alt=f"{plot.title} over the blocks of {len(one.lines)} networks")
        made = [(name, protocol) for (name, *_), protocol in zip(one.lines, one.protocols, strict=True)]
        for label, text in protocol_lines(made):
            report.small_print(f"{label}.", text)
