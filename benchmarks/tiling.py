"""Decoding in tiles against decoding in one go, as the picture grows: time and memory.

Memory is what the process held at its peak above what it held before (on CUDA: what the allocator handed
out), each run in a process of its own. Turns: how often the tiles are run (``enable_tiling``).

    python benchmarks/tiling.py
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection

import torch

from lumitok.config import AlignTokConfig, EncoderConfig
from lumitok.tokenizers import build_tokenizer
from lumitok.tokenizers.autoencoder import Autoencoder

SIDES = [256, 512, 768, 1024]
TILE, OVERLAP = 256, 64
TURNS = [None, 1, 4]
"""None: untiled."""


def small_tokenizer() -> Autoencoder:
    """AlignTok with a small encoder and a decoder of a quarter of the paper's channels."""
    encoder = EncoderConfig(
        name="timm:vit_tiny_patch16_224", weights="random", timm_kwargs={"img_size": 256, "depth": 2}
    )
    torch.manual_seed(0)
    tokenizer = build_tokenizer(AlignTokConfig(encoder=encoder, decoder_channels=32, decoder_blocks=1))
    assert isinstance(tokenizer, Autoencoder)
    return tokenizer.eval()


def peak() -> float:
    """MiB held at most so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@torch.no_grad()
def run(side: int, turns: int | None, pipe: Connection) -> None:
    """Decode one latent; send back seconds and MiB."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = small_tokenizer().to(device)
    z = torch.randn(1, 32, side // 16, side // 16, generator=torch.Generator().manual_seed(0)).to(device)
    if turns is not None:
        tokenizer.enable_tiling(TILE, OVERLAP, turns)
    before, start = peak(), time.perf_counter()
    tokenizer.decode(z).sample.cpu()
    pipe.send((time.perf_counter() - start, peak() - before))


def main() -> None:
    """Print the table."""
    context = multiprocessing.get_context("spawn")
    print(f"decode, tiles of {TILE} px, overlap {OVERLAP} px, float32, one thread, batch 1")
    print(f"{'side':>5} {'turns':>9} {'seconds':>8} {'MiB':>7}")
    for side in SIDES:
        for turns in TURNS:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=run, args=(side, turns, there))
            process.start()
            seconds, memory = here.recv()
            process.join()
            name = "untiled" if turns is None else str(turns)
            print(f"{side:>5} {name:>9} {seconds:>8.2f} {memory:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
