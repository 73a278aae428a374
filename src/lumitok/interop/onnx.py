"""A tokenizer's two sides as ONNX graphs, each held against torch by onnxruntime.

pictures (B, 3, H, W) in [-1, 1]  --encoder.onnx-->  latent_mean, of a Gaussian latent_logvar (B, C, h, w)
latent (B, C, h, w), raw          --decoder.onnx-->  decoded (B, 3, H, W), not clamped
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.tokenizers.autoencoder import Autoencoder

OPSET = 18
"""The operator set that torch's exporter writes."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")

Size = tuple[int, int]
"""Height and width of a picture in pixels."""
Freedom = Literal["batch, height and width", "batch", "nothing"]
"""What of an input's shape a graph leaves open, the most first."""
FREEDOMS: tuple[Freedom, ...] = ("batch, height and width", "batch", "nothing")


@dataclass(frozen=True)
class Check:
    """One comparison of onnxruntime with torch."""

    batch: int
    height: int
    """Of the pictures, in pixels."""
    width: int
    difference: float
    """Largest absolute difference."""
    relative: float
    """The same, divided by torch's largest absolute value where that is over 1."""


@dataclass(frozen=True)
class Graph:
    """A graph that was written, and how it compared."""

    file: str
    inputs: dict[str, list[int | str]]
    """Shape of each input; what is open has a name."""
    outputs: list[str]
    open: Freedom
    """What of the shape is open."""
    size: Size | None
    """Pictures' height and width in pixels where they are fixed."""
    multiple: int
    """What the input's sides are multiples of; pad the input, the graph does not."""
    checks: list[Check]
    why_fixed: str
    """Why not all of the shape is open; empty where it is."""


@dataclass(frozen=True)
class Side:
    """One of a tokenizer's two sides, as a function of one tensor."""

    name: Literal["encoder", "decoder"]
    network: nn.Module
    input: str
    outputs: list[str]
    channels: int
    multiple: int
    """What the input's sides are multiples of."""
    factor: int
    """Picture pixels for each place of the input."""

    def shape(self, batch: int, size: Size) -> tuple[int, int, int, int]:
        """Shape of the input for pictures of a size."""
        return batch, self.channels, size[0] // self.factor, size[1] // self.factor


class _Encoder(nn.Module):
    def __init__(self, tokenizer: Autoencoder) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        posterior, _ = self.tokenizer.posterior(pictures)
        return (posterior.mean,) if posterior.logvar is None else (posterior.mean, posterior.logvar)


class _Decoder(nn.Module):
    def __init__(self, tokenizer: Autoencoder) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        return (self.tokenizer.images(latent)[-1],)


def check_packages() -> None:
    """Raise a LumitokError where a package that writing or checking needs is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise LumitokError(f"ONNX needs the package {', '.join(missing)}: pip install 'lumitok[export]'")


def sides(tokenizer: Autoencoder) -> list[Side]:
    """Both sides of a tokenizer in eval mode and float32; the padding of odd sizes is left to the user."""
    tokenizer.eval().float().requires_grad_(False)
    factor = int(tokenizer.settings.downsampling)
    encoder = _Encoder(tokenizer)
    with torch.no_grad():
        side = int(tokenizer.settings.image_size)
        count = len(encoder(torch.zeros(1, 3, side, side)))
    return [
        Side(
            "encoder",
            encoder,
            "pictures",
            ["latent_mean", "latent_logvar"][:count],
            3,
            tokenizer.encoded_multiple,
            1,
        ),
        Side(
            "decoder",
            _Decoder(tokenizer),
            "latent",
            ["decoded"],
            int(tokenizer.settings.latent_channels),
            tokenizer.size_multiple // factor,
            factor,
        ),
    ]


def write_side(side: Side, sizes: Sequence[Size], folder: Path, tolerance: float) -> list[Graph]:
    """Write a side with as much of its input's shape open as its network allows, and check every size.

    Args:
        side: what to write.
        sizes: pictures' sizes to check; where sizes cannot be open, each has its own file.
        folder: where to write.
        tolerance: largest relative difference to torch that is accepted.

    Raises:
        LumitokError: no graph can be made, or the best one does not agree with torch.
    """
    why = ""
    for freedom in FREEDOMS:
        groups = [list(sizes)] if freedom == FREEDOMS[0] else [[size] for size in sizes]
        try:
            return [_write(side, group, folder, freedom, tolerance, why) for group in groups]
        # The exporter's failures are of many kinds, from guards to missing operators; all mean the same here.
        except Exception as error:
            why = _first_line(error)
    raise LumitokError(f"the {side.name} cannot be written as ONNX: {why}")


def _write(
    side: Side, sizes: list[Size], folder: Path, freedom: Freedom, tolerance: float, why: str
) -> Graph:
    size = None if freedom == FREEDOMS[0] else sizes[0]
    name = side.name if size is None else f"{side.name}-{size[0]}x{size[1]}"
    path = folder / f"{name}.onnx"
    with _silent():
        _program(side, sizes[0], freedom).save(path)
    # One batch size more than one tells a fixed batch from an open one.
    batches = [1] * len(sizes) if freedom == "nothing" else [1, *[2] * len(sizes)]
    cases = list(zip(batches, [sizes[0], *sizes] if len(batches) > len(sizes) else sizes, strict=True))
    session = _session(path)
    checks = [_check(side, session, batch, at) for batch, at in cases]
    worst = max(checks, key=lambda check: check.relative)
    if not worst.relative <= tolerance:  # So that NaN does not pass.
        raise LumitokError(
            f"at {worst.height} x {worst.width} px onnxruntime differs from torch by {worst.relative:.2g}, "
            f"more than the tolerance of {tolerance:g}"
        )
    shape: list[int | str] = list(side.shape(1, sizes[0]))
    if freedom != "nothing":
        shape[0] = "batch"
    if size is None:
        shape[2:] = ["height", "width"]
    return Graph(path.name, {side.input: shape}, side.outputs, freedom, size, side.multiple, checks, why)


# ------------------------------------------------------------------------------------------------
# Making a graph


def _program(side: Side, size: Size, freedom: Freedom) -> Any:
    """The ONNX program of a side; ``size`` is the pictures' where it is fixed, or near it."""
    shape = list(side.shape(1 if freedom == "nothing" else 2, size))
    dims: dict[int, Any] = {} if freedom == "nothing" else {0: torch.export.Dim("batch")}
    if freedom == FREEDOMS[0]:
        # Neither side like the other or like one that the network knows: equal numbers may be tied.
        for place, (axis, more) in {"rows": (2, 1), "columns": (3, 2)}.items():
            shape[axis] += more * side.multiple
            steps = torch.export.Dim(place, min=2, max=4096)
            dims[axis] = steps if side.multiple == 1 else side.multiple * steps
    example = torch.zeros(shape)
    with torch.no_grad(), _whole_sides(side.network):
        try:
            program = torch.export.export(side.network, (example,), dynamic_shapes=(dims,), strict=False)
        except Exception:  # Reading the source allows more, such as len(x), and takes longer.
            program = torch.export.export(side.network, (example,), dynamic_shapes=(dims,), strict=True)
    return torch.onnx.export(
        program,
        (),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[side.input],
        output_names=side.outputs,
    )


@contextmanager
def _whole_sides(network: nn.Module) -> Iterator[None]:
    """Let foundation encoders resize by a ratio of whole numbers: graphs cannot round a symbol.

    Sides are multiples of what fits, so the ratio gives just what rounding would, and needs no check.
    """
    encoders = [part for part in network.modules() if isinstance(part, FoundationEncoder)]
    same = [part for encoder in encoders for part in encoder.modules() if isinstance(part, Conv2dSame)]
    for encoder in encoders:
        encoder.__dict__["_resize"] = _resize_of(encoder)
        encoder.__dict__["_check_sides"] = lambda *_: None
    for convolution in same:
        convolution.__dict__["forward"] = partial(_padded, convolution)
    try:
        yield
    finally:
        for encoder in encoders:
            del encoder.__dict__["_resize"], encoder.__dict__["_check_sides"]
        for convolution in same:
            del convolution.__dict__["forward"]


def _padded(convolution: Conv2dSame, x: Tensor) -> Tensor:
    """TensorFlow's padding for sides that the stride divides, which are all that fit.

    For any side it is a formula of the side, and formulas of formulas, layer by layer, never end.
    """
    sizes = zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
    rows, columns = (max(0, (kernel - 1) * dilation + 1 - stride) for kernel, stride, dilation in sizes)
    x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    stride, dilation = convolution.stride, convolution.dilation
    return F.conv2d(x, convolution.weight, convolution.bias, stride, 0, dilation, convolution.groups)


def _resize_of(encoder: FoundationEncoder) -> Any:
    family = encoder.family

    def resize(pixels: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return pixels
        ratio = Fraction(scale).limit_denominator(1000)
        return F.interpolate(
            pixels,
            size=tuple(side * ratio.numerator // ratio.denominator for side in pixels.shape[-2:]),
            mode=family.interpolation,
            align_corners=False,
            antialias=scale < 1 and family.antialias,
        )

    return resize


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter talks of its own insides; what a user can use of it is in the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


# ------------------------------------------------------------------------------------------------
# Holding it against torch


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # Errors; its advice on the graph's size is not for the user.
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def _check(side: Side, session: Any, batch: int, size: Size) -> Check:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(side.shape(batch, size), generator=generator) * 2 - 1
    wanted = side.network(x)
    found = [torch.from_numpy(array) for array in session.run(side.outputs, {side.input: x.numpy()})]
    gaps = [float((ours - theirs).abs().max()) for ours, theirs in zip(wanted, found, strict=True)]
    scales = [max(1.0, float(ours.abs().max())) for ours in wanted]
    relative = max(gap / scale for gap, scale in zip(gaps, scales, strict=True))
    return Check(batch, *size, max(gaps), relative)
