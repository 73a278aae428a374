"""Official checkpoints of networks to folders: right ones compute the same, wrong ones leave nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from lumitok.cli import app
from lumitok.diffusion import DiffusionNetwork, LightningDiT, SiT
from lumitok.errors import LumitokError
from lumitok.interop.faults import WrongFileError
from lumitok.pipelines.import_folder import ImportReport
from lumitok.pipelines.import_network import NetworkOptions, import_network
from tests.interop.networks import lightningdit_file, repa_file, state
from tests.parity.fixtures import Fixture


def reports(report: ImportReport[Any]) -> dict[str, tuple[int, str]]:
    return {row.what: (row.tensors, row.about) for row in report.rows}


def zeros(name: str) -> dict[str, Any]:
    tables = ("pos_embed", "feat_rope")
    return {k: v if k.startswith(tables) else torch.zeros_like(v) for k, v in state(name).items()}


@pytest.mark.parametrize("raw", [False, True])
@torch.no_grad()
def test_lightningdit_averaged_and_raw(raw: bool, tmp_path: Path) -> None:
    fixture = Fixture("lightningdit_qknorm")
    wanted, other = state("lightningdit_qknorm"), zeros("lightningdit_qknorm")
    file = lightningdit_file(tmp_path, *((other, wanted) if raw else (wanted, other)))
    report = import_network("lightningdit", file, tmp_path / "made" / "out", NetworkOptions(raw=raw))
    network = DiffusionNetwork.from_pretrained(tmp_path / "made" / "out")
    assert isinstance(network, LightningDiT)
    x, t, y = (fixture.inputs[name] for name in ("x", "t", "y"))
    fixture.check(velocity=network(x, t, y).velocity)
    told = reports(report)
    assert told["read"] == (43, f"{'model' if raw else 'ema'} of 0080000.pt")
    assert told["converted"][0] == 40
    assert told["dropped"] == (3, "fixed tables of positions, which lumitok builds itself")
    assert told["not read"][1] == f"the file's {'ema' if raw else 'model'}, opt, config"
    assert "time" not in told
    assert report.about == (
        "A LightningDiT of 2 blocks of width 48 at patch 1, for latents of 4x4x6, 12 classes."
    )


@torch.no_grad()
def test_reg_takes_the_projectors_block_from_its_command_line(tmp_path: Path) -> None:
    fixture = Fixture("reg_sit")
    file = repa_file(tmp_path, state("reg_sit"), zeros("reg_sit"), depth=2)
    told = reports(import_network("reg", file, tmp_path / "out"))
    assert told["time"][1].startswith("turned round in the weights")
    assert told["sizes"][1].endswith("a projector after block 2 to 20 channels")
    network = SiT.from_pretrained(tmp_path / "out")
    x, t, y, token = (fixture.inputs[name] for name in ("x", "t", "y", "class_token"))
    out = network(x, 1 - t, y, class_token=token, project=True)
    fixture.check(velocity=-out.velocity, class_velocity=-out.class_velocity, projected=out.projected)


def test_sit_drops_its_variance_and_may_be_safetensors(tmp_path: Path) -> None:
    save_file(state("sit_original"), tmp_path / "sit.safetensors")
    report = import_network("sit", tmp_path / "sit.safetensors", tmp_path / "out", NetworkOptions(heads=4))
    assert ("the second half of the output's channels, a learned variance") in [
        row.about for row in report.rows
    ]
    assert SiT.from_pretrained(tmp_path / "out").final_layer.linear.weight.shape == (16, 48)


def test_the_command(tmp_path: Path) -> None:
    file = repa_file(tmp_path, state("repa_sit"), zeros("repa_sit"), depth=2)
    out = tmp_path / "out"
    arguments = ["import-weights", "repa", str(file), "--out", str(out), "--heads", "4", "--raw"]
    done = CliRunner().invoke(app, [*arguments, "--projector-block", "1"])
    assert done.exit_code == 0, done.output
    assert "A SiT trained with REPA of 2 blocks" in " ".join(done.output.split())
    assert f"The network: {out}" in done.output
    network = SiT.from_pretrained(out)
    assert network.settings.projector is not None
    assert network.settings.projector.block == 1
    assert not any(parameter.any() for parameter in network.parameters())
    wrong = CliRunner().invoke(app, ["import-weights", "sit", str(file), "--out", "o", "--layers", "1"])
    assert wrong.exit_code != 0
    assert "--layers is an option of vfm-vae; sit does not take it" in str(wrong.exception or wrong.output)


def test_wrong_files_leave_nothing(tmp_path: Path) -> None:
    weights = state("lightningdit_qknorm")
    weights["stranger"] = torch.zeros(1)
    file = lightningdit_file(tmp_path, weights, {})
    listed = NetworkOptions(faults=tmp_path / "faults.txt")
    with pytest.raises(WrongFileError, match="does not hold a LightningDiT that lumitok knows: 1 unexpected"):
        import_network("lightningdit", file, tmp_path / "out", listed)
    assert (tmp_path / "faults.txt").read_text() == "unexpected: stranger\n"
    with pytest.raises(LumitokError, match="is no diffusion network that lumitok knows: in model"):
        import_network("lightningdit", file, tmp_path / "out", NetworkOptions(raw=True))
    torch.save({"model": state("repa_sit")}, tmp_path / "raw.pt")
    with pytest.raises(LumitokError, match="has no ema; take model, the weights as trained, with --raw"):
        import_network("repa", tmp_path / "raw.pt", tmp_path / "out")
    with pytest.raises(LumitokError, match="is laid out as 'repa'"):
        import_network("sit", tmp_path / "raw.pt", tmp_path / "out", NetworkOptions(raw=True))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


class Code:
    """What a weights file must not hold."""


def test_a_files_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"ema": Code()}, tmp_path / "bad.pt")
    with pytest.raises(LumitokError, match="reading that would run code"):
        import_network("repa", tmp_path / "bad.pt", tmp_path / "out")
