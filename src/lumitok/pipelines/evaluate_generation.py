"""Generated pictures against real ones: what ``lumitok evaluate generation`` does.

FID, sFID, IS, precision, recall and KID on Inception, as ADM's evaluator takes them; on any other encoder
the distances that make sense there, under its name. Over several processes each takes its share of the
pictures, and none is counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumitok.errors import LumitokError
from lumitok.evaluation import frechet, inception_score, kid, precision_recall
from lumitok.evaluation.extractors import INCEPTION, Extractor, frechet_name, open_extractor
from lumitok.evaluation.frechet import Statistics, frechet_distance
from lumitok.evaluation.kid import kernel_distance
from lumitok.evaluation.picture_sets import (
    PictureSource,
    ReferenceStatistics,
    holds_statistics,
    open_picture_set,
    open_reference_statistics,
)
from lumitok.evaluation.processes import here, is_main, together
from lumitok.evaluation.protocol import SHOWN_DIGITS, PictureSet, Protocol
from lumitok.evaluation.results import Number, Results
from lumitok.pipelines.generation_features import Features, extract
from lumitok.pipelines.generation_plan import Plan, Sampling, Settings, class_counts

TITLES = {"fid": "FID", "sfid": "sFID", "is": "IS", "kid": "KID", "fd": "FD", "kd": "KD"}
"""Names of the numbers, where they are not those of the metrics."""


def evaluate_generation(
    samples: str | Path,
    reference: str | Path,
    *,
    encoder: str = INCEPTION,
    weights: Path | None = None,
    verify: bool = True,
    metrics: Sequence[str] | None = None,
    count: int | None = None,
    size: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    settings: Settings | None = None,
    labels: str | None = None,
    guidance: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
) -> Results:
    """Judge generated pictures by real ones.

    Warnings are in ``tables["warnings"]`` of the results, each a sentence to print; what nobody named and
    there are too few pictures for in ``tables["not measured"]``, and why.

    Args:
        samples: folder, zip or npz of generated pictures.
        reference: folder, zip or npz of real ones, or an npz of reference statistics: then FID and sFID are
            taken against its statistics, precision, recall and KID against the pictures in it, as ADM does.
        encoder: ``inception``, or a registered encoder.
        weights: its file; None: where it is registered to lie.
        verify: whether Inception's file must have the published hash; False only for made-up weights.
        metrics: of :data:`INCEPTION_METRICS`, or of :data:`ENCODER_METRICS`; None: all that the reference
            and the counts allow.
        count: judge so many of the samples, drawn with the seed; None: all.
        size: side in pixels that ADM's centre crop brings samples and reference pictures to; None: they
            are taken as stored.
        batch_size: pictures a batch.
        seed: of all draws, 0 to 2^32 - 1.
        settings: of the metrics.
        labels: how the samples' classes were chosen, for the protocol; None: counted, where the set has them.
        guidance: guidance scale, interval and channels that they were made with, for the protocol.
        solver: of the flow, for the protocol.
        steps: network evaluations of the solver, for the protocol.

    Raises:
        LumitokError: a set cannot be read, the sizes of the two differ, there are too few pictures for a
            metric, an unknown metric, or weights that cannot be had.
    """
    state = here()
    sampling = Sampling(labels, guidance, solver, steps)
    against = _open_reference(reference, encoder, size)
    plan = Plan(open_picture_set(samples, size=size), against, settings or Settings(), seed)
    plan.choose_metrics(encoder, metrics)
    chosen = _draw(len(plan.samples), count, seed)
    plan.check(len(chosen))
    # The first one fetches the weights where they are missing, the others find them.
    with state.local_main_process_first():
        extractor = open_extractor(encoder, weights, state.device, verify=verify)
    judged = extract(plan.samples, chosen, extractor, plan.needs(), batch_size, "samples")
    real = None
    if plan.pictures is not None and (needs := plan.reference_needs()):
        everything = range(len(plan.pictures))
        real = extract(plan.pictures, everything, extractor, needs, batch_size, "reference pictures")
    plan.warn_of(plan.samples, judged, "samples")
    if plan.pictures is not None and real is not None:
        plan.warn_of(plan.pictures, real, "reference pictures")
    # One process computes while the others wait: all of them have everything.
    measured = together(lambda: _measure(plan, extractor, judged, real, sampling) if is_main() else ([], []))
    numbers, warnings = measured[0]
    left_out = _left_out([(plan.samples, judged, "samples"), (plan.pictures, real, "reference pictures")])
    tables: dict[str, Any] = {"warnings": plan.warnings + warnings}
    if plan.not_measured:
        suffix = _suffix(extractor)
        tables["not measured"] = {
            TITLES.get(name, name) + suffix: reason for name, reason in plan.not_measured.items()
        }
    return Results("generation", str(samples), numbers, left_out=left_out, tables=tables)


def _measure(
    plan: Plan, extractor: Extractor, judged: Features, real: Features | None, sampling: Sampling
) -> tuple[list[Number], list[str]]:
    """Return the numbers with their protocols, and warnings that only the features give."""
    numbers: list[Number] = []
    warnings: list[str] = []
    settings, seed = plan.settings, plan.seed
    suffix = _suffix(extractor)
    pictures = None
    if plan.pictures is not None and real is not None:
        pictures = plan.pictures.protocol_set(real.used)
    base = Protocol(
        data=plan.samples.protocol_set(judged.used),
        size=plan.samples.size,
        preparation=plan.samples.preparation,
        extractor=extractor.description,
        weights=extractor.weights,
        seed=seed,
        **vars(sampling),
    )
    if base.labels is None and plan.samples.labels is not None:
        base = replace(base, labels=class_counts([plan.samples.labels[index] for index in judged.used]))
    for metric in plan.metrics:
        if metric in ("fid", "fd", "sfid"):
            title = TITLES[metric] + suffix
            numbers.append(_frechet(title, plan, judged, real, base, pictures))
    if "is" in plan.metrics:
        numbers.append(_inception_score(torch.cat(judged.logits), settings, seed, base, warnings))
    if "rows" in plan.reference_needs():
        assert real is not None
        # Distances in float64 are taken as well, which an Apple GPU does not have.
        device = "cuda" if here().device.type == "cuda" else "cpu"
        rows, reference = (torch.cat(part.rows).to(device) for part in (judged, real))
        base = replace(base, reference=pictures)
        if {"precision", "recall"} & set(plan.metrics):
            shares = precision_recall.precision_recall(reference, rows, k=settings.k)
            how = replace(base, method=precision_recall.method(k=settings.k))
            for title in ("precision", "recall"):
                if title in plan.metrics:
                    numbers.append(Number(title + suffix, getattr(shares, title), how, better="high"))
        if distances := {"kid", "kd"} & set(plan.metrics):
            draw = {"subsets": settings.kid_subsets, "subset_size": settings.kid_subset_size}
            distance = kernel_distance(rows, reference, seed=seed, **draw)
            how, title = replace(base, method=kid.method(**draw)), TITLES[distances.pop()] + suffix
            numbers.append(Number(title, distance.mean, how, better="low", spread=distance.std))
    return numbers, warnings


def _suffix(extractor: Extractor) -> str:
    """What the names of numbers end in: nothing on Inception."""
    return "" if extractor.name == INCEPTION else f"-{frechet_name(extractor).removeprefix('FD-')}"


def _frechet(
    title: str,
    plan: Plan,
    judged: Features,
    real: Features | None,
    base: Protocol,
    pictures: PictureSet | None,
) -> Number:
    """Take the Fréchet distance on pooled features, or sFID, to the pictures or to stored statistics."""
    spatial = title == "sFID"

    def statistics(part: Features) -> Statistics:
        gatherer = part.spatial if spatial else part.statistics
        assert gatherer is not None
        return gatherer.result()

    method = frechet.METHOD
    if spatial:
        method += "; mixed_6/conv, first 7 channels"
    if plan.stored is not None:
        stored = plan.stored.spatial if spatial else plan.stored.pooled
        assert stored is not None
        method += f"; to the statistics stored in {plan.stored.name} ({plan.stored.sha256[:SHOWN_DIGITS]})"
        protocol, target = base, stored
    else:
        assert real is not None
        protocol, target = replace(base, reference=pictures), statistics(real)
    distance = frechet_distance(statistics(judged), target)
    return Number(title, distance, replace(protocol, method=method), better="low")


def _inception_score(
    logits: Tensor, settings: Settings, seed: int, base: Protocol, warnings: list[str]
) -> Number:
    """Take the Inception score over splits in order, as ADM does; shuffled where the order would spoil it."""
    how: inception_score.Convention = {"split_size": settings.split_size}
    order = inception_score.class_order(logits)
    if order.is_sorted and len(logits) > settings.split_size:
        how = {**how, "shuffle_seed": seed}
        warnings.append(
            f"the samples are sorted by class: neighbours are predicted as one class {order.agreement:.1%} "
            f"of the time, in a random order {order.expected:.1%}. ADM's splits in the given order would "
            f"each see a few classes, and the score be far too low: IS is taken after a shuffle, seed {seed}"
        )
    score = inception_score.inception_score(logits, **how)
    protocol = replace(base, method=inception_score.method(**how) + "; logits without bias")
    return Number("IS", score.mean, protocol, better="high", spread=score.std)


def _open_reference(path: str | Path, encoder: str, size: int | None) -> PictureSource | ReferenceStatistics:
    # The statistics are of Inception's features: another encoder reads the pictures that lie beside them.
    if encoder == INCEPTION and holds_statistics(path):
        return open_reference_statistics(path)
    return open_picture_set(path, size=size)


def _draw(total: int, count: int | None, seed: int) -> Sequence[int]:
    """Return the samples to judge, in their order."""
    if not 0 <= seed < 2**32:
        raise LumitokError(f"got the seed {seed}, wanted 0 to 2^32 - 1")
    if count is None or count == total:
        return range(total)
    if not 0 < count <= total:
        raise LumitokError(
            f"{count:,} samples were asked for, and there are {total:,}; generate more, or ask for fewer"
        )
    drawn = np.random.default_rng(seed).choice(total, size=count, replace=False)
    return sorted(int(index) for index in drawn)


def _left_out(parts: Sequence[tuple[PictureSource | None, Features | None, str]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for source, part, what in parts:
        if source is None or part is None:
            continue
        reasons = source.left_out | ({"cannot be read": len(part.bad)} if part.bad else {})
        found |= {f"{what}: {reason}": number for reason, number in reasons.items()}
    return found
