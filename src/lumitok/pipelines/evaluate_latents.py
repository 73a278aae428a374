"""What a tokenizer's latent space is like: what ``lumitok evaluate latents`` does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumitok.data import BadPicture, evenly
from lumitok.data.bad_pictures import listing
from lumitok.errors import LumitokError, nearest
from lumitok.evaluation import density as densities
from lumitok.evaluation.density import DensityMap, density_map, one_position
from lumitok.evaluation.latent_space import METHODS, LatentSpace, LatentStatistics, near_dead
from lumitok.evaluation.picture_sets import PictureSource, fingerprints, open_picture_set
from lumitok.evaluation.processes import gather, here, is_main, share, together
from lumitok.evaluation.progress import show_progress
from lumitok.evaluation.protocol import LATENTS, Latent, Protocol
from lumitok.evaluation.results import Better, Number, Results
from lumitok.evaluation.spectrum import Moments, Spectrum, SpectrumGatherer
from lumitok.nn.precision import exact_float32
from lumitok.pipelines.latent_pictures import write_latent_pictures
from lumitok.pipelines.picture_warnings import picture_warnings
from lumitok.pipelines.reconstruct import open_tokenizer
from lumitok.pipelines.saved_step import tokenizer_step
from lumitok.tokenizers import Tokenizer
from lumitok.training.seeds import derive_seed

MANY = 10_000
"""Pictures from which on their count is not warned of."""
SHOWN, PAIRS = 8, 3
"""Pictures on the sheet of latents in colour, and pairs on that of interpolations."""
LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue (Rec. 601): the pictures' spectrum is that of their brightness."""

_DENSITY = {"density CV": "cv", "Gini coefficient": "gini", "normalised entropy": "entropy"}
_NOISE, _POSITION = 0, 1  # What a picture's random numbers are for.


@dataclass
class _Part:
    """What one process has gathered of its pictures."""

    latents: LatentStatistics
    means: Moments
    """Of the posteriors' means, channel by channel."""
    pictures: SpectrumGatherer
    features: list[Tensor] = field(default_factory=list)
    """For each batch (B, runs, C): the positions that the density is of."""
    indices: list[int] = field(default_factory=list)
    prints: list[bytes] = field(default_factory=list)
    bad: list[BadPicture] = field(default_factory=list)

    def merge(self, other: _Part) -> None:
        self.latents.merge(other.latents)
        self.means = self.means.merged(other.means)
        self.pictures.merge(other.pictures)
        self.features += other.features
        self.indices += other.indices
        self.prints += other.prints
        self.bad += other.bad


@torch.no_grad()
def evaluate_latents(
    checkpoint: str,
    data: str | Path,
    *,
    count: int = 10_000,
    runs: int = 1,
    latent: Latent = "sample",
    seed: int = 0,
    batch_size: int = 32,
    out: Path | None = None,
    density: bool = True,
) -> Results:
    """Measure the latents of pictures: evenness, smoothness, channels, rank, spectrum.

    The tables hold ``channels`` (a list for each statistic), ``eigenvalues`` of the channel covariance,
    ``spectrum`` (of the latents and of the pictures' brightness), ``density`` (a list for each figure, one
    value a run), ``pictures`` (the files in ``out``, in words), ``not measured`` and why, ``warnings`` to
    print.

    It computes in float32; run by ``torchrun`` or ``accelerate launch``, each process takes its share.

    Args:
        checkpoint: folder of a run, a checkpoint or a tokenizer, or a hub id.
        data: folder, zip or npz of pictures; each is centre-cropped to the tokenizer's size as ADM does.
        count: pictures to measure at most, spread evenly over the listing.
        runs: draws of positions, each with its own t-SNE (about a minute for 10,000 pictures). A t-SNE
            magnifies rounding: another machine or batch size moves its figures as another draw does, so
            take several (LightningDiT: 10) and look at the spread.
        latent: ``sample`` takes one draw from each posterior, ``mean`` its mean.
        seed: of the draws; those of a picture depend on this and its place in the listing alone.
        batch_size: pictures at a time in each process.
        out: folder to write PNG pictures to, made if need be; None: none are written.
        density: measure the density figures, which need scikit-learn and scipy.

    Raises:
        LumitokError: the checkpoint or the data do not open, an argument makes no sense, too few pictures
            can be read, or latents are NaN or infinite.
    """
    _check(latent, count, runs, batch_size, density=density)
    device = here().device
    # The first one fetches what is missing, the others find it.
    with here().local_main_process_first():
        tokenizer = open_tokenizer(checkpoint)
    source = open_picture_set(Path(data), size=int(tokenizer.config.image_size))
    chosen = evenly(len(source), count)
    if density and len(chosen) <= densities.PERPLEXITY:
        raise LumitokError(
            f"the density of latents needs more than {densities.PERPLEXITY} pictures (t-SNE's perplexity), "
            f"and there are {len(chosen)}; give more of them, or leave the density out"
        )
    fingerprint = tokenizer.fingerprint()
    tokenizer.to(device)
    mine = [chosen[place] for place in share(len(chosen))]
    with exact_float32():
        whole, *others = together(
            lambda: _measure(tokenizer, source, mine, latent, seed, runs if density else 0, batch_size)
        )
        for part in others:
            whole.merge(part)
        if not whole.indices:
            raise LumitokError(f"none of the {len(chosen)} pictures can be read:\n{listing(whole.bad)}")
        missing: dict[str, str] = {}
        maps = _density_maps(whole, missing) if density else []
        protocol = Protocol(
            data=source.protocol_set(whole.indices),
            size=source.size,
            preparation=source.preparation,
            latent=LATENTS[latent],
            precision="float32",
            seed=seed,
        )
        results = _results(checkpoint, whole, maps, protocol, missing)
        results.fingerprint = fingerprint
        if warnings := _warnings(source, whole):
            results.tables["warnings"] = warnings
        results.left_out = dict(Counter(source.left_out) + Counter(bad.reason for bad in whole.bad))
        if out is not None and is_main():
            shown, ends = (_pixels(source, whole.indices, number) for number in (SHOWN, 2 * PAIRS))
            results.tables["pictures"] = write_latent_pictures(tokenizer, shown, ends, results, maps, out)
    return results


def _check(latent: str, count: int, runs: int, batch_size: int, *, density: bool) -> None:
    if latent not in LATENTS:
        raise LumitokError(
            f"unknown latent '{latent}'; choose one of {', '.join(LATENTS)}{nearest(latent, LATENTS)}"
        )
    for name, value, least in (
        ("number of pictures", count, 2),
        ("number of runs", runs, 1),
        ("batch size", batch_size, 1),
    ):
        if value < least:
            raise LumitokError(f"the {name} is {value}; it must be at least {least}")
    if density:
        densities.require_libraries()


# ------------------------------------------------------------------------------------------------
# Through the encoder


def _measure(
    tokenizer: Tokenizer,
    source: PictureSource,
    mine: Sequence[int],
    latent: Latent,
    seed: int,
    runs: int,
    batch_size: int,
) -> _Part:
    """Gather what there is to gather of this process's pictures."""
    config = tokenizer.config
    side, channels = source.size // config.downsampling, config.latent_channels
    part = _Part(
        LatentStatistics(channels, side, side),
        Moments.empty(channels),
        SpectrumGatherer(1, source.size, source.size),
    )
    with show_progress("encoding", len(mine)) as done:
        for pixels, indices in source.batches(mine, batch_size, part.bad.append):
            x = pixels.to(tokenizer.device).float() / 127.5 - 1.0
            posterior = tokenizer.encode(x).latent_dist
            mean = posterior.mode().float().cpu()
            z = mean
            if latent == "sample":
                draws = [torch.Generator().manual_seed(derive_seed(seed, _NOISE, index)) for index in indices]
                z = posterior.sample(draws).float().cpu()
            part.latents.update(z)
            part.means = part.means.merged(Moments.of(mean.movedim(1, 0).flatten(1)))
            part.pictures.update(_luma(pixels))
            if runs:
                part.features.append(
                    torch.stack([_positions(z, seed, run, indices) for run in range(runs)], 1)
                )
            part.indices += indices
            part.prints += fingerprints(pixels)
            done(len(part.indices) + len(part.bad))
    return part


def _luma(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> brightness (B, 1, H, W) in [0, 1]."""
    return (pixels.double() * torch.tensor(LUMA).double().view(3, 1, 1)).sum(dim=1, keepdim=True) / 255.0


def _positions(z: Tensor, seed: int, run: int, indices: Sequence[int]) -> Tensor:
    """One position of each picture: (B, C). Another run draws others."""
    seeds = (derive_seed(seed, _POSITION, run, index) for index in indices)
    return one_position(z, [np.random.default_rng(one) for one in seeds])


def _density_maps(whole: _Part, missing: dict[str, str]) -> list[DensityMap]:
    """One map for each draw of positions, divided among the processes."""
    features = torch.cat(whole.features)
    mine: list[DensityMap | str] = []
    runs = share(features.shape[1])
    with show_progress("t-SNE", len(runs), "runs") as done:
        for run in runs:
            try:
                mine.append(density_map(features[:, run]))
            except LumitokError as error:  # All that was measured before it still holds.
                mine.append(str(error))
            done(len(mine))
    found = gather(mine)
    reasons = [one for one in found if isinstance(one, str)]
    if reasons:
        missing |= dict.fromkeys(_DENSITY, reasons[0])
        return []
    return [one for one in found if isinstance(one, DensityMap)]


# ------------------------------------------------------------------------------------------------
# Numbers and tables


def _results(
    checkpoint: str, whole: _Part, maps: list[DensityMap], protocol: Protocol, missing: dict[str, str]
) -> Results:
    space, pictures = whole.latents.result(), whole.pictures.result()
    dead = near_dead(whole.means.variance)
    numbers = [*_density_numbers(maps, protocol), *_space_numbers(space, dead, protocol)]
    numbers += _slopes(space.spectrum, pictures, protocol, missing)
    results = Results(
        "latents",
        checkpoint,
        numbers,
        step=tokenizer_step(checkpoint),
        tables=_tables(space, pictures, dead, whole.means, whole.latents.shape),
    )
    if maps:
        results.tables["density"] = {
            name: [getattr(one.uniformity, name) for one in maps] for name in _DENSITY.values()
        }
    if missing:
        results.tables["not measured"] = missing
    return results


def _warnings(source: PictureSource, whole: _Part) -> list[str]:
    found = picture_warnings(source, whole.indices, whole.prints, whole.bad)
    if (count := len(whole.indices)) < MANY:
        found.append(
            f"these are the latents of {count:,} pictures; the density figures depend on the count, and the "
            f"others are rough estimates of few: take {MANY:,}, and compare equal counts only"
        )
    return found


def _density_numbers(maps: list[DensityMap], protocol: Protocol) -> Iterator[Number]:
    for name, key in _DENSITY.items() if maps else ():
        values = [getattr(one.uniformity, key) for one in maps]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        yield Number(
            name, math.fsum(values) / len(values), replace(protocol, method=densities.PROTOCOL), spread=spread
        )


def _space_numbers(space: LatentSpace, dead: Tensor, protocol: Protocol) -> Iterator[Number]:
    def number(
        name: str, value: float | Tensor, method: str = "", unit: str = "", better: Better = ""
    ) -> Number:
        return Number(name, float(value), replace(protocol, method=method or METHODS[name]), unit, better)

    alive = space.varying
    for name, values, power in (
        ("spatial variance", space.spatial_variance, 2),
        ("total variation", space.total_variation, 1),
    ):
        yield number(name, values.mean())
        white = f"{METHODS[name]}; {METHODS['whitened']}"
        yield number(f"{name}, whitened", space.whitened(values, power), white)
    yield number("neighbour correlation", space.neighbour_correlation[alive].mean())
    yield number("effective rank", space.effective_rank)
    near_dead_share = number("near-dead channels", 100 * dead.double().mean(), unit="%", better="low")
    # Of the means, whichever latent is analysed: a draw's noise would hide a dead channel.
    yield replace(near_dead_share, protocol=replace(near_dead_share.protocol, latent=LATENTS["mean"]))
    yield number("standard deviation", space.std.square().mean().sqrt())
    yield number("skewness", space.skewness[alive].abs().mean())
    yield number("excess kurtosis", space.kurtosis[alive].mean())


def _slopes(
    latents: Spectrum, pictures: Spectrum, protocol: Protocol, missing: dict[str, str]
) -> Iterator[Number]:
    highest = float(latents.frequency[-1])
    brightness = replace(
        protocol, latent=None, method=f"{METHODS['spectral slope']}; of the pictures' brightness"
    )
    for name, spectrum, how in (
        ("spectral slope", latents, replace(protocol, method=METHODS["spectral slope"])),
        ("spectral slope of the pictures", pictures, brightness),
    ):
        try:
            yield Number(name, spectrum.slope(up_to=highest), how)
        except LumitokError as error:
            missing[name] = str(error)


def _tables(
    space: LatentSpace, pictures: Spectrum, dead: Tensor, means: Moments, shape: tuple[int, int, int]
) -> dict[str, Any]:
    channels = {
        "mean": space.mean,
        "std": space.std,
        "std of the posterior's mean": means.variance.sqrt(),
        "skewness": space.skewness,
        "excess kurtosis": space.kurtosis,
        "spatial variance": space.spatial_variance,
        "total variation": space.total_variation,
        "neighbour correlation": space.neighbour_correlation,
    }
    curves = {"latent": space.spectrum, "pictures": pictures}
    return {
        "channels": {name: _plain(values) for name, values in channels.items()}
        | {"near-dead": dead.tolist()},
        "eigenvalues": space.eigenvalues.tolist(),
        "spectrum": {
            **{name: {key: value.tolist() for key, value in vars(c).items()} for name, c in curves.items()},
            "white noise": 1 / (shape[1] * shape[2]),
        },
    }


def _plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON, which has no NaN: null where a constant channel has no such statistic."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _pixels(source: PictureSource, indices: Sequence[int], count: int) -> Tensor:
    """Pictures out of those that were measured, evenly spread: uint8 (count, 3, H, W)."""
    chosen = [indices[place] for place in evenly(len(indices), count)]
    return torch.cat([pixels for pixels, _ in source.batches(chosen, count)])
