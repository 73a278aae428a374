"""CKNNA of 10,000 pictures: the sparse form against the definition with its n x n matrices.

Both give the same number (tests/evaluation hold that; the last column is their difference). Time and peak
memory are of a process of its own for each, torch and the features included; the dense form, which holds
many matrices of n x n, is run as far as it fits.

    python benchmarks/cknna.py
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import sys
import time

import torch
from torch import Tensor

SIZES = [(1000, True), (4000, True), (10_000, False)]
"""Pictures, and whether the dense form is run too."""
CHANNELS = (32, 1024)
"""Of a latent with 32 channels and of a large encoder."""
NEIGHBOURS, EPSILON = 10, 1e-6


def features(count: int) -> tuple[Tensor, Tensor]:
    """Two representations that share a little."""
    draw = torch.Generator().manual_seed(0)
    latent = torch.randn(count, CHANNELS[0], generator=draw)
    mixed = latent @ torch.randn(*CHANNELS, generator=draw)
    return latent, mixed + 5 * torch.randn(count, CHANNELS[1], generator=draw)


def dense(a: Tensor, b: Tensor) -> float:
    """The definition."""
    from lumitok.evaluation.cknna import normalized

    kernels, masks = [], []
    for x in (normalized(a), normalized(b)):
        kernel = x @ x.T
        seen = kernel.clone().fill_diagonal_(-math.inf)
        masks.append(torch.zeros_like(kernel).scatter_(1, seen.topk(NEIGHBOURS, dim=1).indices, 1.0))
        kernels.append(kernel)

    def hsic(one: Tensor, other: Tensor) -> float:
        n = len(one)
        first = (one * other.T).sum()
        second = one.sum() * other.sum() / ((n - 1) * (n - 2))
        return float((first + second - 2 * (one @ other).sum() / (n - 2)) / (n * (n - 3)))

    both = masks[0] * masks[1]
    across = hsic(both * kernels[0], both * kernels[1])
    own = [hsic(mask * kernel, mask * kernel) for mask, kernel in zip(masks, kernels, strict=True)]
    return across / (math.sqrt(own[0] * own[1]) + EPSILON)


def sparse(a: Tensor, b: Tensor) -> float:
    """What lumitok computes."""
    from lumitok.evaluation.cknna import cknna

    return cknna(a, b, k=NEIGHBOURS, eps=EPSILON)


FORMS = {"dense": dense, "sparse": sparse}


def measure(form: str, count: int) -> tuple[float, float, float]:
    """Return the value, the seconds and the process's peak memory in GB."""
    FORMS[form](*features(64))  # Imports and the choice of kernels are not timed.
    a, b = features(count)
    start = time.perf_counter()
    value = FORMS[form](a, b)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return value, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def apart(form: str, count: int) -> tuple[float, float, float]:
    """Run :func:`measure` in a fresh process: peak memory never falls again."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (form, count))


def main() -> None:
    """Print the table."""
    threads = torch.get_num_threads()
    print(f"{CHANNELS[0]} and {CHANNELS[1]} channels, k {NEIGHBOURS}, float32, {threads} threads")
    print(f"{'pictures':>9} {'form':>7} {'seconds':>8} {'peak GB':>8} {'CKNNA':>9} {'difference':>11}")
    for count, fits in SIZES:
        found = {form: apart(form, count) for form in FORMS if fits or form == "sparse"}
        for form, (value, seconds, memory) in found.items():
            apart_by = f"{abs(value - found['dense'][0]):.1e}" if fits and form == "sparse" else ""
            print(f"{count:>9,} {form:>7} {seconds:>8.2f} {memory:>8.2f} {value:>9.6f} {apart_by:>11}")


if __name__ == "__main__":
    main()
