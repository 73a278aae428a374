"""Modulated 1x1 convolution: scaling channels against building a weight for every sample.

Both compute the same function (tests/tokenizers hold that); the table gives the time of a forward and
backward pass of each, side by side, and their ratio, at the sizes of the paper's decoder.

    python benchmarks/modulation.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lumitok.tokenizers.vfm_vae import modulated_pointwise
from lumitok.training.memory import keep_freed_memory

SIZES = [(512, 8), (512, 32), (256, 64), (128, 64)]
"""Channels in (out: four times as many) and side of the map."""
BATCH, ROUNDS = 4, 5


def per_sample(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
    """The definition: one demodulated weight a sample, run as a grouped convolution."""
    weights = weight[None] * style[:, None, :]
    weights = weights * torch.rsqrt(weights.square().sum(dim=2, keepdim=True) + 1e-8)
    batch, out, channels = weights.shape
    stacked = x.reshape(1, batch * channels, *x.shape[2:])
    y = F.conv2d(stacked, weights.reshape(batch * out, channels, 1, 1), groups=batch)
    return y.view(batch, out, *x.shape[2:]) + bias[None, :, None, None]


def scaled(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
    """Scale the channels instead, as lumitok does."""
    return modulated_pointwise(x, weight, style, bias=bias, demodulate=True)


def seconds(function: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Time of one forward and backward pass."""
    start = time.perf_counter()
    function(*inputs).square().sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    keep_freed_memory()
    print(
        f"batch {BATCH}, float32, {torch.get_num_threads()} threads, median of {ROUNDS} rounds taken in turn"
    )
    print(f"{'channels':>9} {'side':>5} {'per sample, ms':>15} {'scaled, ms':>11} {'ratio':>6}")
    for channels, side in SIZES:
        shapes = [(BATCH, channels, side, side), (4 * channels, channels), (BATCH, channels), (4 * channels,)]
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        times: dict[str, list[float]] = {"per_sample": [], "scaled": []}
        for function in (per_sample, scaled):
            seconds(function, inputs)  # the first pass also chooses kernels
        for _ in range(ROUNDS):
            times["per_sample"].append(seconds(per_sample, inputs))
            times["scaled"].append(seconds(scaled, inputs))
        old, new = (statistics.median(values) for values in times.values())
        print(f"{channels:>9} {side:>5} {old * 1e3:>15.1f} {new * 1e3:>11.1f} {old / new:>6.2f}")


if __name__ == "__main__":
    main()
