"""Fréchet distance from means and covariances: lumitok's way against ``scipy.linalg.sqrtm``.

Each runs in a process of its own; the table gives the seconds, the peak memory without the statistics
themselves, and how far the two distances lie apart. Needs SciPy: ``pip install lumitok[eval]``.

    python benchmarks/frechet.py [THREADS]
"""

from __future__ import annotations

import sys

import torch
from measuring import in_own_process
from torch import Tensor

from lumitok.evaluation.frechet import Statistics, frechet_distance

DIMS = [512, 1024, 2048]
FEW = 500
"""Images of the low-rank case."""
ROUNDS = 3


def covariance(dim: int, decay: float, seed: int) -> Tensor:
    """Random, of full rank, its eigenvalues falling from 1 to 10^-decay like those of network features."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    return (basis * torch.logspace(0, -decay, dim, dtype=torch.float64)) @ basis.T


def gaussians(dim: int) -> tuple[Statistics, Statistics]:
    """Two sets of stored statistics."""
    mean = torch.zeros(dim)
    return (
        Statistics.from_arrays(mean, covariance(dim, 6, 0)),
        Statistics.from_arrays(mean + 0.01, covariance(dim, 5, 1)),
    )


def few(dim: int) -> tuple[Statistics, Statistics]:
    """Features of fewer images than dimensions against stored statistics."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(FEW, dim, generator=generator) * torch.logspace(0, -2, dim)
    return Statistics.from_features(features), gaussians(dim)[1]


def by_root(a: Statistics, b: Statistics) -> float:
    """The definition."""
    from scipy.linalg import sqrtm

    first, second = (full(x).numpy() for x in (a, b))
    trace = first.trace() + second.trace() - 2 * sqrtm(first @ second).real.trace()
    return float((a.mean - b.mean).square().sum() + trace)


def full(x: Statistics) -> Tensor:
    """Return the covariance (d, d) of a low-rank set, too."""
    root = x.root()
    return x.covariance if x.covariance is not None else root.T @ root


def main() -> None:
    """Print the table."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    print(f"float64, {threads} threads, median of {ROUNDS} rounds; a process each")
    print(
        f"{'dimensions':>10} {'images':>7} {'sqrtm, s':>9} {'lumitok, s':>11} {'ratio':>6} "
        f"{'sqrtm, MiB':>11} {'lumitok, MiB':>13} {'apart':>8}"
    )
    cases = [(dim, gaussians, "many") for dim in DIMS] + [(DIMS[-1], few, str(FEW))]
    for dim, make, images in cases:
        (value, old, held), (ours, new, needed) = (
            in_own_process(function, make, small=64, size=dim, threads=threads, rounds=ROUNDS)
            for function in (by_root, frechet_distance)
        )
        print(
            f"{dim:>10} {images:>7} {old:>9.2f} {new:>11.2f} {old / new:>6.1f} {held:>11.0f} {needed:>13.0f} "
            f"{abs(value - ours):>8.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
