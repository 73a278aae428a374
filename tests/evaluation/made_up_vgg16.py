"""A file of VGG16's shape with made-up numbers, since the real one cannot be at hand in a test."""

from __future__ import annotations

from pathlib import Path

import torch

# The convolutions: (place in `features`, input channels, output channels).
CONVOLUTIONS = [
    (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256),
    (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512),
]  # fmt: skip


def made_up_vgg16(path: Path) -> Path:
    """Write convolutions whose scale keeps the features alive, and a piece of the classifier."""
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for place, before, after in CONVOLUTIONS:
        noise = torch.randn(after, before, 3, 3, generator=generator)
        state[f"features.{place}.weight"] = noise * (2 / (9 * before)) ** 0.5
        state[f"features.{place}.bias"] = torch.randn(after, generator=generator) * 0.1
    torch.save(state, path)
    return path
