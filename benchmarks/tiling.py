"""Tiles against the whole picture: time and memory as it grows, and how far apart the pictures are.

Memory is what the process held at its peak above what it held before (on CUDA: what the allocator handed
out), each run in a process of its own. Turns: how often the tiles are run (``enable_tiling``).

How near tiles come depends on what the network has learnt, so it is measured on trained tokenizers: a photo
is encoded (the posterior's mean) and decoded in one go and in tiles, both are rounded to 8 bits, and the
differences, of a pixel's worst channel, are counted in grey levels, those where two tiles are blended once
more by themselves.

    python benchmarks/tiling.py
    python benchmarks/tiling.py --checkpoint runs/mine [--picture photo.png] [--tile 256] [--overlap 64]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lumitok.config import AlignTokConfig, EncoderConfig
from lumitok.data import read_picture
from lumitok.evaluation.image_quality import to_uint8
from lumitok.pipelines.reconstruct import open_tokenizer
from lumitok.tokenizers import build_tokenizer
from lumitok.tokenizers.autoencoder import Autoencoder
from lumitok.tokenizers.tiling import spans

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


def photo(picture: Path | None) -> Tensor:
    """A picture (1, 3, H, W) in [-1, 1]; by default scikit-image's astronaut, 512 x 512."""
    if picture is None:
        from skimage.data import astronaut

        pixels = torch.from_numpy(astronaut())
    else:
        pixels = torch.from_numpy(np.array(read_picture(picture)))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def compare(checkpoint: str, picture: Path | None, tile: int, overlap: int) -> None:
    """Print how far a tokenizer's tiled reconstruction lies from the untiled one."""
    tokenizer = open_tokenizer(checkpoint)
    if not isinstance(tokenizer, Autoencoder):
        raise SystemExit(f"{checkpoint} is a {type(tokenizer).__name__}, which has no tiling")
    x = photo(picture)
    if max(x.shape[-2:]) <= tile:
        raise SystemExit(
            f"the picture has {x.shape[-1]} x {x.shape[-2]} px and is one tile of {tile}; lower --tile"
        )
    whole = to_uint8(tokenizer.reconstruct(x)).int()
    rows, columns = (blended(side, tile, overlap, tokenizer.size_multiple) for side in x.shape[-2:])
    seam = rows[:, None] | columns
    name = "scikit-image's astronaut" if picture is None else picture.name
    print(f"{checkpoint}, {name}, {x.shape[-1]} x {x.shape[-2]} px, tiles of {tile} px, overlap {overlap} px")
    print(f"{'turns':>5} {'largest':>8} {'mean':>6} {'mean, blended':>14} {'more than 1 apart':>18}")
    for turns in (1, 4, 8):
        tokenizer.enable_tiling(tile, overlap, turns)
        tiled = to_uint8(tokenizer.reconstruct(x)).int()
        apart = (tiled - whole).abs().amax(1)[0].double()
        print(
            f"{turns:>5} {int(apart.max()):>8} {apart.mean():>6.2f} {apart[seam].mean():>14.2f} "
            f"{(apart > 1).double().mean():>17.1%}",
            flush=True,
        )


def blended(side: int, tile: int, overlap: int, step: int) -> Tensor:
    """Which pixels of a side two tiles share in the result."""
    found = torch.zeros(side, dtype=torch.bool)
    for before, after in pairwise(spans(side + -side % step, tile, overlap, step)):
        middle = (after.start + before.stop) / 2
        found[int(middle - overlap / 4) : int(middle + overlap / 4)] = True
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", help="a trained tokenizer: compare pictures in place of time and memory"
    )
    parser.add_argument("--picture", type=Path, help="the picture; by default scikit-image's astronaut")
    parser.add_argument("--tile", type=int, default=TILE, help="side of a tile, px")
    parser.add_argument("--overlap", type=int, default=OVERLAP, help="what neighbours share, px")
    chosen = parser.parse_args()
    if chosen.checkpoint is not None:
        compare(chosen.checkpoint, chosen.picture, chosen.tile, chosen.overlap)
        return
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
