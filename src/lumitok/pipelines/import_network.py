"""Official checkpoints of diffusion networks to network folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumitok.config.networks import LightningDiTConfig, NetworkConfig, SiTConfig
from lumitok.diffusion import DiffusionNetwork, build_network
from lumitok.interop import lightningdit, sit
from lumitok.interop.network_file import NetworkFile, open_network
from lumitok.interop.networks import REVERSED, Kind, compare_network, has_learned_sigma
from lumitok.pipelines.import_folder import ImportReport, Row, check_faults, check_free, write_whole

__all__ = ["Kind", "NetworkOptions", "import_network"]

SAID: dict[Kind, str] = {
    "lightningdit": "LightningDiT",
    "sit": "SiT",
    "repa": "SiT trained with REPA",
    "reg": "SiT trained with REG",
}


@dataclass(frozen=True)
class NetworkOptions:
    """What the files cannot say.

    Attributes:
        raw: take the weights as trained, not their moving average.
        heads: attention heads; None: as the shapes say, else those of the named size.
        projector_block: the block that the projector reads; None: as the file's settings say, else 8.
        faults: file to list every wrong key in, one a line, if the weights are refused.
    """

    raw: bool = False
    heads: int | None = None
    projector_block: int | None = None
    faults: Path | None = None


def import_network(
    kind: Kind, file: Path, out: Path, options: NetworkOptions | None = None
) -> ImportReport[NetworkConfig]:
    """Convert an official checkpoint of a diffusion network to a network folder.

    Nothing in the file is executed. The folder appears whole or not at all. Every key is accounted for, and
    the time of REPA and REG is turned round in the weights, so that the network is as all of ours are.

    Args:
        kind: whose checkpoint it is.
        file: ``.pt`` with ``ema`` and ``model``, or a state dict bare; or safetensors.
        out: folder to make.
        options: what the file cannot say.

    Raises:
        WrongFileError: keys are missing, left over, of another shape or hold no numbers; it has the list.
        LumitokError: the file is no such network, or needs a pickle's code.
    """
    options = options or NetworkOptions()
    check_free(out)
    found = open_network(file, raw=options.raw)
    settings = _settings(kind, found, f"'{file}'", options)
    compared = compare_network(found.state, settings, kind)
    check_faults(f"'{file}' does not hold a {SAID[kind]} that lumitok knows", compared.faults, options.faults)
    network = build_network(settings)
    network.load_state_dict(compared.state)
    network.eval()
    write_whole(network.save_pretrained, out)
    return ImportReport(_rows(kind, file, found, network), settings, out, _about(kind, settings))


def _settings(kind: Kind, found: NetworkFile, source: str, options: NetworkOptions) -> NetworkConfig:
    if kind == "lightningdit":
        return lightningdit.read_settings(found.state, options.heads)
    sit.check_kind(found.state, kind, source)
    block = options.projector_block
    if block is None and isinstance(said := found.arguments.get("encoder_depth"), int):
        block = said
    return sit.read_settings(found.state, options.heads, block)


def _rows(kind: Kind, file: Path, found: NetworkFile, network: DiffusionNetwork) -> list[Row]:
    ours = network.state_dict()
    settings = network.settings
    count = sum(parameter.numel() for parameter in network.parameters())
    rows = [
        Row("read", len(found.state), f"{found.part} of {file.name}"),
        Row("converted", len(ours), f"{count / 1e6:.2f} million parameters"),
        Row(
            "dropped", len(found.state) - len(ours), "fixed tables of positions, which lumitok builds itself"
        ),
    ]
    if has_learned_sigma(found.state, settings):
        rows.append(Row("dropped", 0, "the second half of the output's channels, a learned variance"))
    if kind in REVERSED:
        about = "turned round in the weights: there t = 0 is data and the velocity noise - data"
        rows.append(Row("time", 0, about))
    rows.append(Row("sizes", 0, _sizes(settings)))
    if found.others:
        rows.append(Row("not read", 0, f"the file's {', '.join(found.others)}"))
    return rows


def _sizes(settings: NetworkConfig) -> str:
    """Say where the config is not the usual one: a file cut short at a whole block shows here alone."""
    kind: Any = type(settings)  # Each kind has its type as a default.
    usual = kind().model_dump()
    found = [
        f"{name} {value}"
        for name, value in settings.model_dump().items()
        if value != usual[name] and name != "projector"
    ]
    projector = settings.projector
    if projector is not None:
        found.append(f"a projector after block {projector.block} to {projector.channels} channels")
    return f"other than XL/1's: {', '.join(found)}" if found else "XL/1's"


def _about(kind: Kind, settings: NetworkConfig) -> str:
    assert isinstance(settings, LightningDiTConfig | SiTConfig)
    side, classes = settings.input_size, settings.classes
    return (
        f"A {SAID[kind]} of {settings.depth} blocks of width {settings.width} at patch {settings.patch}, for "
        f"latents of {side}x{side}x{settings.in_channels}, {classes} classes."
    )
