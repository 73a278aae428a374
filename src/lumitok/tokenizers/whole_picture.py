"""What layers that read all places know of a large picture while they are shown a tile of it.

A tile by itself has statistics of its own, and its colours and contrasts differ from its neighbour's. So the
tiles are run several times over, and every layer that reads all places keeps what each tile last showed it
and works with all of them together:

    group norm    mean and variance over the whole picture
    attention     the tile's own tokens, and a sample of all others, which stand for the rest
    style         the mean of Z over the whole picture

What a layer is shown depends on the layers before it, so this settles from turn to turn. Foundation
encoders, and the transformer of AlignTok's hybrid decoder, see every tile as a picture of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lumitok.nn.group_norm import GroupNorm
from lumitok.tokenizers.ldm import Attention

TOKENS = 1024
"""How many tokens of the whole picture an attention layer keeps at most, for the tiles they do not lie in."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in the input's places."""

    start: int
    stop: int
    core: tuple[int, int]
    """What of it is counted in statistics; the cores of all tiles cover every place once."""


Tile = tuple[Span, Span]
"""Rows and columns."""


@dataclass
class _Axis:
    """A tile along one axis, on the grid of some layer."""

    start: int
    size: int
    core: slice
    """Counted from the tile's start."""
    whole: int

    @classmethod
    def of(cls, span: Span, whole: int, size: int) -> _Axis:
        # Borders lie on multiples of what every grid divides, so nothing is rounded here.
        length = span.stop - span.start
        start = span.start * size // length
        low, high = (place * size // length - start for place in span.core)
        return cls(start, size, slice(low, high), whole * size // length)


class _Moments:
    """Mean and variance over the whole picture, from what each tile's core last had."""

    def __init__(self) -> None:
        self.rows: dict[Tile, int] = {}
        self.table: Tensor | None = None
        """Count, mean and variance of each tile's core (T, 3, B, C), in double precision."""

    def note(self, tile: Tile, core: Tensor) -> None:
        """Take in values (B, C, h, w) in place of those the tile had before."""
        variance, mean = (t.double() for t in torch.var_mean(core.float(), dim=(2, 3), correction=0))
        new = torch.stack([torch.full_like(mean, core[0, 0].numel()), mean, variance])[None]
        if self.table is None:
            self.table = new[:0]
        if tile not in self.rows:
            self.rows[tile] = len(self.rows)
            self.table = torch.cat([self.table, new])
        self.table[self.rows[tile]] = new[0]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (B, C)."""
        assert self.table is not None
        # Not as running sums: in the first turn single values can be huge, and would leave a trace. In half
        # precision they may not even be numbers, and would keep the next turns from mending that.
        sound = self.table.isfinite().all(dim=1, keepdim=True)
        count, mean, variance = torch.where(sound, self.table, 0.0).unbind(dim=1)
        share = count / count.sum(dim=0)
        middle = (share * mean).sum(dim=0)
        return middle, (share * (variance + (mean - middle).square())).sum(dim=0)


class _Sample:
    """Every so many-th token of a map, from what each tile's core last had."""

    def __init__(self) -> None:
        self.latest: dict[Tile, tuple[Tensor, Tensor]] = {}

    def note(self, tile: Tile, x: Tensor, down: _Axis, across: _Axis) -> None:
        """Take in what the core of a map (B, C, h, w) has of them."""
        stride = math.ceil(math.sqrt(down.whole * across.whole / TOKENS))
        rows, columns = (_every(axis, stride).to(x.device) for axis in (down, across))
        places = torch.cartesian_prod(rows + down.start, columns + across.start)
        self.latest[tile] = places, x[..., rows, :][..., columns].flatten(2)

    def outside(self, down: _Axis, across: _Axis) -> tuple[Tensor, float]:
        """The tokens (B, C, n) that lie outside a tile, and how many each of them stands for."""
        places, tokens = (
            torch.cat(parts, dim)
            for parts, dim in zip(zip(*self.latest.values(), strict=True), (0, 2), strict=True)
        )
        start = places.new_tensor([down.start, across.start])
        inside = ((places >= start) & (places < start + places.new_tensor([down.size, across.size]))).all(
            dim=1
        )
        tokens = tokens[..., ~inside]
        return tokens, (down.whole * across.whole - down.size * across.size) / max(1, tokens.shape[-1])


def _every(axis: _Axis, stride: int) -> Tensor:
    """Places of the core, from the tile's start, that lie on a grid of ``stride`` over the whole."""
    first = (stride // 2 - axis.start - axis.core.start) % stride + axis.core.start
    return torch.arange(first, axis.core.stop, stride)


class _StandingFor(TorchFunctionMode):
    """Inside, the last ``count`` keys of attention weigh as if each were there ``times`` times."""

    def __init__(self, count: int, times: float) -> None:
        super().__init__()
        self.count, self.bias = count, math.log(times)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            key: Tensor = args[1]
            bias = key.new_zeros(key.shape[-2])
            bias[-self.count :] = self.bias
            kwargs["attn_mask"] = bias.expand(args[0].shape[-2], -1)
        return func(*args, **kwargs)


class WholePicture:
    """Lets the layers of a network that read all places know of the whole picture while they see a tile.

    Use :meth:`watching` around the runs and :meth:`place` before each tile; while ``learning``, what the
    tile shows is noted.
    """

    def __init__(self, network: nn.Module, whole: tuple[int, int]) -> None:
        self.network, self.whole = network, whole
        self._tile: Tile = (Span(0, 0, (0, 0)), Span(0, 0, (0, 0)))
        self._row: tuple[int, int] | None = None
        self._moments: dict[nn.Module, _Moments] = {}
        self._samples: dict[nn.Module, _Sample] = {}
        self._mean_of_z = _Moments()
        self.learning = True

    @property
    def empty(self) -> bool:
        """Whether no layer that ran reads all places; then a turn more changes nothing."""
        return not self._moments and not self._samples and self._mean_of_z.table is None

    def place(self, rows: Span, columns: Span) -> None:
        """Say which tile is run next."""
        self._tile = (rows, columns)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stand in for the forward of the layers in question."""
        replaced: list[tuple[nn.Module, Any]] = []
        try:
            for module, forward in self._stand_ins():
                replaced.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = forward
            yield
        finally:
            for module, before in reversed(replaced):
                if before is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = before

    def _stand_ins(self) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
        # Here, since the tokenizers import this module.
        from lumitok.tokenizers.vfm_vae import (
            AttentionProjection,
            MappingNetwork,
            ModulatedConvNeXt,
            SelfAttention,
        )

        for module in self.network.modules():
            if isinstance(module, GroupNorm):
                yield module, partial(self._norm, module)
            elif isinstance(module, AttentionProjection | SelfAttention | Attention):
                yield module, partial(self._attention, module, module.forward)
            elif isinstance(module, ModulatedConvNeXt) and module.noise is not None:
                yield module, partial(self._noise, module, module.forward)
            elif isinstance(module, MappingNetwork):
                yield module, partial(self._style, module.forward)
                # Taken when it is asked for: the attention's stand-in is in its place already.
                expand = self.network.get_submodule("expand")
                yield expand, partial(self._mean, expand.forward)

    def _norm(self, module: GroupNorm, x: Tensor) -> Tensor:
        seen = x if self._row is None else x[..., 0, : math.prod(self._row)].unflatten(-1, self._row)
        down, across = self._at(seen)
        core = seen[..., down.core, across.core]
        moments = self._moments.setdefault(module, _Moments())
        if self.learning:
            moments.note(self._tile, core)
        mean, variance = _grouped(moments.moments(), module.num_groups)
        factor = torch.rsqrt(variance + module.eps) * module.weight
        shift = (module.bias - mean * factor).float()[..., None, None]
        return torch.addcmul(shift, x.float(), factor.float()[..., None, None]).to(x.dtype)

    def _attention(self, module: nn.Module, original: Callable[..., Tensor], x: Tensor) -> Tensor:
        down, across = self._at(x)
        sample = self._samples.setdefault(module, _Sample())
        if self.learning:
            sample.note(self._tile, x, down, across)
        others, times = sample.outside(down, across)
        count = others.shape[-1]
        if not count:
            return original(x)
        # But for the attention these layers treat every token alike, so the grid may be one long row.
        self._row = (x.shape[-2], x.shape[-1])
        try:
            with _StandingFor(count, times):
                y = original(torch.cat([x.flatten(2), others.to(x)], dim=2)[:, :, None])
        finally:
            self._row = None
        result: Tensor = y[..., 0, :-count].unflatten(-1, x.shape[-2:])
        return result

    def _noise(self, module: nn.Module, original: Callable[..., Tensor], x: Tensor, w: Tensor) -> Tensor:
        noise = module._buffers["noise"]
        assert noise is not None
        down, across = (_lines(noise, axis) for axis in self._at(x))
        module._buffers["noise"] = down.t() @ noise @ across
        try:
            return original(x, w)
        finally:
            module._buffers["noise"] = noise

    def _mean(self, original: Callable[..., Tensor], x: Tensor) -> Tensor:
        y = original(x)
        down, across = self._at(y)
        if self.learning:
            self._mean_of_z.note(self._tile, y[..., down.core, across.core])
        return y

    def _style(self, original: Callable[..., Tensor], pooled: Tensor) -> Tensor:
        return original(self._mean_of_z.moments()[0].to(pooled))

    def _at(self, x: Tensor) -> tuple[_Axis, _Axis]:
        """Where a map (B, C, h, w) of the running tile lies, on the grid of the layer that sees it."""
        rows, columns = self._tile
        height, width = x.shape[-2:]
        return _Axis.of(rows, self.whole[0], height), _Axis.of(columns, self.whole[1], width)


def _grouped(moments: tuple[Tensor, Tensor], groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of channels (B, C) -> those of the group each of them is in, (B, C)."""
    mean, variance = (m.unflatten(1, (groups, -1)) for m in moments)
    middle = mean.mean(dim=2, keepdim=True)
    spread = (variance + (mean - middle).square()).mean(dim=2, keepdim=True)
    return middle.expand_as(mean).flatten(1), spread.expand_as(mean).flatten(1)


def _lines(noise: Tensor, axis: _Axis) -> Tensor:
    """Bilinear weights (side, size) that take a side of a noise map to a tile's places on the whole grid."""
    eye = torch.eye(len(noise), dtype=noise.dtype, device=noise.device)[None]
    lines = F.interpolate(eye, size=axis.whole, mode="linear", align_corners=False)[0]
    return lines[:, axis.start : axis.start + axis.size]
