"""What ``lumitok evaluate representation`` does: CKNNA, SE-CKNNA, invariance and linear probes.

Of a tokenizer's latent, with its foundation encoder's own values beside it; of an encoder's layers; of the
pixels; or of any network that hands out its blocks' tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from lumitok.config import EncoderConfig
from lumitok.data import BadPicture, evenly
from lumitok.errors import LumitokError
from lumitok.evaluation import perturbations
from lumitok.evaluation.cknna import CLAMP, EPSILON, NEIGHBOURS, Neighbourhood, alignment, neighbourhood
from lumitok.evaluation.invariance import invariance
from lumitok.evaluation.perturbations import Scaled
from lumitok.evaluation.picture_sets import PictureSource, open_picture_set
from lumitok.evaluation.probe import ProbeSettings
from lumitok.evaluation.processes import here, is_main, share
from lumitok.evaluation.protocol import Latent, Protocol
from lumitok.evaluation.representations import (
    DETERMINISTIC,
    LATENT,
    MEAN,
    UNCHANGED,
    Gathered,
    gather_features,
)
from lumitok.evaluation.results import Number, Results
from lumitok.nn.precision import exact_float32
from lumitok.pipelines.reconstruct import open_tokenizer
from lumitok.pipelines.representation_plan import (
    PAPERS_COUNT,
    Choices,
    Plan,
    Subject,
    kind,
    make_plan,
    warnings,
)
from lumitok.pipelines.representation_probe import FLATTENED, POOLED, ProbeFound, run_probes
from lumitok.pipelines.saved_step import tokenizer_step
from lumitok.tokenizers import Tokenizer

__all__ = ["ProbeSettings", "evaluate_representation"]

KIND = "representation"

_MEAN = "mean over 4 noise levels and 1 rotation with scale"


def evaluate_representation(
    subject: Subject,
    data: str | Path,
    *,
    train_data: str | Path | None = None,
    references: Sequence[str | EncoderConfig] = (),
    layers: Sequence[int] | None = None,
    size: int | None = None,
    encoder_side: int | None = None,
    count: int = PAPERS_COUNT,
    k: int = NEIGHBOURS,
    latent: Latent = "sample",
    changes: bool = True,
    scaled: Scaled = "back",
    probe: ProbeSettings | None = None,
    train_count: int | None = None,
    memory: float = 4.0,
    batch_size: int = 32,
    seed: int = 0,
    quiet: bool = False,
) -> Results:
    """Measure a representation.

    Args:
        subject: a tokenizer (folder of a run, a checkpoint or a tokenizer, or a hub id), an encoder's name
            (``NAME=FILE`` names its weights), ``pixels``, or an open
            :class:`lumitok.evaluation.representations.Representation` in eval mode, a module of which is
            moved to where the pictures are; all its blocks are measured.
        data: pictures to measure on: a folder, a zip or an npz.
        train_data: pictures to train linear probes on, in the same classes as ``data``; None: no probe.
        references: encoders that CKNNA compares with. None given: the tokenizer's own, at its own input
            size, or the encoder itself. One that bears the name of the tokenizer's encoder is that one.
        layers: of the encoder that is the subject; its end is always read. A tokenizer's encoder is read at
            the layers that the tokenizer reads.
        size: side of the pictures in pixels; a tokenizer's own where None, otherwise as they are stored.
        encoder_side: pixels at which the encoders named here see them; None:
            :func:`lumitok.evaluation.representations.open_encoder` says what. A tokenizer's own encoder sees
            what it sees in the tokenizer.
        count: at most so many pictures, evenly spread over the sorted listing, for all but the probe, which
            is measured on all of them.
        k: neighbours of CKNNA.
        latent: ``sample``, as the published CKNNA values are made, or ``mean``.
        changes: also measure SE-CKNNA and invariance, which takes six times as long.
        scaled: see :func:`lumitok.evaluation.perturbations.perturb`.
        probe: how probes are trained; AlignTok's way, with ``seed``, where None.
        train_count: at most so many pictures of ``train_data``, evenly spread; None: all.
        memory: GiB that stored features may take.
        batch_size: pictures that go through the networks at a time.
        seed: of the latent's noise and of the probes.
        quiet: show no progress.

    Returns:
        Warnings are in ``tables["warnings"]``, each a sentence to print.

    Raises:
        LumitokError: a subject, encoder or picture set that does not open, fewer pictures than ``k`` needs,
            classes that are missing or differ, features that are constant or not finite.
    """
    if count < 1 or batch_size < 1 or (train_count is not None and train_count < 1):
        raise LumitokError(
            f"counts of pictures and batches start at 1; got count {count}, batch_size {batch_size}, "
            f"train_count {train_count}"
        )
    choices = Choices(k, latent, encoder_side, scaled, changes, batch_size, seed)
    device = here().device  # Joins the processes, and a process of several learns which GPU is its own.
    tokenizer = open_tokenizer(str(subject)).to(device) if kind(subject) == "tokenizer" else None
    source = open_picture_set(data, size=_size(tokenizer, size))
    train = None if train_data is None else open_picture_set(train_data, size=source.size)
    plan = make_plan(subject, tokenizer, references, layers, source.size, choices, device)
    if not plan.references and train is None:
        raise LumitokError(
            f"there is nothing to measure '{plan.subject}' by: name an encoder as reference, or training "
            "data for a linear probe"
        )
    settings = probe or ProbeSettings(seed=seed)
    with _display(quiet) as (say, steps), exact_float32():
        gathered = None
        if plan.references:
            gathered = _gather(plan, source, evenly(len(source), count), choices, device, steps)
        found = None
        if train is not None:
            places = evenly(len(train), train_count or len(train))
            wanted = {id(plan.network_of(block)): plan.network_of(block) for block in plan.probed}
            found = run_probes(
                train, places, source, list(wanted.values()), plan.probed, settings,
                batch_size=batch_size, memory=memory, device=device, say=say, steps=steps,
            )  # fmt: skip
            for reason in found.too_large:
                say(f"left out: {reason}")
        numbers = _compared(plan, source, gathered, choices) if gathered else []
    numbers += _invariances(plan, source, gathered, choices) if gathered and changes else []
    if found is not None and train is not None:
        numbers += _probed(plan, source, train, found, settings, seed)
    return _results(plan, source, train, gathered, found, numbers)


# ------------------------------------------------------------------------------------------------
# Features


def _gather(
    plan: Plan,
    source: PictureSource,
    places: Sequence[int],
    choices: Choices,
    device: torch.device,
    steps: Callable[[str, int], Callable[[int], None]],
) -> Gathered:
    if len(places) <= choices.k:
        raise LumitokError(
            f"CKNNA with k {choices.k} needs more than {choices.k} pictures, and there are {len(places)}; "
            "give more pictures or a smaller k"
        )
    wanted = [*plan.compared, *plan.references]
    networks = {id(plan.network_of(block)): plan.network_of(block) for block in wanted}
    return gather_features(
        source,
        places,
        list(networks.values()),
        batch_size=choices.batch_size,
        device=device,
        changed={*plan.followed, *map(plan.without_noise, plan.followed), *plan.references}
        if choices.changes
        else (),
        scaled=choices.scaled,
        advance=steps("features", len(places)),
    )


def _size(tokenizer: Tokenizer | None, size: int | None) -> int | None:
    if tokenizer is None or size is not None:
        return size
    return int(tokenizer.config.image_size)


# ------------------------------------------------------------------------------------------------
# Numbers


def _compared(plan: Plan, source: PictureSource, gathered: Gathered, choices: Choices) -> list[Number]:
    """CKNNA and SE-CKNNA of each block with each reference."""
    known: dict[tuple[str, str], Neighbourhood] = {}

    def score(view: str, block: str, reference: str) -> float:
        for name in (block, reference):
            if (view, name) not in known:
                known[view, name] = neighbourhood(gathered.features[view][name], k=choices.k)
        return alignment(known[view, block], known[view, reference])

    numbers = []
    for reference in plan.references:
        for block in plan.compared:
            if block == reference:
                continue
            made = _cknna_protocol(plan, source, gathered, block, reference, choices)
            what = f"vs {reference}" if block == LATENT else f"{block} vs {reference}"
            name = "CKNNA " + what if block == LATENT else "CKNNA, " + what
            numbers.append(Number(name, score(UNCHANGED, block, reference), made(""), better="high"))
            if choices.changes and block in plan.followed:
                name = f"SE-{name}"
                scores = {view: score(view, block, reference) for view in perturbations.names()}
                mean = f"SE: {_MEAN}, {_changes(choices)}"
                numbers.append(Number(name, fmean(scores.values()), made(mean), better="high"))
                for view, value in scores.items():
                    how = f"SE: both see {view}, {_changes(choices)}"
                    numbers.append(Number(f"{name}, {view}", value, made(how), better="high"))
    return numbers


def _cknna_protocol(
    plan: Plan,
    source: PictureSource,
    gathered: Gathered,
    block: str,
    reference: str,
    choices: Choices,
) -> Callable[[str], Protocol]:
    network = plan.network_of(reference)
    method = (
        f"CKNNA, k {choices.k}, unbiased HSIC, clamped at the {CLAMP} quantile of all values, eps {EPSILON:g}"
        f"; {_features_of(plan, block)}, mean over positions"
    )
    return lambda more: Protocol(
        **_common(source, gathered.places),
        **_latent_of(plan, block),
        method=f"{method}; {more}" if more else method,
        extractor=f"{reference}, {network.detail}" if network.detail else reference,
        weights=network.weights,
        seed=choices.seed,
    )


def _invariances(plan: Plan, source: PictureSource, gathered: Gathered, choices: Choices) -> list[Number]:
    """Cosine similarities of each followed block's features of changed and unchanged pictures."""
    numbers = []
    for block in plan.followed:
        read = plan.without_noise(block)
        still = gathered.features[UNCHANGED][read]
        found = {view: invariance(still, gathered.features[view][read]) for view in perturbations.names()}
        for what, values in (
            ("cosine", {view: one.cosine for view, one in found.items()}),
            ("centred cosine", {view: one.centered for view, one in found.items()}),
        ):
            name = f"invariance ({what}), {block}"
            made = _invariance_protocol(plan, source, gathered, block, what, choices)
            numbers.append(Number(name, fmean(values.values()), made(_MEAN), better="high"))
            numbers += [
                Number(f"{name}, {view}", value, made(view), better="high") for view, value in values.items()
            ]
    return numbers


def _invariance_protocol(
    plan: Plan, source: PictureSource, gathered: Gathered, block: str, what: str, choices: Choices
) -> Callable[[str], Protocol]:
    latent = _latent_of(plan, block)
    if plan.without_noise(block) != block and latent["latent"] != DETERMINISTIC:
        latent = {"latent": MEAN}
    return lambda view: Protocol(
        **_common(source, gathered.places),
        **latent,
        method=f"{what} of the changed and the unchanged picture, mean over positions; {view}, "
        f"{_changes(choices)}",
        extractor=_features_of(plan, block),
        weights=plan.network_of(block).weights,
        seed=choices.seed,
    )


def _probed(
    plan: Plan,
    source: PictureSource,
    train: PictureSource,
    found: ProbeFound,
    settings: ProbeSettings,
    seed: int,
) -> list[Number]:
    numbers = []
    for pooling in (POOLED, FLATTENED):
        for block in plan.probed:
            if (block, pooling) not in found.accuracy:
                continue
            protocol = Protocol(
                **_common(source, found.measured),
                **_latent_of(plan, block),
                reference=train.protocol_set(found.trained),
                method=f"top-1 accuracy of {settings.describe()}, {pooling}",
                extractor=_features_of(plan, block),
                weights=plan.network_of(block).weights,
                seed=seed,
            )
            value = 100 * found.accuracy[block, pooling]
            numbers.append(
                Number(f"linear probe, {block}, {pooling}", value, protocol, unit="%", better="high")
            )
    return numbers


def _common(source: PictureSource, places: Sequence[int]) -> dict[str, Any]:
    return {
        "data": source.protocol_set(places),
        "size": source.size,
        "preparation": source.preparation,
        "precision": "float32",
    }


def _latent_of(plan: Plan, block: str) -> dict[str, Any]:
    return {"latent": plan.network_of(block).detail} if block == LATENT else {}


def _features_of(plan: Plan, block: str) -> str:
    detail = plan.network_of(block).detail
    return f"{block}, {detail}" if detail and block != LATENT else block


def _changes(choices: Choices) -> str:
    shown = "brought back to size" if choices.scaled == "back" else "left smaller"
    return f"drawn with seed {perturbations.SEED} + index, scaled pictures {shown}"


def _results(
    plan: Plan,
    source: PictureSource,
    train: PictureSource | None,
    gathered: Gathered | None,
    found: ProbeFound | None,
    numbers: list[Number],
) -> Results:
    """Put everything together, with what was left out."""
    bad = [*(gathered.bad if gathered else []), *(found.bad[1] if found else [])]
    left_out = dict(source.left_out)
    unreadable = {"unreadable": bad, "unreadable, training set": found.bad[0] if found else []}
    for reason, pictures in unreadable.items():
        if pictures:
            left_out[reason] = left_out.get(reason, 0) + len({picture.name for picture in pictures})
    if train is not None:
        left_out |= {f"{reason}, training set": n for reason, n in train.left_out.items()}
    left_out |= found.too_large if found else {}
    return Results(
        kind=KIND,
        subject=plan.subject,
        numbers=numbers,
        fingerprint=plan.fingerprint,
        step=tokenizer_step(plan.subject) if plan.tokenizer is not None else None,
        left_out=left_out,
        tables={
            "warnings": warnings(source, train, len(gathered.places) if gathered else None),
            **{reason: _listed(pictures) for reason, pictures in unreadable.items() if pictures},
        },
    )


def _listed(pictures: Sequence[BadPicture]) -> dict[str, str]:
    return {picture.name: picture.reason for picture in pictures}


# ------------------------------------------------------------------------------------------------
# What people see meanwhile


@contextmanager
def _display(
    quiet: bool,
) -> Iterator[tuple[Callable[[str], None], Callable[[str, int], Callable[[int], None]]]]:
    """Show lines and bars on standard error, from one process alone."""
    console = Console(stderr=True)
    shown = is_main() and not quiet
    with Progress(console=console, disable=not shown) as progress:

        def say(text: str) -> None:
            if shown:
                progress.console.print(text, markup=False, highlight=False)

        def steps(what: str, total: int) -> Callable[[int], None]:
            bar = progress.add_task(what, total=len(share(total)))
            return lambda done: progress.advance(bar, done)

        yield say, steps
