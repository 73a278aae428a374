"""Attention of queries to keys, with a way of its own where a processor is trained on in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lumitok.nn.precision import bfloat16_units, full_precision

HAS_UNITS = bool(bfloat16_units())
"""Whether this processor multiplies bfloat16 in hardware."""
MOST_PAIRS = 2**26
"""Pairs of a query and a key, in all heads and samples, whose weights a block may keep: two bytes each, and
twelve more for a moment. For more of them there is torch's fused attention, which keeps none."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys and values (B, heads, N, head width) -> ``softmax(q k^T / sqrt(head width)) v``.

    It is torch's fused attention, but where gradients are wanted of bfloat16 on a processor that multiplies
    it: there a pass there and back by whole matrices takes half the time (``benchmarks/attention.py``).
    """
    wanted = q.dtype == k.dtype == v.dtype == torch.bfloat16 and torch.is_grad_enabled()
    fits = q.shape[:-1].numel() * k.shape[-2] <= MOST_PAIRS
    if wanted and fits and q.device.type == "cpu" and HAS_UNITS:
        seen: Tensor = _MatrixAttention.apply(q, k, v)
        return seen
    return F.scaled_dot_product_attention(q, k, v)


class _MatrixAttention(torch.autograd.Function):
    """Attention by whole matrices, all products in bfloat16, the softmax in float32.

    Scores that are rounded to bfloat16 lose what large ones differ by, and their errors are the weights'
    relative errors. So they are multiplied twice, the second time for what rounding took away from the
    first, which gives 16 bits of them in half the time of a product in float32. The way back is written
    out, for autograd would keep and multiply float32: with ``p`` the weights and ``g`` the gradient,
    ``dv = p^T g``, ``ds = p (g v^T - sum(p (g v^T)))``, ``dq = ds k``, ``dk = ds^T q``.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :func:`attend`."""
        ctx.scale = q.shape[-1] ** -0.5
        with full_precision(q):
            queries, keys = q.flatten(0, -3), k.flatten(0, -3).transpose(-2, -1)
            scores = queries @ keys
            rest = torch.baddbmm(scores, queries, keys, beta=-1)  # What rounding the scores took away.
            exact = scores.float().add_(rest).mul_(ctx.scale)
            p = exact.softmax(-1).to(v.dtype).view(*q.shape[:-1], -1)
            ctx.save_for_backward(q, k, v, p)
            seen: Tensor = p @ v
            return seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (B, heads, N, head width) -> those of queries, keys and values."""
        q, k, v, p = ctx.saved_tensors
        with full_precision(q):
            g = g.to(v.dtype)
            # What all values share adds the same to all of a query's g v^T and leaves ds as it is, but the
            # rounding of large sums would not.
            centred = (v - v.mean(-2, keepdim=True, dtype=torch.float32)).to(v.dtype)
            ds = torch._softmax_backward_data(g @ centred.transpose(-2, -1), p, -1, p.dtype) * ctx.scale
            return ds @ k, ds.transpose(-2, -1) @ q, p.transpose(-2, -1) @ g
