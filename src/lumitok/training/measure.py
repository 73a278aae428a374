"""Measurements a run makes of itself: held-out pictures, and the latent's statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from lumitok.data import BadPicture, Pictures, evenly, validation_batches
from lumitok.errors import LumitokError
from lumitok.evaluation.image_quality import ReconstructionQuality
from lumitok.foundation import FoundationEncoder
from lumitok.losses.vf import vf_loss
from lumitok.tokenizers import Tokenizer
from lumitok.training.seeds import derive_seed


def to_pictures(pixels: Tensor, device: torch.device) -> Tensor:
    """8-bit pictures (B, 3, H, W) -> float in [-1, 1], channels last, on the device."""
    x = pixels.to(device, non_blocking=True).float().div(127.5).sub(1)
    return x.contiguous(memory_format=torch.channels_last)


def held_out_quality(
    tokenizer: Tokenizer,
    pictures: Pictures,
    *,
    batch_size: int,
    limit: int,
    distances: Mapping[str, nn.Module] | None = None,
    align_with: FoundationEncoder | None = None,
    accelerator: Accelerator | None = None,
) -> tuple[dict[str, float], list[BadPicture]]:
    """Quality of reconstructions from the posterior's mean, on at most ``limit`` pictures.

    PSNR, SSIM and L1; the VF loss (margins 0) where there is a VF head, against the tokenizer's own frozen
    encoder or ``align_with``; every distance of ``distances``,
    (image, target) -> (B,), by its name. The pictures are spread evenly over the folder and divided among
    the processes; each counts once. Also returns the pictures that could not be read.
    """
    quality = ReconstructionQuality()
    sums: dict[str, list[float]] = {}
    bad: list[BadPicture] = []
    share = _evenly(pictures, limit)
    if accelerator is not None:
        share = share.subset(range(accelerator.process_index, len(share), accelerator.num_processes))
    size = tokenizer.config.image_size
    for pixels in _readable(share, size, batch_size, bad):
        target = to_pictures(pixels, tokenizer.device)
        with torch.no_grad():
            output = tokenizer(target, sample_posterior=False)
            image = output.sample.float().clamp(-1, 1)
            quality.update(image, target)
            scores = {name: distance(image, target) for name, distance in (distances or {}).items()}
            features = output.features if align_with is None else align_with((target + 1) / 2).maps[-1]
            if output.projected is not None and features is not None:
                scores["vf"] = vf_loss(output.projected, features).total.expand(len(target))
        for name, values in scores.items():
            sums.setdefault(name, []).extend(values.float().tolist())
    if accelerator is not None and accelerator.num_processes > 1:
        quality, sums, bad = _merged(gather_object([(quality, sums, bad)]))
    results = dict(quality.results())
    return results | {name: math.fsum(values) / len(values) for name, values in sums.items()}, bad


def _readable(pictures: Pictures, size: int, batch_size: int, bad: list[BadPicture]) -> Iterator[Tensor]:
    """Batches of the pictures that can be read; the others go to ``bad``."""
    try:
        yield from validation_batches(pictures, size, batch_size, report=bad.append)
    except LumitokError:
        # One process's share may be all bad, or empty: the others' still counts, and if nothing does,
        # all processes say so together.
        if len(bad) < len(pictures):
            raise


def _merged(
    parts: list[tuple[ReconstructionQuality, dict[str, list[float]], list[BadPicture]]],
) -> tuple[ReconstructionQuality, dict[str, list[float]], list[BadPicture]]:
    """Put together what the processes have measured."""
    quality, sums, bad = ReconstructionQuality(), dict[str, list[float]](), list[BadPicture]()
    for scores, other, faults in parts:
        quality.merge(scores)
        for name, values in other.items():
            sums.setdefault(name, []).extend(values)
        bad += faults
    return quality, sums, bad


def example_pictures(sets: dict[str, Pictures], size: int, count: int) -> Tensor:
    """``count`` pictures, 8 bits, drawn evenly from the held-out sets in turn; unreadable ones left out."""
    share = -(-count // max(1, len(sets)))
    found = [
        pixels
        for pictures in sets.values()
        for pixels in _readable(_evenly(pictures, share), size, share, [])
    ]
    return torch.cat(found)[:count] if found else torch.empty(0, 3, size, size, dtype=torch.uint8)


def measure_latents(
    tokenizer: Tokenizer,
    pictures: Pictures,
    *,
    batch_size: int,
    limit: int,
    seed: int,
) -> tuple[Tensor, Tensor, int]:
    """Mean and unbiased standard deviation of each latent channel, and the number of pictures.

    Over sampled z of centre-cropped pictures that are not mirrored (LightningDiT's way), in float64.
    Unreadable pictures are left out, and the number says so.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    channels = tokenizer.config.latent_channels
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    values = count = 0
    chosen, size = _evenly(pictures, limit), tokenizer.config.image_size
    for pixels in validation_batches(chosen, size, batch_size, report=_pass_over):
        with torch.no_grad():
            posterior = tokenizer.encode(to_pictures(pixels, tokenizer.device)).latent_dist
        z = posterior.sample(generator).cpu().double()
        total += z.sum(dim=(0, 2, 3))
        squares += z.square().sum(dim=(0, 2, 3))
        values += z.numel() // channels
        count += len(z)
    mean = total / values
    variance = (squares - values * mean.square()) / (values - 1)
    return mean.float(), variance.clamp(min=0).sqrt().float(), count


def _evenly(pictures: Pictures, limit: int) -> Pictures:
    """At most ``limit`` pictures, evenly spread over the folder."""
    return pictures.subset(evenly(len(pictures), limit))


def _pass_over(_: BadPicture) -> None:
    """These pictures were named and counted where they were trained on or measured."""
