"""Both sides of a tokenizer as ONNX, opened by onnxruntime as a user without lumitok would."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from pydantic import TypeAdapter
from timm.layers import Conv2dSame
from torch import Tensor, nn
from typer.testing import CliRunner

from lumitok import Tokenizer
from lumitok.cli import app
from lumitok.config import EncoderConfig, ModelConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.interop import onnx as onnx_module
from lumitok.interop.onnx import Side, _padded, _whole_sides, sides, write_side
from lumitok.pipelines.export import export_checkpoint, parse_size
from lumitok.tokenizers import build_tokenizer
from lumitok.tokenizers.autoencoder import Autoencoder
from tests.pipelines.kinds import KINDS, SETTINGS, save_kind


def run(path: Path, x: Tensor) -> list[Tensor]:
    """What onnxruntime gives for an input."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return [torch.from_numpy(array) for array in found]


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) * 2 - 1


# Every network of every kind once, for an export takes seconds: the other decoders are ldm's.
NETWORKS = [
    ("vfm-vae", "encoder"),
    ("vfm-vae", "decoder"),
    ("frozen-ldm", "encoder"),
    ("aligntok", "encoder"),
    ("ldm", "encoder"),
    ("ldm", "decoder"),
    ("rae", "encoder"),
]


def built(kind: str, recipe: dict[str, Any]) -> Autoencoder:
    """A random tokenizer of a kind, its decoder as short as it can be."""
    torch.manual_seed(0)
    changes = SETTINGS[kind] | ({"decoder_blocks": 1} if kind == "ldm" else {})
    own = {"image_size": 32, "latent_channels": 4}
    config = (own if "type" in changes else recipe["model"]) | changes
    tokenizer = build_tokenizer(TypeAdapter(ModelConfig).validate_python(config)).eval()
    assert isinstance(tokenizer, Autoencoder)
    return tokenizer


def test_no_kind_is_forgotten() -> None:
    assert {kind for kind, _ in NETWORKS} == set(KINDS)


@pytest.mark.parametrize(("kind", "which"), NETWORKS)
def test_a_network_takes_any_batch_and_size(
    kind: str, which: str, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = built(kind, tiny_recipe)
    (side,) = (side for side in sides(tokenizer) if side.name == which)
    (graph,) = write_side(side, [(32, 32), (64, 48)], tmp_path, 1e-4)
    assert (graph.file, graph.open, graph.why_fixed) == (f"{which}.onnx", "batch, height and width", "")
    assert [(c.batch, c.height, c.width) for c in graph.checks] == [(1, 32, 32), (2, 32, 32), (2, 64, 48)]
    # Twice the size it is made for, and a shape that the export has not looked at.
    for shape in ((1, 3, 64, 64), (3, 3, 48, 80)):
        with torch.no_grad():
            posterior = tokenizer.encode(noise(*shape)).latent_dist
            if which == "encoder":
                wanted = [posterior.mean] + ([] if posterior.logvar is None else [posterior.logvar])
                found = run(tmp_path / "encoder.onnx", noise(*shape))
            else:
                z = noise(*posterior.mean.shape)
                wanted = [tokenizer.decode(z).sample]
                found = run(tmp_path / "decoder.onnx", z)
        assert len(found) == len(wanted)
        for ours, theirs in zip(wanted, found, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4 * max(1.0, float(ours.abs().max())))


def test_a_decoder_with_positions_of_its_grid(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = built("rae", tiny_recipe)
    graphs = write_side(sides(tokenizer)[1], [(32, 32), (64, 48)], tmp_path, 1e-4)
    (graph,) = graphs
    assert graph.file == "decoder.onnx"
    z = noise(3, 4, 4, 3)
    with torch.no_grad():
        wanted = tokenizer.decode(z).sample
    torch.testing.assert_close(run(tmp_path / "decoder.onnx", z)[0], wanted, rtol=1e-3, atol=1e-3)


def test_the_command_writes_both_and_says_what_they_are(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_kind("rae", tiny_recipe, tmp_path / "saved")
    out = tmp_path / "onnx"
    # Stand-ins for the networks' graphs, which the tests above hold against torch.
    monkeypatch.setattr(
        "lumitok.pipelines.export.sides", lambda _: [stand_in("encoder"), stand_in("decoder")]
    )
    command = ["export", folder, "--out", str(out), "--size", "32", "--size", "64x48"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "carries no latent statistics" in result.stdout
    assert "decoder-64x48.onnx leaves nothing of its shape open" not in result.stdout
    files = {"encoder.onnx", "decoder.onnx", "tokenizer.json"}
    assert {path.name for path in out.iterdir()} == files
    told = json.loads((out / "tokenizer.json").read_text())
    tokenizer = Tokenizer.from_pretrained(folder)
    assert told["fingerprint"] == tokenizer.fingerprint()
    assert (told["type"], told["downsampling"], told["latent_channels"]) == ("rae", 16, 4)
    assert [graph["inputs"] for graph in told["graphs"]] == [{"x": ["batch", 3, "height", "width"]}] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "onnx"}, "nothing is left beside"


def stand_in(name: Any) -> Side:
    return Side(name, Bound(()), "x", ["y"], 3, 1, 1)


# Networks that do not bend -----------------------------------------------------------------------


class Bound(nn.Module):
    """A network whose result holds a number of its input's size."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * (1 + sum(int(math.sqrt(int(x.shape[axis]))) for axis in self.axes)),)


def test_what_cannot_be_open_is_fixed_and_said(tmp_path: Path) -> None:
    bound = Bound((0, 2))
    graphs = write_side(replace(stand_in("decoder"), network=bound), [(8, 8), (16, 20)], tmp_path, 1e-5)
    assert [graph.file for graph in graphs] == ["decoder-8x8.onnx", "decoder-16x20.onnx"]
    assert [(graph.open, graph.size) for graph in graphs] == [("nothing", (8, 8)), ("nothing", (16, 20))]
    assert all(graph.why_fixed for graph in graphs)
    x = noise(1, 3, 16, 20)
    torch.testing.assert_close(run(tmp_path / "decoder-16x20.onnx", x)[0], bound(x)[0])


def test_a_graph_that_differs_from_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with onnx_module._silent():
        other = onnx_module._program(stand_in("decoder"), (8, 8), "batch, height and width")
    monkeypatch.setattr(onnx_module, "_program", lambda *_: other)
    side = replace(stand_in("decoder"), network=Doubled())
    with pytest.raises(LumitokError, match=r"the decoder cannot be written .* differs from torch by 0\.5"):
        write_side(side, [(8, 8)], tmp_path, 1e-5)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (2 * x,)


# What a user can get wrong -----------------------------------------------------------------------


def test_mistakes_are_said_before_anything_is_written(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_kind("ldm", tiny_recipe, tmp_path / "saved")
    out = tmp_path / "onnx"
    with pytest.raises(LumitokError, match=r"size 40x32: .* multiples of 16 px"):
        export_checkpoint(folder, out, [(40, 32)])
    with pytest.raises(LumitokError, match="256 or 256x512"):
        parse_size("256x")
    assert parse_size("256") == (256, 256)
    assert parse_size("256x512") == (256, 512)
    with pytest.raises(LumitokError, match="there already"):
        export_checkpoint(folder, tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(LumitokError, match=r"onnxscript: pip install 'lumitok\[export\]'"):
        export_checkpoint(folder, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (5, 4, 1), (3, 1, 2), (1, 2, 1)]
)
def test_same_padding_without_its_formula_is_the_same(kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    convolution = Conv2dSame(4, 4, kernel, stride, dilation=dilation, groups=2)
    for height, width in ((8, 16), (24, 32)):
        x = torch.randn(2, 4, height, width)
        assert torch.equal(_padded(convolution, x), convolution(x))


def test_an_encoder_with_same_padding_is_left_as_it_was() -> None:
    config = EncoderConfig(name="timm:tf_efficientnet_lite0", layers=[3], weights="random")
    encoder = FoundationEncoder(config).eval()
    x = torch.rand(1, 3, 64, 32)
    before = encoder(x).maps[0]
    with _whole_sides(encoder):
        assert torch.equal(encoder(x).maps[0], before)
    assert not any("forward" in part.__dict__ for part in encoder.modules())
