"""Attention in bfloat16 on the processor: torch's fused kernel against whole matrices, in turn.

A forward and a backward pass of LightningDiT-B's attention (12 heads of 64) on as many tokens in all,
with how far results and gradients lie from float64 when the scores have the spread that is named.

    python benchmarks/attention.py [--tokens 256 1024] [--spread 9] [--offset 0] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lumitok.diffusion.attention import attend
from lumitok.training.memory import keep_freed_memory

HEADS, HEAD_WIDTH, TOKENS = 12, 64, 2048
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def autograd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Whole matrices as autograd takes them: the scores, and so two products of the way back, in float32."""
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
    return scores.softmax(-1).to(v.dtype) @ v


def rounded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Whole matrices, the scores rounded to bfloat16."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


WAYS: dict[str, Way] = {
    "fused": F.scaled_dot_product_attention,
    "lumitok": attend,
    "by autograd": autograd,
    "rounded scores": rounded,
}


def passes(way: Way, inputs: list[Tensor], dtype: torch.dtype) -> tuple[float, list[Tensor]]:
    """Seconds of a pass there and back; its result and gradients."""
    q, k, v, gradient = (tensor.to(dtype) for tensor in inputs)
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    start = time.perf_counter()
    y = way(*leaves)
    y.backward(gradient)
    seconds = time.perf_counter() - start
    return seconds, [y.detach(), *(tensor.grad for tensor in leaves if tensor.grad is not None)]


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024], help="of a picture")
    parser.add_argument("--spread", type=float, default=9.0, help="standard deviation of the scores")
    parser.add_argument("--offset", type=float, default=0.0, help="of all values; a tenth of the gradient")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    print(f"{HEADS} heads of {HEAD_WIDTH}, bfloat16, {chosen.threads} thread(s), median of {chosen.rounds}")
    print(f"{'tokens':>7} {'':>15} {'ms':>8} {'ratio':>6} {'error':>8} {'of gradients':>13}")
    for tokens in chosen.tokens:
        draw = torch.Generator().manual_seed(0)
        shape = (max(1, TOKENS // tokens), HEADS, tokens, HEAD_WIDTH)
        scale, offset = chosen.spread**0.5, chosen.offset
        q, k, v, gradient = (torch.randn(shape, generator=draw) for _ in range(4))
        inputs = [x.bfloat16() for x in (scale * q, scale * k, v + offset, gradient + offset / 10)]
        _, exact = passes(F.scaled_dot_product_attention, inputs, torch.float64)
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        errors: dict[str, list[float]] = {}
        for _ in range(chosen.rounds + 1):
            for name, way in WAYS.items():
                taken, found = passes(way, inputs, torch.bfloat16)
                seconds[name].append(taken)
                errors[name] = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        times = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        for name, taken in times.items():
            first, *gradients = errors[name]
            print(
                f"{tokens:>7} {name:>15} {1e3 * taken:>8.1f} {times['fused'] / taken:>6.2f} "
                f"{first:>8.2%} {max(gradients):>13.2%}"
            )


if __name__ == "__main__":
    main()
