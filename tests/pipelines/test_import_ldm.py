"""diffusers' and VA-VAE's files to folders: right ones compute the same, wrong ones leave nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumitok import Tokenizer
from lumitok.errors import LumitokError
from lumitok.interop.faults import WrongFileError
from lumitok.pipelines.import_folder import ImportReport
from lumitok.pipelines.import_ldm import LDMOptions, import_diffusers, import_va_vae
from lumitok.tokenizers import LDMVAE
from tests.interop import kl
from tests.parity.fixtures import relative_error

ONE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kl.autoencoder_kl(scaling_factor=0.5, shift_factor=0.25).save_pretrained(tmp_path / "sd-vae")
    return tmp_path / "sd-vae"


@pytest.fixture(scope="module")
def official() -> tuple[LDMVAE, dict[str, Tensor]]:
    return kl.va_vae()


def pictures() -> Tensor:
    return torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1


def reports(report: ImportReport[Any]) -> dict[str, tuple[int, str]]:
    return {row.what: (row.tensors, row.about) for row in report.rows}


def beside(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@torch.no_grad()
def test_a_folder_of_diffusers_computes_the_same(folder: Path, tmp_path: Path) -> None:
    theirs = kl.autoencoder_kl()
    report = import_diffusers(folder, tmp_path / "made" / "out")
    ours = Tokenizer.from_pretrained(tmp_path / "made" / "out")
    assert isinstance(ours, LDMVAE)
    z = theirs.encode(pictures()).latent_dist.mode()
    assert relative_error(ours.encode(pictures()).latent, z) < 1e-5
    assert relative_error(ours.decode(z).sample, theirs.decode(z).sample) < 1e-5
    white = ours.latent_spec.whiten(z)
    torch.testing.assert_close(white, (z - 0.25) * 0.5)
    assert (ours.config.scaling_factor, ours.config.shift_factor) == (0.5, 0.25)
    told = reports(report)
    assert told["read"] == (len(theirs.state_dict()), f"AutoencoderKL in {ONE}")
    count = sum(p.numel() for p in theirs.parameters())
    assert told["converted"] == (len(theirs.state_dict()), f"{count / 1e6:.2f} million parameters")
    said = (
        "mean 0.25 and deviation 2 for every channel, as its config has shift_factor 0.25 and scaling_factor"
    )
    assert told["statistics"][1] == f"{said} 0.5; not measured here"
    assert report.about == "A latent diffusion autoencoder for 32 px, f8d4."
    assert "not read" not in told


def test_half_precision_is_widened(folder: Path, tmp_path: Path) -> None:
    state = {key: value.half() for key, value in load_file(folder / ONE).items()}
    save_file(state, folder / ONE)
    import_diffusers(folder, tmp_path / "out")
    made = load_file(tmp_path / "out" / ONE)
    assert {value.dtype for value in made.values()} == {torch.float32}
    assert torch.equal(made["encoder.conv_in.bias"], state["encoder.conv_in.bias"].float())


@pytest.mark.parametrize("statistics", [False, True])
def test_a_va_vae_becomes_the_same_tokenizer(
    statistics: bool, official: tuple[LDMVAE, dict[str, Tensor]], tmp_path: Path
) -> None:
    tokenizer, state = official
    content = {**state, "loss.logvar": torch.zeros(()), "foundation_model.x": torch.zeros(1)}
    torch.save({"state_dict": content, "epoch": 3}, tmp_path / "vavae.pt")
    options = LDMOptions(image_size=32)
    if statistics:
        torch.save(
            {"mean": torch.arange(4.0).view(1, 4, 1, 1), "std": torch.full((1, 4, 1, 1), 2.0)},
            tmp_path / "latents_stats.pt",
        )
        options = LDMOptions(image_size=32, latents_stats=tmp_path / "latents_stats.pt", latents_count=77)
    report = import_va_vae(tmp_path / "vavae.pt", tmp_path / "out", options)
    made = Tokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(made, LDMVAE)
    assert made.fingerprint() == tokenizer.fingerprint()
    told = reports(report)
    assert told["read"] == (len(state) + 2, "the state dict of vavae.pt")
    assert told["converted"][0] == len(state)
    dropped = [(row.tensors, row.about.split(":")[0]) for row in report.rows if row.what == "dropped"]
    assert dropped == [(1, "foundation_model"), (1, "loss")]
    assert told["not read"][1] == "the file's epoch"
    assert told["sizes"][1].startswith("other than VA-VAE's: image_size 32, latent_channels 4, ")
    assert told["sizes"][1].endswith("; with the VF head")
    assert report.about == "A VA-VAE for 32 px, f16d4."
    assert ("statistics" in told) == statistics
    assert made.settings.latents_mean == ([0.0, 1.0, 2.0, 3.0] if statistics else None)
    assert made.settings.latents_count == (77 if statistics else None)


# Wrong files ------------------------------------------------------------------------------------


def test_every_wrong_key_of_diffusers_is_named(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / ONE)
    del state["decoder.mid_block.attentions.0.to_q.bias"]
    state["stranger"] = torch.zeros(1)
    state["encoder.conv_in.bias"] = torch.zeros(31)
    state["encoder.mid_block.attentions.0.to_k.weight"] = torch.zeros(64, 63)
    state["decoder.conv_out.bias"] = torch.full((3,), torch.nan)
    save_file(state, folder / ONE)
    before = beside(folder.parent)
    options = LDMOptions(faults=tmp_path / "faults.txt")
    with pytest.raises(WrongFileError, match="does not hold the AutoencoderKL that its config") as caught:
        import_diffusers(folder, tmp_path / "out", options)
    assert sorted(caught.value.faults) == [
        "missing: decoder.mid_block.attentions.0.to_q.bias",
        "not finite: decoder.conv_out.bias",
        "of another shape: encoder.conv_in.bias [31], wanted [32]",
        "of another shape: encoder.mid_block.attentions.0.to_k.weight [64, 63, 1, 1], wanted [64, 64, 1, 1]",
        "unexpected: stranger",
    ]
    assert (tmp_path / "faults.txt").read_text().splitlines() == caught.value.faults
    assert beside(folder.parent) == sorted([*before, tmp_path / "faults.txt"])


def test_every_wrong_key_of_a_va_vae_is_named(
    official: tuple[LDMVAE, dict[str, Tensor]], tmp_path: Path
) -> None:
    state: dict[str, Any] = dict(official[1])
    del state["decoder.up.0.block.1.conv2.weight"]
    state["model_ema.decay"] = torch.zeros(())
    state["quant_conv.bias"] = torch.zeros(9)
    state["decoder.up.2.upsample.conv.bias"] = 3
    torch.save(state, tmp_path / "vavae.pt")
    with pytest.raises(
        WrongFileError, match="does not hold a VA-VAE that lumitok knows: 1 missing"
    ) as caught:
        import_va_vae(tmp_path / "vavae.pt", tmp_path / "out")
    assert sorted(caught.value.faults) == [
        "missing: decoder.up.0.block.1.conv2.weight",
        "not a tensor of floating-point numbers: decoder.up.2.upsample.conv.bias, a int",
        "of another shape: quant_conv.bias [9], wanted [8]",
        "unexpected: model_ema.decay",
    ]
    assert beside(tmp_path) == [tmp_path / "vavae.pt"]


def test_wrong_statistics_and_a_folder_in_use_leave_nothing(
    official: tuple[LDMVAE, dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.save(official[1], tmp_path / "vavae.pt")
    torch.save({"mean": torch.zeros(5), "std": torch.ones(5)}, tmp_path / "stats.pt")
    before = beside(tmp_path)
    with pytest.raises(LumitokError, match=r"mean is \[5\], wanted a tensor of \[1, 4, 1, 1\]"):
        import_va_vae(
            tmp_path / "vavae.pt", tmp_path / "out", LDMOptions(latents_stats=tmp_path / "stats.pt")
        )
    assert beside(tmp_path) == before
    for convert in (import_va_vae, import_diffusers):
        with pytest.raises(LumitokError, match="is there already; name a new folder"):
            convert(tmp_path / "vavae.pt", tmp_path)
    assert beside(tmp_path) == before
