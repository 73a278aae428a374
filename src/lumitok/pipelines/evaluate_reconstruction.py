"""How close a tokenizer brings pictures back: what ``lumitok evaluate reconstruction`` does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumitok.data import BadPicture, evenly
from lumitok.data.bad_pictures import listing
from lumitok.errors import LumitokError, nearest
from lumitok.evaluation.frechet import METHOD as FRECHET_METHOD
from lumitok.evaluation.frechet import StatisticsGatherer, frechet_distance
from lumitok.evaluation.image_quality import ROUNDINGS, ReconstructionQuality, Rounding, to_uint8
from lumitok.evaluation.inception_score import TORCH_FIDELITY, inception_score
from lumitok.evaluation.inception_score import method as inception_method
from lumitok.evaluation.picture_sets import PictureSource, fingerprints, open_picture_set
from lumitok.evaluation.pictures import to_pil
from lumitok.evaluation.processes import here, share, together
from lumitok.evaluation.progress import show_progress
from lumitok.evaluation.protocol import LATENTS, Latent, Protocol
from lumitok.evaluation.results import Number, Results
from lumitok.nn.precision import exact_float32
from lumitok.pipelines.picture_warnings import picture_warnings
from lumitok.pipelines.reconstruct import open_tokenizer
from lumitok.pipelines.reconstruction_instruments import (
    PAIRED,
    Instruments,
    choose_metrics,
    open_instruments,
)
from lumitok.pipelines.saved_step import tokenizer_step
from lumitok.tokenizers import Tokenizer
from lumitok.training.seeds import derive_seed

MANY = 10_000
"""Pictures from which on a distance between sets is not warned of."""


@dataclass(frozen=True)
class Settings:
    """How pictures go through the tokenizer; see :func:`evaluate_reconstruction`."""

    latent: Latent
    rounding: Rounding
    seed: int
    batch_size: int
    folder: Path | None


@dataclass
class _Sets:
    """What is gathered of the two sets: the features' statistics, and class logits of what was decoded."""

    original: StatisticsGatherer
    decoded: StatisticsGatherer
    logits: list[Tensor] = field(default_factory=list)


@dataclass
class _Part:
    """What one process has measured, picture by picture in the order of the listing."""

    indices: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    prints: list[bytes] = field(default_factory=list)
    bad: list[BadPicture] = field(default_factory=list)
    sets: _Sets | None = None

    def merge(self, other: _Part) -> None:
        self.indices += other.indices
        for name, values in other.scores.items():
            self.scores[name] += values
        self.prints += other.prints
        self.bad += other.bad
        if self.sets is not None and other.sets is not None:
            self.sets.original.merge(other.sets.original)
            self.sets.decoded.merge(other.sets.decoded)
            self.sets.logits += other.sets.logits


def evaluate_reconstruction(
    checkpoint: str,
    data: str | Path,
    *,
    count: int | None = None,
    metrics: Sequence[str] | None = None,
    perceptual_encoder: str | None = None,
    vgg16: Path | None = None,
    set_encoder: str = "inception",
    set_weights: Path | None = None,
    latent: Latent = "mean",
    rounding: Rounding = "nearest",
    seed: int = 0,
    batch_size: int = 16,
    per_image: bool = True,
    save_reconstructions: Path | None = None,
    device: torch.device | None = None,
) -> Results:
    """Encode and decode pictures; measure how close each, and the whole set, comes to the originals.

    The reference is always the same pictures, prepared alike. It computes in float32 without TF32. Run by
    ``torchrun`` or ``accelerate launch``, each process takes its share and all return the same results.
    What cannot be measured here is left out by name, in ``tables["not measured"]``, with how to get it;
    what the user named (``vgg16``, ``set_encoder``, ``set_weights``, ``perceptual_encoder``) must be there.

    Args:
        checkpoint: folder of a run, a checkpoint or a tokenizer, or a hub id.
        data: folder, zip or npz of pictures; each is centre-cropped to the tokenizer's size as ADM does.
        count: pictures to measure, spread evenly over the listing; None: all.
        metrics: keys of :data:`lumitok.pipelines.reconstruction_instruments.METRICS`; None: all that this
            machine can measure.
        perceptual_encoder: registered encoder whose feature distance is measured as well.
        vgg16: file of torchvision's VGG16 weights; None: LUMITOK_VGG16, torch hub's cache, a download.
        set_encoder: network of the distance between the sets: ``inception`` gives rFID and rIS, any
            registered encoder the same distance under its own name.
        set_weights: file of that network's weights.
        latent: ``mean`` decodes the posterior's mean, ``sample`` one draw from it.
        rounding: how decoded values become 8 bits: ``nearest``, or ``legacy`` as some published code.
        seed: of the draws; a picture's noise depends on this and its place in the listing alone.
        batch_size: pictures at a time in each process.
        per_image: keep the score of every picture.
        save_reconstructions: empty folder to write the prepared originals (``original``) and their
            reconstructions (``decoded``) to, as PNG files.
        device: where it computes; None: this process's own.

    Raises:
        LumitokError: the checkpoint or the data do not open, a name is unknown, there are fewer
            pictures than ``count`` or none that can be read, or the decoder gives NaN or infinity.
    """
    wanted = choose_metrics(metrics)
    _check_choice("latent", latent, LATENTS)
    _check_choice("rounding", rounding, ROUNDINGS)
    device = device or here().device
    # The first one fetches what is missing, the others find it.
    with here().local_main_process_first():
        tokenizer = open_tokenizer(checkpoint)
    size = int(tokenizer.config.image_size)
    source = open_picture_set(data, size=size)
    chosen = _spread(len(source), count, str(data))
    fingerprint = tokenizer.fingerprint()
    with here().local_main_process_first():
        instruments = open_instruments(
            wanted,
            size,
            device,
            perceptual_encoder=perceptual_encoder,
            vgg16=vgg16,
            set_encoder=set_encoder,
            set_weights=set_weights,
        )
    settings = Settings(latent, rounding, seed, batch_size, save_reconstructions)
    together(lambda: _check_empty(save_reconstructions))  # No process writes before all have looked.
    mine = [chosen[place] for place in share(len(chosen))]
    with exact_float32(), torch.no_grad():
        tokenizer.to(device)
        whole, *others = together(lambda: _measure(tokenizer, source, mine, instruments, settings))
    for other in others:
        whole.merge(other)
    if not whole.indices:
        raise LumitokError(f"none of {len(chosen)} pictures of '{data}' can be read:\n{listing(whole.bad)}")
    protocol = _protocol(source, whole, settings)
    numbers = [*_set_numbers(whole, instruments, protocol), *_pair_numbers(whole, instruments, protocol)]
    if not numbers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in instruments.missing.items())
        raise LumitokError(f"nothing that was asked for can be measured here. {reasons}")
    return Results(
        "reconstruction",
        checkpoint,
        numbers,
        fingerprint=fingerprint,
        step=tokenizer_step(checkpoint),
        per_image=whole.scores if per_image else {},
        images=[source.names[index] for index in whole.indices] if per_image else [],
        left_out=source.left_out | ({"unreadable": len(whole.bad)} if whole.bad else {}),
        tables=_tables(source, whole, instruments, tokenizer),
    )


def _check_choice(what: str, given: str, known: dict[Any, str]) -> None:
    if given not in known:
        raise LumitokError(f"there is no {what} '{given}'{nearest(given, known)}; known: {', '.join(known)}")


def _spread(total: int, count: int | None, data: str) -> list[int]:
    """``count`` of ``total`` places, evenly spread; all of them where it is None."""
    if count is not None and not 1 <= count <= total:
        raise LumitokError(f"'{data}' holds {total} pictures and {count} were asked for; change the count")
    return evenly(total, count or total)


def _check_empty(folder: Path | None) -> None:
    """Pictures of another evaluation would be taken for this one's."""
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LumitokError(f"'{folder}' is not an empty folder; name another for the reconstructions")


# ------------------------------------------------------------------------------------------------
# Through the tokenizer


def _measure(
    tokenizer: Tokenizer,
    source: PictureSource,
    mine: list[int],
    instruments: Instruments,
    settings: Settings,
) -> _Part:
    """Measure this process's pictures."""
    part = _Part(scores={distance.name: [] for distance in instruments.perceptual})
    quality = ReconstructionQuality(PAIRED[name].key for name in instruments.paired)
    if instruments.extractor is not None:
        dim = instruments.extractor.dim
        part.sets = _Sets(StatisticsGatherer(dim), StatisticsGatherer(dim))
    with show_progress("reconstructing", len(mine)) as show:
        for pixels, indices in source.batches(mine, settings.batch_size, part.bad.append):
            original = pixels.to(tokenizer.device)
            decoded = _reconstruct(tokenizer, original, indices, settings)
            quality.update_levels(decoded, original)
            for distance in instruments.perceptual:
                part.scores[distance.name] += distance(decoded, original).tolist()
            _add_features(part.sets, instruments, original, decoded)
            part.indices += indices
            part.prints += fingerprints(pixels)
            if settings.folder is not None:
                names = [source.names[index] for index in indices]
                _save(settings.folder / "original", names, pixels)
                _save(settings.folder / "decoded", names, decoded.cpu())
            show(len(part.indices) + len(part.bad))
    own = {name: quality.scores[PAIRED[name].key] for name in instruments.paired}
    part.scores = own | part.scores
    return part


def _reconstruct(tokenizer: Tokenizer, levels: Tensor, indices: list[int], settings: Settings) -> Tensor:
    """8-bit pictures, uint8 (B, 3, H, W) -> what comes back, the same."""
    posterior = tokenizer.encode(levels.float() / 127.5 - 1.0).latent_dist
    if settings.latent == "sample":
        seeds = [derive_seed(settings.seed, index) for index in indices]
        z = posterior.sample([torch.Generator().manual_seed(seed) for seed in seeds])
    else:
        z = posterior.mode()
    return to_uint8(tokenizer.decode(z).sample, rounding=settings.rounding)


def _add_features(sets: _Sets | None, instruments: Instruments, original: Tensor, decoded: Tensor) -> None:
    if sets is None or instruments.extractor is None:
        return
    features = instruments.extractor(decoded)
    if instruments.frechet:
        sets.original.update(instruments.extractor(original).pooled)
        sets.decoded.update(features.pooled)
    if instruments.score:
        assert features.logits is not None  # Inception's.
        sets.logits.append(features.logits.cpu())


def _save(folder: Path, names: list[str], pictures: Tensor) -> None:
    """Write uint8 pictures as PNG files under their whole names: ``a.jpg`` and ``a.png`` stay apart."""
    for name, picture in zip(names, pictures, strict=True):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(picture).save(path)


# ------------------------------------------------------------------------------------------------
# From scores to numbers


def _protocol(source: PictureSource, whole: _Part, settings: Settings) -> Protocol:
    """What all numbers share."""
    return Protocol(
        data=source.protocol_set(whole.indices),
        size=source.size,
        preparation=source.preparation,
        rounding=ROUNDINGS[settings.rounding],
        latent=LATENTS[settings.latent],
        precision="float32",
        seed=settings.seed if settings.latent == "sample" else None,
    )


def _pair_numbers(whole: _Part, instruments: Instruments, protocol: Protocol) -> list[Number]:
    found = []
    for name in instruments.paired:
        metric = PAIRED[name]
        how = replace(protocol, method=metric.method)
        found.append(Number(name, _mean(whole.scores[name]), how, metric.unit, metric.better))
    for distance in instruments.perceptual:
        how = replace(
            protocol, method=distance.method, extractor=distance.extractor, weights=distance.weights
        )
        found.append(Number(distance.name, _mean(whole.scores[distance.name]), how, better="low"))
    return found


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _set_numbers(whole: _Part, instruments: Instruments, protocol: Protocol) -> list[Number]:
    """The distance between the sets and the inception score; too few pictures for one are said as missing."""
    sets, extractor = whole.sets, instruments.extractor
    if sets is None or extractor is None:
        return []
    protocol = replace(protocol, extractor=extractor.description, weights=extractor.weights)
    found, count, missing = [], len(whole.indices), instruments.missing
    if instruments.frechet and count < 2:
        missing[instruments.frechet_name] = "a covariance needs at least 2 pictures"
    elif instruments.frechet:
        value = frechet_distance(sets.decoded.result(), sets.original.result())
        how = replace(protocol, method=f"reconstructions against their originals; {FRECHET_METHOD}")
        found.append(Number(instruments.frechet_name, value, how, better="low"))
    splits = TORCH_FIDELITY["splits"]
    if instruments.score and count < splits:
        missing["rIS"] = f"it takes {splits} splits, and there are {count} pictures"
    elif instruments.score:
        mean, spread = inception_score(torch.cat(sets.logits), **TORCH_FIDELITY)
        how = replace(protocol, method=f"torch-fidelity's: {inception_method(**TORCH_FIDELITY)}")
        found.append(Number("rIS", mean, how, better="high", spread=spread))
    return found


def _tables(
    source: PictureSource, whole: _Part, instruments: Instruments, tokenizer: Tokenizer
) -> dict[str, Any]:
    """What was not measured, what is to be warned of, and which pictures could not be read, if any."""
    warnings = _warnings(whole, instruments, tokenizer)
    warnings += picture_warnings(source, whole.indices, whole.prints, whole.bad)
    tables: dict[str, Any] = {
        "not measured": instruments.missing,
        "warnings": warnings,
        "unreadable": dict(whole.bad),
    }
    return {name: table for name, table in tables.items() if table}


def _warnings(whole: _Part, instruments: Instruments, tokenizer: Tokenizer) -> list[str]:
    found, count, extractor = [], len(whole.indices), instruments.extractor
    if extractor is not None and instruments.frechet and count < MANY:
        rank = f", fewer than the {extractor.dim} features" if count <= extractor.dim else ""
        found.append(
            f"{instruments.frechet_name} is of {count:,} pictures{rank}: the fewer they are, the larger it "
            "comes out; set it beside numbers of the same count alone (papers take 50,000)"
        )
    judges = {distance.name: distance.extractor for distance in instruments.perceptual}
    if extractor is not None and instruments.frechet:
        judges[instruments.frechet_name] = extractor.name
    encoder = tokenizer.foundation
    for name in (name for name, judge in judges.items() if encoder is not None and judge == encoder.name):
        found.append(f"{name} is taken on the encoder that the tokenizer itself sees by, which favours it")
    return found
