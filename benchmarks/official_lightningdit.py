"""The official LightningDiT from a checkout, and the command-line options of what is measured against it."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any, get_args

import torch
from alternating import put_first

from lumitok.config.networks import LightningDiTConfig, SizeName


def official_code(checkout: Path, sizes: LightningDiTConfig, eager: bool) -> tuple[Any, Any, Any]:
    """Return the official network of these sizes, its transport, and the module of its transport.

    Args:
        checkout: a folder with the official code.
        sizes: of the network.
        eager: do not let the official code compile its blocks.
    """
    put_first(checkout)
    network_code: Any = importlib.import_module("models.lightningdit")
    transport_code: Any = importlib.import_module("transport")
    if eager:
        torch.compiler.set_stance("force_eager")
    network = network_code.LightningDiT(
        input_size=sizes.input_size,
        patch_size=sizes.patch,
        in_channels=sizes.in_channels,
        hidden_size=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        num_classes=sizes.classes,
        use_swiglu=True,
        use_rope=True,
        use_rmsnorm=True,
    )
    transport = transport_code.create_transport(
        "Linear", "velocity", None, None, None, use_cosine_loss=True, use_lognorm=True
    )
    return network, transport, transport_code


def add_options(parser: argparse.ArgumentParser, *, batch: int, rounds: int) -> None:
    """Add the options for the two sides and the network's sizes."""
    parser.add_argument("--lightningdit", type=Path, help="a checkout of the official code")
    parser.add_argument("--eager", action="store_true", help="do not let the official code compile")
    parser.add_argument("--compile", action="store_true", help="let lumitok compile its blocks")
    parser.add_argument("--size", choices=get_args(SizeName), default="B")
    parser.add_argument("--depth", type=int, help="fewer blocks, for a quick look")
    parser.add_argument("--width", type=int, help="narrower blocks of two heads, for a test")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=1)


def chosen_network(chosen: argparse.Namespace) -> LightningDiTConfig:
    """Return the network that the options ask for."""
    sizes = {"size": chosen.size, "depth": chosen.depth}
    if chosen.width is not None:
        sizes |= {"width": chosen.width, "heads": 2}
    return LightningDiTConfig.model_validate({k: v for k, v in sizes.items() if v is not None})
