"""Attention of queries to keys, by the quickest way that the machine has and that loses nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_TOKENS = 1024
"""Beyond, a matrix of all pairs costs more memory than it saves time."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys and values (B, heads, N, head width) -> ``softmax(q k^T / sqrt(head width)) v``.

    torch's fused attention, but for bfloat16 on a processor: there the fused kernel is slow, and matrix
    products are not (``benchmarks/attention.py``).
    """
    bfloat16 = q.dtype == k.dtype == v.dtype == torch.bfloat16
    if q.device.type == "cpu" and bfloat16 and k.shape[-2] <= MOST_TOKENS:
        seen: Tensor = _MatrixAttention.apply(q, k, v)
        return seen
    return F.scaled_dot_product_attention(q, k, v)


class _MatrixAttention(torch.autograd.Function):
    """Attention by whole matrices: scores and softmax in float32, the other products in bfloat16.

    Scores that are rounded to bfloat16 lose what large ones differ by, and their errors are the weights'
    relative errors. So they stay in float32, and what autograd would then multiply in float32 too is
    written out: with ``p`` the weights and ``g`` the gradient, ``dv = p^T g``,
    ``ds = p (g v^T - sum(p (g v^T)))``, ``dq = ds k``, ``dk = ds^T q``.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :func:`attend`."""
        scale = q.shape[-1] ** -0.5
        with torch.autocast("cpu", enabled=False):
            p = ((q.float() * scale) @ k.float().transpose(-2, -1)).softmax(-1).to(v.dtype)
            ctx.save_for_backward(q, k, v, p)
            ctx.scale = scale
            seen: Tensor = p @ v
            return seen

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (B, heads, N, head width) -> those of queries, keys and values."""
        q, k, v, p = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            g = g.to(v.dtype)
            ds = torch._softmax_backward_data(g @ v.transpose(-2, -1), p, -1, p.dtype) * ctx.scale
            return ds @ k, ds.transpose(-2, -1) @ q, p.transpose(-2, -1) @ g
