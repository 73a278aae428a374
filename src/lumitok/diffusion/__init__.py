"""Diffusion on latents: networks, the flow they learn, and how to sample from it."""

from __future__ import annotations

from lumitok.diffusion.base import (
    Conditioning,
    DiffusionNetwork,
    LabelConditioner,
    NetworkOutput,
    build_network,
    find_network,
)
from lumitok.diffusion.dit_dh import DiTDH
from lumitok.diffusion.lightningdit import LightningDiT
from lumitok.diffusion.sit import SiT

__all__ = [
    "Conditioning",
    "DiTDH",
    "DiffusionNetwork",
    "LabelConditioner",
    "LightningDiT",
    "NetworkOutput",
    "SiT",
    "build_network",
    "find_network",
]
