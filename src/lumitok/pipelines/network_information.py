"""What a diffusion network is, in numbers: parameters part by part, the latent it takes, the cost in MACs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch.utils.flop_counter import FlopCounterMode

from lumitok.config import Recipe, load_any, recipe_names
from lumitok.config.networks import AnyNetwork
from lumitok.diffusion.base import DiffusionNetwork, build_network, find_network
from lumitok.errors import LumitokError

HOW = (
    "Parameters: all that train, REPA's projector included, which sampling does not need; fixed position "
    "tables apart. GMACs: 10^9 multiply-accumulates of the matrix products for one latent, counted by "
    "torch.utils.flop_counter (half of its operations); guidance takes two evaluations a step."
)


@dataclass(frozen=True)
class NetworkInformation:
    """What ``lumitok info`` prints of a diffusion network."""

    name: str
    network: str
    latent: dict[str, int]
    """``channels``, ``height``, ``width``."""
    classes: int
    """0: unconditional."""
    tokens: int
    """Patches of a latent."""
    parameters: int
    parts: dict[str, int]
    """``parameters``, part by part."""
    tables: int
    """Numbers in fixed tables, which some published counts include."""
    gmacs: float
    """Of one evaluation of one latent."""
    how: str = HOW

    def as_dict(self) -> dict[str, Any]:
        """Return plain dicts, as ``lumitok info --json`` prints them."""
        return asdict(self)


def network_config(name: str) -> AnyNetwork | None:
    """The network of a recipe or of a folder; None where the name stands for something else."""
    if name in recipe_names() or name.endswith((".yaml", ".yml")):
        recipe = load_any(name)
        return None if isinstance(recipe, Recipe) else recipe.network
    if not Path(name).is_dir():
        return None
    try:
        path = find_network(name) / "config.json"
    except LumitokError:
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("_class_name") not in DiffusionNetwork._kinds:
            return None
        own = {key: value for key, value in values.items() if not key.startswith("_")}
        network: AnyNetwork = TypeAdapter(AnyNetwork).validate_python(own)
    except (ValueError, AttributeError, ValidationError) as error:
        raise LumitokError(f"{path} does not describe a network: {' '.join(str(error).split())}") from None
    return network


def inform_network(name: str, config: AnyNetwork) -> NetworkInformation:
    """Describe a network; it is built without memory, so no weights need to be at hand.

    Args:
        name: as the user named it.
        config: its settings.
    """
    with torch.device("meta"):
        network = build_network(config).eval()
    channels, height, width = network.latent_shape
    parts: dict[str, int] = {}
    for key, parameter in network.named_parameters():
        part = key.split(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    return NetworkInformation(
        name=name,
        network=config.type,
        latent={"channels": channels, "height": height, "width": width},
        classes=network.null_label,
        tokens=(height // config.patch) * (width // config.patch),
        parameters=sum(parts.values()),
        parts=parts,
        tables=sum(buffer.numel() for buffer in network.buffers()),
        gmacs=_gmacs(network),
    )


def _gmacs(network: DiffusionNetwork) -> float:
    x = torch.empty(1, *network.latent_shape, device="meta")
    t = torch.empty(1, device="meta")
    labels = torch.zeros(1, dtype=torch.long, device="meta") if network.null_label else None
    token = torch.empty(1, network.class_channels, device="meta") if network.class_channels else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, t, labels, class_token=token)
    return float(counter.get_total_flops() / 2 / 1e9)
