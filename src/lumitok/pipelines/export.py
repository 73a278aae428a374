"""A tokenizer as ONNX files: what ``lumitok export`` does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lumitok import __version__
from lumitok.errors import LumitokError
from lumitok.interop.onnx import OPSET, Graph, Size, check_packages, sides, write_side
from lumitok.nn.precision import exact_float32
from lumitok.pipelines.import_folder import check_free
from lumitok.pipelines.reconstruct import open_tokenizer
from lumitok.tokenizers.autoencoder import Autoencoder

DESCRIPTION = "tokenizer.json"
TOLERANCE = 1e-3
"""Largest relative difference to torch; in pictures an eighth of a grey level."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compared."""

    out: Path
    graphs: list[Graph]
    description: dict[str, Any]
    """What ``tokenizer.json`` holds."""


def export_checkpoint(
    checkpoint: str, out: Path, sizes: Sequence[Size] = (), tolerance: float = TOLERANCE
) -> ExportReport:
    """Write a tokenizer's encoder and decoder as ONNX, checked with onnxruntime at every size.

    Args:
        checkpoint: folder of a run, a checkpoint or a tokenizer, or a hub id.
        out: folder to make; it appears once everything in it was checked.
        sizes: heights and widths of pictures in pixels to check; none: the tokenizer's own, and one twice
            as wide.
        tolerance: largest difference to torch, divided by torch's largest value where that is over 1.

    Raises:
        LumitokError: a package is missing, the checkpoint does not open, a size does not fit, the folder is
            there already, or what onnxruntime computes is not what torch does.
    """
    check_packages()
    check_free(out)
    tokenizer = open_tokenizer(checkpoint)
    if not isinstance(tokenizer, Autoencoder):
        raise LumitokError(f"a {type(tokenizer).__name__} cannot be exported: it has no two sides to write")
    side = int(tokenizer.settings.image_size)
    chosen = list(sizes) or [(side, side), (side, 2 * side)]
    _check_sizes(tokenizer, chosen)
    fingerprint = tokenizer.fingerprint()
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed: a folder that is there has passed its checks.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside, exact_float32():
        folder = Path(beside) / "onnx"
        folder.mkdir()
        graphs = [g for part in sides(tokenizer) for g in write_side(part, chosen, folder, tolerance)]
        description = _describe(tokenizer, fingerprint, graphs, tolerance)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        folder.rename(out)
    return ExportReport(out, graphs, description)


def parse_size(text: str) -> Size:
    """Read ``256`` or ``256x512`` (height x width).

    Raises:
        LumitokError: it is neither.
    """
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise LumitokError(f"a size is 256 or 256x512 (height x width, in pixels), not '{text}'")
    return int(parts[0]), int(parts[-1])


def _check_sizes(tokenizer: Autoencoder, sizes: Sequence[Size]) -> None:
    step = tokenizer.encoded_multiple
    for height, width in sizes:
        if height % step or width % step or not height or not width:
            raise LumitokError(
                f"size {height}x{width}: this tokenizer's grid wants multiples of {step} px; an ONNX graph "
                "does not pad, so pad pictures before"
            )


def _describe(
    tokenizer: Autoencoder, fingerprint: str, graphs: list[Graph], tolerance: float
) -> dict[str, Any]:
    settings = tokenizer.settings
    return {
        "type": settings.type,
        "fingerprint": fingerprint,
        "image_size": settings.image_size,
        "downsampling": settings.downsampling,
        "latent_channels": settings.latent_channels,
        "latents_mean": settings.latents_mean,
        "latents_std": settings.latents_std,
        "latents_count": settings.latents_count,
        "pictures": "RGB, [-1, 1], float32; decoded ones are not clamped",
        "graphs": [asdict(graph) for graph in graphs],
        "tolerance": tolerance,
        "opset": OPSET,
        "lumitok": __version__,
        "torch": torch.__version__,
    }
