"""Large pictures tile by tile: memory that does not grow with the picture, seams that are not seen.

Tiles overlap and are blended, which hides what a tile's border does to its outermost pixels. What layers
that read all places do is ``whole_picture``'s business: for it the tiles are run several times over, and in
the last turn, which gives the result, nothing is noted any more, so that all tiles are made with the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lumitok.errors import LumitokError
from lumitok.tokenizers.whole_picture import Span, WholePicture


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut; sides in picture pixels."""

    tile: int
    overlap: int
    """What neighbours share. Its outer quarters are thrown away, its middle half is blended."""
    turns: int = 4
    """How often the tiles are run; the last time gives the result. 1: every tile by itself."""

    def check(self, multiple: int) -> None:
        """Raise a LumitokError unless tiles can be laid on a grid of ``multiple`` pixels."""
        if self.tile < 2 * multiple or self.tile % multiple:
            fits = max(2 * multiple, self.tile // multiple * multiple)
            raise LumitokError(
                f"tile is {self.tile} px; this tokenizer wants a multiple of {multiple}, {2 * multiple} at "
                f"least: give {fits} or {fits + multiple}"
            )
        most = self.tile // 2 // multiple * multiple
        if not 0 <= self.overlap <= most or self.overlap % multiple:
            fits = min(most, max(0, self.overlap) // multiple * multiple)
            raise LumitokError(
                f"overlap is {self.overlap} px; with tiles of {self.tile} px this tokenizer wants a multiple "
                f"of {multiple} from 0 to {most}: give {fits}"
                + (f" or {fits + multiple}" if fits < most else "")
            )
        if self.turns < 1:
            raise LumitokError(f"turns is {self.turns}; give 1 (every tile by itself) or more")


# ------------------------------------------------------------------------------------------------
# Where the tiles lie, and with what weights


def spans(length: int, tile: int, overlap: int, step: int = 1) -> list[Span]:
    """Lay tiles along an axis: the fewest that overlap by at least ``overlap``, the last at the end.

    ``length``, ``tile`` and ``overlap`` are multiples of ``step``; so is every border.
    """
    if length <= tile:
        return [Span(0, length, (0, length))]
    count = 1 + math.ceil((length - tile) / (tile - overlap))
    # Spread evenly: a last tile pushed back to the end would nearly repeat the one before.
    starts = [(length - tile) * index // (count - 1) // step * step for index in range(count)]
    borders = [(second + first + tile) // 2 // step * step for first, second in pairwise(starts)]
    edges = [0, *borders, length]
    return [Span(start, start + tile, (edges[index], edges[index + 1])) for index, start in enumerate(starts)]


def blend_weights(parts: list[Span], overlap: int, scale: float) -> list[Tensor]:
    """Weights of each tile along one axis of the output, whose places are ``scale`` times the input's.

    Neighbours are blended over the middle half of ``overlap``, the rest of what they share is taken from
    the nearer one: what a tile's border does to its outermost places is not seen. At every place the
    weights sum to 1.
    """
    width = overlap * scale / 2
    weights = []
    for index, part in enumerate(parts):
        places = torch.arange(round(part.start * scale), round(part.stop * scale), dtype=torch.float64) + 0.5
        weight = torch.ones_like(places)
        if index > 0:
            weight = weight * _rise(places, parts[index - 1], part, scale, width)
        if index + 1 < len(parts):
            weight = weight * (1 - _rise(places, part, parts[index + 1], scale, width))
        weights.append(weight)
    return weights


def _rise(places: Tensor, first: Span, second: Span, scale: float, width: float) -> Tensor:
    """From 0 to 1 about the middle of what two neighbours share."""
    middle = (second.start + first.stop) / 2 * scale
    return ((places - middle) / max(width, 1e-6) + 0.5).clamp(0, 1)


# ------------------------------------------------------------------------------------------------
# Running the tiles


@torch.no_grad()
def in_tiles(
    network: nn.Module,
    function: Callable[[Tensor], list[Tensor]],
    x: Tensor,
    tiling: Tiling,
    step: int = 1,
) -> list[Tensor]:
    """Run a function of the network tile by tile and blend what it gives.

    Args:
        network: whose layers are to know of the whole picture.
        function: a map (B, C, h, w) -> maps (B, C_i, s_i h, s_i w), each with its own scale s_i.
        x: the whole map; it may stay on the processor while the network is elsewhere: only tiles travel, and
            the results lie where ``x`` does.
        tiling: in places of ``x``.
        step: what the tiles' borders are multiples of.
    """
    rows, columns = (spans(side, tiling.tile, tiling.overlap, step) for side in x.shape[-2:])
    device = next(network.parameters()).device
    if len(rows) == len(columns) == 1:
        return [result.to(x.device) for result in function(x.to(device))]
    picture = WholePicture(network, (x.shape[-2], x.shape[-1]))
    outputs: list[Tensor] = []
    with picture.watching() if tiling.turns > 1 else nullcontext():
        for turn in range(tiling.turns):
            picture.learning = turn + 1 < tiling.turns
            for output in outputs:
                output.zero_()
            for row in rows:
                for column in columns:
                    picture.place(row, column)
                    tile = x[..., row.start : row.stop, column.start : column.stop]
                    results = function(tile.to(device))
                    outputs = outputs or [_empty(result, tile, x) for result in results]
                    for output, result in zip(outputs, results, strict=True):
                        _blend(output, result, (rows, row), (columns, column), tiling.overlap, x)
            if picture.empty:
                break
    return outputs


def _empty(result: Tensor, tile: Tensor, x: Tensor) -> Tensor:
    height, width = (
        whole * side // part
        for whole, side, part in zip(x.shape[-2:], result.shape[-2:], tile.shape[-2:], strict=True)
    )
    return torch.zeros(*result.shape[:2], height, width, dtype=result.dtype, device=x.device)


def _blend(
    output: Tensor,
    result: Tensor,
    down: tuple[list[Span], Span],
    across: tuple[list[Span], Span],
    overlap: int,
    x: Tensor,
) -> None:
    """Add a tile's result to the whole, in place, weighted."""
    slices, weights = [], []
    for (parts, part), side, whole in zip((down, across), output.shape[-2:], x.shape[-2:], strict=True):
        slices.append(slice(part.start * side // whole, part.stop * side // whole))
        weights.append(blend_weights(parts, overlap, side / whole)[parts.index(part)].to(result))
    weight = weights[0][:, None] * weights[1]
    output[..., slices[0], slices[1]] += (result * weight).to(output.device)
