"""ADM's published numbers, taken again from its own batches of samples.

The batches and the references are those of openai/guided-diffusion (evaluations/README.md), the weights
torch-fidelity's; `lumitok fetch-weights inception` says where they are looked for. The last column is how
far each number may lie from the one of ADM's own evaluator (TensorFlow); exit code 1 where one does not.

    python benchmarks/adm_golden.py admnet_guided_imagenet128.npz VIRTUAL_imagenet128_labeled.npz
    python benchmarks/adm_golden.py admnet_guided_upsampled_imagenet256.npz VIRTUAL_imagenet256_labeled.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumitok.errors import LumitokError
from lumitok.evaluation.results import Results
from lumitok.pipelines.evaluate_generation import evaluate_generation

GOLDEN = {
    "admnet_guided_upsampled_imagenet256": {
        "IS": 215.837,
        "FID": 3.9426,
        "sFID": 6.1404,
        "precision": 0.8265,
        "recall": 0.5309,
    },
    "admnet_guided_imagenet128": {
        "IS": 141.4767,
        "FID": 2.97329,
        "sFID": 5.09456,
        "precision": 0.78138,
        "recall": 0.5929,
    },
}
"""What ADM's evaluator prints for its own samples."""
TOLERANCE = {"IS": 0.15, "FID": 0.002, "sFID": 0.002, "precision": 0.003, "recall": 0.003}
"""What the port of Inception to torch, and distances that are not rounded to float16, make out."""


@dataclass(frozen=True)
class Row:
    """One number beside its golden one."""

    name: str
    found: float
    golden: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether it lies within the tolerance."""
        return abs(self.found - self.golden) <= self.tolerance


def measure(samples: Path, reference: Path, **options: Any) -> Results:
    """Take the five numbers as ADM's evaluator does; ``options`` as of ``evaluate_generation``."""
    metrics = ("is", "fid", "sfid", "precision", "recall")
    return evaluate_generation(samples, reference, metrics=metrics, **options)


def compare(results: Results, batch: str) -> list[Row]:
    """Set the numbers beside the golden ones of a batch of samples."""
    if batch not in GOLDEN:
        raise LumitokError(f"there are golden numbers for {', '.join(GOLDEN)}, not for '{batch}'")
    return [Row(name, results[name], golden, TOLERANCE[name]) for name, golden in GOLDEN[batch].items()]


def main(arguments: Sequence[str] | None = None, **options: Any) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("samples", type=Path, help="ADM's batch of samples, npz")
    parser.add_argument("reference", type=Path, help="ADM's reference batch, npz")
    parser.add_argument("--batch", choices=GOLDEN, help="which samples they are; by default as the file says")
    parser.add_argument("--weights", type=Path, help="Inception's weights; by default from the cache")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures a batch")
    given = parser.parse_args(arguments)
    batch = given.batch or given.samples.stem
    if batch not in GOLDEN:
        parser.error(f"'{batch}' is none of {', '.join(GOLDEN)}; say with --batch which samples these are")
    results = measure(
        given.samples, given.reference, weights=given.weights, batch_size=given.batch_size, **options
    )
    rows = compare(results, batch)
    for warning in results.tables["warnings"]:
        print(f"warning: {warning}")
    print(f"{'':>10} {'found':>10} {'golden':>10} {'off by':>10} {'may be':>8}")
    for row in rows:
        verdict = "" if row.agrees else "  DIFFERS"
        numbers = (
            f"{row.found:>10.5f} {row.golden:>10.5f} {row.found - row.golden:>+10.5f} {row.tolerance:>8}"
        )
        print(f"{row.name:>10} {numbers}{verdict}")
    return 0 if all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
