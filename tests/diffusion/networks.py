"""Tiny networks with nothing left at zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lumitok.config.networks import DiTDHConfig, LightningDiTConfig, NetworkConfig, ProjectorConfig, SiTConfig
from lumitok.diffusion import DiffusionNetwork, build_network

TINY: dict[str, Any] = {"in_channels": 3, "input_size": 4, "depth": 2, "width": 24, "heads": 2, "classes": 5}
PROJECTOR = ProjectorConfig(block=1, hidden=8, channels=6)


def settings(kind: str, **changes: Any) -> NetworkConfig:
    """A tiny network's config; ``reg`` is a SiT with class token and projector."""
    if kind == "lightningdit":
        return LightningDiTConfig(**{**TINY, **changes})
    if kind == "dit-dh":
        return DiTDHConfig(**{**TINY, "head_depth": 1, "head_width": 16, "head_heads": 2, **changes})
    if kind == "reg":
        changes = {"class_channels": 7, "qk_norm": True, "projector": PROJECTOR, **changes}
    return SiTConfig(**{**TINY, **changes})


KINDS = ["lightningdit", "sit", "reg", "dit-dh"]


def network(kind: str, **changes: Any) -> DiffusionNetwork:
    """The network, every weight moved from where it begins."""
    torch.manual_seed(0)
    made = build_network(settings(kind, **changes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return made


def inputs(made: DiffusionNetwork, count: int = 2) -> dict[str, Tensor]:
    """Arguments of ``forward``; the labels are 0, 1, ..."""
    generator = torch.Generator().manual_seed(1)
    given = {
        "x": torch.randn(count, *made.latent_shape, generator=generator),
        "t": torch.rand(count, generator=generator),
        "labels": torch.arange(count),
    }
    if made.class_channels:
        given["class_token"] = torch.randn(count, made.class_channels, generator=generator)
    return given
