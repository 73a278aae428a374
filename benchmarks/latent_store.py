"""Random reads of latents: the store against LightningDiT's safetensors shards.

Latents (32, 16, 16), float32, both views, in files that the system holds in memory: what is timed is the
reading, not the disk. ``LightningDiT`` is the official loader, ``ImgLatentDataset`` of the checkout that is
named; ``stand-in`` does what it does for each item, open a shard, take a row of a random view and its label,
whiten it, and needs no checkout. The store is read as training does, in batches of 64. Median of the rounds.

    python benchmarks/latent_store.py [--lightningdit PATH] [--count 20000]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lumitok.data.latent_batches import LatentBatches
from lumitok.data.latent_store import LatentStore, open_latent_store
from lumitok.pipelines.convert_latents import convert
from lumitok.training.memory import keep_freed_memory

SHAPE, SHARD, BATCH = (32, 16, 16), 10_000, 64
WANTED = 20
"""Times as fast as LightningDiT's loader the store must be."""


def make(folder: Path, count: int) -> LatentStore:
    """Write shards of random latents, and a store of them."""
    (folder / "shards").mkdir()
    draw = torch.Generator().manual_seed(0)
    for number, start in enumerate(range(0, count, SHARD)):
        size = min(SHARD, count - start)
        shard = {key: torch.randn(size, *SHAPE, generator=draw) for key in ("latents", "latents_flip")}
        shard["labels"] = torch.arange(start, start + size) % 1000
        save_file(shard, folder / "shards" / f"latents_rank00_shard{number:03d}.safetensors")
    stats = {"mean": torch.zeros(1, SHAPE[0], 1, 1), "std": torch.ones(1, SHAPE[0], 1, 1)}
    torch.save(stats, folder / "shards" / "latents_stats.pt")
    convert(folder / "shards", folder / "store")
    return open_latent_store(folder / "store")


def official(checkout: Path, shards: Path) -> Callable[[int], Any]:
    """Return the official loader's way to an item."""
    path = checkout / "datasets" / "img_latent_dataset.py"
    if not path.is_file():
        sys.exit(f"there is no {path}; name a checkout of LightningDiT")
    spec = importlib.util.spec_from_file_location("official_latents", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dataset: Callable[[int], Any] = module.ImgLatentDataset(str(shards)).__getitem__
    return dataset


def stand_in(shards: Path) -> Callable[[int], Any]:
    """Return the way to an item that opens its shard each time."""
    files = sorted(shards.glob("*.safetensors"))
    stats = torch.load(shards / "latents_stats.pt", weights_only=True)

    def item(index: int) -> Any:
        with safe_open(files[index // SHARD], framework="pt", device="cpu") as file:
            view = "latents" if np.random.uniform() > 0.5 else "latents_flip"
            row = slice(index % SHARD, index % SHARD + 1)
            latent, label = file.get_slice(view)[row], file.get_slice("labels")[row]
        return ((latent - stats["mean"]) / stats["std"]).squeeze(0), label.squeeze(0)

    return item


def one_by_one(item: Callable[[int], Any], count: int, reads: int, seed: int) -> None:
    """Read random items and put them into batches, as torch's loader does."""
    order = np.random.default_rng(seed).permutation(count)[:reads]
    for start in range(0, reads, BATCH):
        torch.utils.data.default_collate([item(int(index)) for index in order[start : start + BATCH]])


def from_store(store: LatentStore, reads: int, seed: int) -> None:
    """Read random batches, whitened."""
    for batch in islice(LatentBatches(store, BATCH, seed), -(-reads // BATCH)):
        store.spec.whiten(batch.values)


def median(work: Callable[[int], None], rounds: int) -> float:
    """Seconds of a round; the first is not counted."""
    seconds = []
    for seed in range(rounds + 1):
        start = time.perf_counter()
        work(seed)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lightningdit", type=Path, help="a checkout of the official code")
    parser.add_argument(
        "--count", type=int, default=20_000, help="latents; 64 KiB each in both kinds of file"
    )
    parser.add_argument("--reads", type=int, default=2048, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()  # As every training does; it holds for both sides.
    with tempfile.TemporaryDirectory() as folder:
        store = make(Path(folder), chosen.count)
        shards = Path(folder) / "shards"
        reads, count = min(chosen.reads, chosen.count), chosen.count
        ways: dict[str, Callable[[int], None]] = {}
        if chosen.lightningdit is not None:
            item = official(chosen.lightningdit, shards)
            ways["LightningDiT"] = lambda seed: one_by_one(item, count, reads, seed)
        again = stand_in(shards)
        ways["stand-in"] = lambda seed: one_by_one(again, count, reads, seed)
        ways["store"] = lambda seed: from_store(store, reads, seed)
        found = {name: median(work, chosen.rounds) for name, work in ways.items()}
    whole = -(-reads // BATCH) * BATCH
    print(f"{count:,} latents {SHAPE}, {reads:,} random reads, {chosen.threads} thread(s)")
    print(f"{'':>12} {'ms':>9} {'latents/s':>11} {'times':>7}")
    for name, seconds in found.items():
        done = whole if name == "store" else reads
        speed = found["store"] / whole * reads
        print(f"{name:>12} {1e3 * seconds:>9.1f} {done / seconds:>11,.0f} {seconds / speed:>7.1f}")
    print(f"`times`: how much longer than the store; wanted of LightningDiT: at least {WANTED}")


if __name__ == "__main__":
    main()
