"""The norm trains behind frozen layers; torch's own kills the process there, so it runs in another."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from lumitok.nn.group_norm import GroupNorm

BEHIND_FROZEN = """
import torch
from lumitok.nn.group_norm import GroupNorm
norm = GroupNorm(4, 16)
x = torch.randn(8, 16, 8, 8).contiguous(memory_format=torch.channels_last)
norm(x).square().sum().backward()
print(float(norm.weight.grad.sum()))
"""


def test_it_trains_behind_frozen_layers() -> None:
    done = subprocess.run([sys.executable, "-c", BEHIND_FROZEN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_it_is_torchs_in_value_and_gradient() -> None:
    ours, theirs = GroupNorm(4, 16), nn.GroupNorm(4, 16)
    x = torch.randn(2, 16, 3, 5)
    for norm in (ours, theirs):
        norm(x).cos().sum().backward()
    assert ours.weight.grad is not None
    assert theirs.weight.grad is not None
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=0, atol=0)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ours(y).cos().sum(), y)
    assert gradient.abs().sum() > 0
