"""Precision and recall: lumitok in blocks against torch-fidelity's two modes and a brute force.

Each runs in a process of its own; the table gives the seconds, the peak memory without the features
themselves, and both numbers. Needs torch-fidelity:
``pip install lumitok[eval]``.

    python benchmarks/precision_recall.py [THREADS]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from measuring import in_own_process
from torch import Tensor

from lumitok.evaluation.precision_recall import K, precision_recall

DIM = 2048
COUNTS = [1000, 10_000]
BRUTE_LIMIT = 1000
"""Above this the brute force takes minutes."""

Method = Callable[[Tensor, Tensor], tuple[float, float]]


def lumitok(reference: Tensor, generated: Tensor) -> tuple[float, float]:
    return precision_recall(reference, generated)


def lumitok_half(reference: Tensor, generated: Tensor) -> tuple[float, float]:
    return precision_recall(reference, generated, half=True)


def fidelity_full(reference: Tensor, generated: Tensor) -> tuple[float, float]:
    return fidelity(reference, generated, save_cpu_ram=False)


def fidelity_parts(reference: Tensor, generated: Tensor) -> tuple[float, float]:
    return fidelity(reference, generated, save_cpu_ram=True)


def fidelity(reference: Tensor, generated: Tensor, *, save_cpu_ram: bool) -> tuple[float, float]:
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(generated, reference, verbose=False, save_cpu_ram=save_cpu_ram)
    return found["precision"], found["recall"]


def brute_force(reference: Tensor, generated: Tensor) -> tuple[float, float]:
    """Every distance at once, by differences, in float64."""

    def inside(points: Tensor, centres: Tensor) -> float:
        radii = distances(centres, centres).fill_diagonal_(torch.inf).topk(K, largest=False).values[:, -1]
        return float((distances(points, centres) <= radii).any(dim=1).double().mean())

    def distances(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")

    return inside(generated, reference), inside(reference, generated)


def features(count: int, seed: int, scale: float = 1.0) -> Tensor:
    """Features (count, DIM) that lie near 24 dimensions, so that neither number is 0 or 1."""
    basis = torch.randn(24, DIM, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(count, 24, generator=generator) @ basis
    return scale * inner + 0.1 * torch.randn(count, DIM, generator=generator)


def sets(count: int) -> tuple[Tensor, Tensor]:
    return features(count, 1), features(count, 2, 0.9)


def main() -> None:
    """Print the table."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    print(f"{DIM} dimensions, k = {K}, {threads} threads; a process each")
    print(f"{'images':>15} {'method':>15} {'seconds':>8} {'MiB':>6} {'precision':>10} {'recall':>8}")
    methods: list[Method] = [lumitok, lumitok_half, fidelity_full, fidelity_parts, brute_force]
    for count in COUNTS:
        for method in methods:
            if method is brute_force and count > BRUTE_LIMIT:
                continue
            (precision, recall), seconds, grown = in_own_process(
                method, sets, small=8, size=count, threads=threads
            )
            print(
                f"{f'{count} x {count}':>15} {method.__name__:>15} {seconds:>8.1f} {grown:>6.0f} "
                f"{precision:>10.4f} {recall:>8.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
