"""Measurements a run makes of itself: held-out pictures, and the latent's statistics."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lumitok.data import Pictures, validation_batches
from lumitok.evaluation.image_quality import ReconstructionQuality
from lumitok.tokenizers import Tokenizer
from lumitok.training.seeds import derive_seed


def to_pictures(pixels: Tensor, device: torch.device) -> Tensor:
    """8-bit pictures (B, 3, H, W) -> float in [-1, 1], channels last, on the device."""
    x = pixels.to(device, non_blocking=True).float().div(127.5).sub(1)
    return x.contiguous(memory_format=torch.channels_last)


def held_out_quality(
    tokenizer: Tokenizer, pictures: Pictures, *, batch_size: int, limit: int
) -> dict[str, float]:
    """PSNR, SSIM and L1 of reconstructions from the posterior's mean, on at most ``limit`` pictures.

    The pictures are spread evenly over the folder; each process measures all of them, so that no
    picture is counted twice.
    """
    quality = ReconstructionQuality()
    for pixels in _spread(pictures, limit, tokenizer.config.image_size, batch_size):
        target = to_pictures(pixels, tokenizer.device)
        quality.update(tokenizer.reconstruct(target).float(), target)
    return dict(quality.results())


def example_pictures(sets: dict[str, Pictures], size: int, count: int) -> Tensor:
    """``count`` pictures, 8 bits, drawn evenly from the held-out sets in turn."""
    share = -(-count // max(1, len(sets)))
    found = [
        torch.cat(list(_spread(pictures, share, size, share))) for pictures in sets.values() if len(pictures)
    ]
    return torch.cat(found)[:count]


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
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    channels = tokenizer.config.latent_channels
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    values = count = 0
    for pixels in _spread(pictures, limit, tokenizer.config.image_size, batch_size):
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


def _spread(pictures: Pictures, limit: int, size: int, batch_size: int) -> Iterator[Tensor]:
    """Batches of at most ``limit`` pictures, evenly spread over the folder."""
    if len(pictures) > limit:
        chosen = torch.linspace(0, len(pictures) - 1, limit).round().long().tolist()
        pictures = pictures.subset(chosen)
    yield from validation_batches(pictures, size, batch_size)
