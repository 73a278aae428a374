"""Official files to folders: right ones decode as the official code does, wrong ones leave nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lumitok import Tokenizer
from lumitok.errors import LumitokError
from lumitok.interop.faults import WrongFileError
from lumitok.interop.siglip import to_timm
from lumitok.pipelines import import_weights
from lumitok.pipelines.import_folder import ImportReport
from lumitok.pipelines.import_weights import Options, import_vfm_vae
from lumitok.tokenizers import VFMVAE
from lumitok.tokenizers.base import ENCODER_WEIGHTS, WEIGHTS
from tests.interop import official
from tests.parity.fixtures import Fixture, relative_error

State = dict[str, Any]


def options(**changes: Any) -> Options:
    values: dict[str, Any] = {"layers": official.LAYERS, "timm_kwargs": official.TIMM}
    return Options(**{**values, **changes})


@pytest.fixture(scope="module")
def plain() -> Fixture:
    return Fixture("vfmvae_decoder_plain")


@pytest.fixture(scope="module")
def whole(plain: Fixture) -> State:
    return official.generator(plain)


@pytest.fixture
def state(whole: State) -> State:
    return dict(whole)


@pytest.fixture(scope="module")
def made(whole: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official.checkpoint(tmp_path_factory.mktemp("made") / "official.pth", whole)


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "official.pth"))


def reports(report: ImportReport[Any]) -> dict[str, tuple[int, str]]:
    return {row.what: (row.tensors, row.about) for row in report.rows}


def check_decoder(tokenizer: Tokenizer, fixture: Fixture) -> None:
    with torch.no_grad():
        decoded = tokenizer.decode(fixture.inputs["z"])
    outputs = {**{f"rgb_{i}": x for i, x in enumerate(decoded.pyramid[:-1])}, "image": decoded.sample}
    for name, value in outputs.items():
        assert relative_error(value, fixture.outputs[name]) < fixture.tolerance, name


# Right files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["newer", "older"])
@pytest.mark.parametrize("noise", [False, True])
def test_the_folder_decodes_as_the_official_code(layout: str, noise: bool, tmp_path: Path) -> None:
    fixture = Fixture(f"vfmvae_decoder_{'noise' if noise else 'plain'}")
    state = official.generator(fixture)
    if layout == "older":
        state = official.older(state)
    file = official.checkpoint(tmp_path / "official.pth", state)
    report = import_vfm_vae(file, tmp_path / "out", options())
    tokenizer = Tokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(tokenizer, VFMVAE)
    check_decoder(tokenizer, fixture)
    settings = report.settings
    assert (settings.image_size, settings.downsampling, settings.encoder.scale) == (256, 16, 2.0)
    assert settings.legacy_noise == noise
    assert tokenizer.fingerprint() == Tokenizer.from_pretrained(tmp_path / "out").fingerprint()
    assert {p.name for p in tmp_path.iterdir()} == {"official.pth", "out"}
    told = "older layout" if layout == "older" else "blocks numbered"
    assert reports(report)["read"][0] == len(state)
    assert told in reports(report)["read"][1]


def test_the_encoder_and_the_adapter_are_the_file_s(state: State, file: Path, tmp_path: Path) -> None:
    import_vfm_vae(file, tmp_path / "out", options())
    file.unlink()
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")  # The folder needs nothing beside itself.
    tokenizer = Tokenizer.from_pretrained(tmp_path / "elsewhere")
    assert isinstance(tokenizer, VFMVAE)
    pictures = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hidden = official.features(official.tower(), pictures)
    for ours, theirs in zip(tokenizer.features(pictures), [hidden[0], hidden[1], hidden[-1]], strict=True):
        assert relative_error(ours, theirs) < 1e-5
    ours = tokenizer.state_dict()
    for name, official_key in {
        "projections.1.attention.qkv.weight": "ldm_adapter.patch_quants.1.0.blocks.0.attn.qkv.weight",
        "fuse.norm_shortcut.bias": "ldm_adapter.final_quant.blocks.0.norm3.bias",
        "vf_head.weight": "ldm_adapter.linear_proj.weight",
    }.items():
        assert torch.equal(ours[name], state[official_key])
    assert tokenizer.encode(pictures).latent_dist.mean.shape == (1, 8, 16, 16)


def test_a_later_stage_s_file_has_no_vf_head(plain: Fixture, tmp_path: Path) -> None:
    file = official.checkpoint(tmp_path / "late.pth", official.generator(plain, vf_head=False))
    report = import_vfm_vae(file, tmp_path / "out", options())
    assert not report.settings.vf_head
    assert not any(name.startswith("vf_head") for name in load_file(tmp_path / "out" / WEIGHTS))


def test_what_was_done_is_counted(state: State, file: Path, tmp_path: Path) -> None:
    told = reports(import_vfm_vae(file, tmp_path / "out", options()))
    own = [key for key in state if not key.startswith("vfm_encoder.")]
    assert told["read"][0] == len(state)
    assert told["dropped"][0] == 17
    for counted in ("5 zero_k_bias", "1 x_avg", "11 blur_weight"):
        assert counted in told["dropped"][1]
    assert told["converted"][0] == len(own) - told["dropped"][0]
    assert told["converted"][0] == len(load_file(tmp_path / "out" / WEIGHTS))
    assert told["encoder, dropped"][0] == 11
    assert told["encoder"][0] == len(load_file(tmp_path / "out" / ENCODER_WEIGHTS))
    sizes = told["sizes"][1]
    assert sizes.startswith("other than the paper's: latent_channels 8, projected_channels [8, 8, 8], ")
    assert sizes.endswith("block_latent_channels [0, 0, 16, 16, 16, 32]")
    assert "block_depths" not in sizes
    assert told["not read"][1] == "the file's G, training_set_kwargs"


def test_a_bare_safetensors_file(plain: Fixture, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "flat.safetensors")
    report = import_vfm_vae(tmp_path / "flat.safetensors", tmp_path / "out", options())
    assert reports(report)["read"][1] == "the state dict of flat.safetensors, blocks numbered"
    assert "not read" not in reports(report)
    check_decoder(Tokenizer.from_pretrained(tmp_path / "out"), plain)


def test_half_precision_is_widened(state: State, tmp_path: Path) -> None:
    half = {key: value.bfloat16() for key, value in state.items()}
    import_vfm_vae(official.checkpoint(tmp_path / "half.pth", half), tmp_path / "out", options())
    weights = load_file(tmp_path / "out" / WEIGHTS)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert torch.equal(weights["mapping.first.bias"], state["mapping.mlp.fc0.bias"].bfloat16().float())


def test_a_file_without_a_known_encoder_takes_one_given_by_hand(state: State, tmp_path: Path) -> None:
    save_file(to_timm(official.tower()), tmp_path / "timm.safetensors")
    own = {key: value for key, value in state.items() if not key.startswith("vfm_encoder.")}
    own["vfm_encoder.encoder.model.trunk.weight"] = torch.zeros(2)
    file = official.checkpoint(tmp_path / "own.pth", own)
    refuse(file, tmp_path, "the file has 1 of an unknown layout")
    report = import_vfm_vae(file, tmp_path / "out", options(encoder_weights=tmp_path / "timm.safetensors"))
    assert "the weights given in" in reports(report)["encoder"][1]
    dropped = (1, "of an unknown layout, such as vfm_encoder.encoder.model.trunk.weight")
    assert reports(report)["encoder, dropped"] == dropped
    (tmp_path / "timm.safetensors").unlink()
    assert Tokenizer.from_pretrained(tmp_path / "out").encoder.model.norm.bias.equal(
        official.tower()["post_layernorm.bias"]
    )


# The latent's statistics ------------------------------------------------------------------------


def statistics(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "latents_stats.pt"
    mean, std = torch.arange(8.0).view(1, 8, 1, 1), torch.arange(8.0).view(1, 8, 1, 1) + 0.5
    torch.save({"mean": mean, "std": std, **changes}, path)
    return path


def test_statistics_whiten_the_latent(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "too"
    report = import_vfm_vae(file, out, options(latents_stats=statistics(tmp_path)))
    tokenizer = Tokenizer.from_pretrained(out)
    white = tokenizer.latent_spec.whiten(torch.ones(1, 8, 2, 2))
    torch.testing.assert_close(white[:, 3], torch.full((1, 2, 2), (1 - 3.0) / 3.5))
    assert tokenizer.settings.latents_count == report.settings.latents_count == 10_000
    assert "10000 pictures" in reports(report)["statistics"][1]


def test_wrong_statistics_leave_nothing(file: Path, tmp_path: Path) -> None:
    wrong = statistics(tmp_path, std=torch.ones(1, 9, 1, 1))
    refuse(file, tmp_path, r"std is \[1, 9, 1, 1\], wanted a tensor of \[1, 8, 1, 1\]", latents_stats=wrong)


# Wrong files ------------------------------------------------------------------------------------


def refuse(file: Path, tmp_path: Path, message: str, **changes: Any) -> LumitokError:
    """The error of a file that must be refused, with nothing written beside it."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LumitokError, match=message) as caught:
        import_vfm_vae(file, tmp_path / "out", options(**changes))
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return caught.value


def test_one_wrong_key_is_named_alone(state: State, tmp_path: Path) -> None:
    for key, value, fault in (
        ("ldm_adapter.post_quant.blocks.0.proj.bias", None, "missing: {key}"),
        ("stranger", torch.zeros(1), "unexpected: {key}"),
        ("mapping.mlp.fc0.bias", torch.zeros(31), "of another shape: {key} [31], wanted [32]"),
    ):
        wrong = {k: v for k, v in {**state, key: value}.items() if v is not None}
        torch.save(wrong, tmp_path / "wrong.pth")
        said = fault.format(key=key)
        error = refuse(
            tmp_path / "wrong.pth", tmp_path, "does not hold a VFM-VAE generator that lumitok knows: 1 "
        )
        assert isinstance(error, WrongFileError)
        assert error.faults == [said]
        assert said.split(": ", 1)[1] in str(error)


def test_every_wrong_key_is_named(state: State, tmp_path: Path) -> None:
    layers, bias = "synthesis.blocks.1.convs1", "ldm_adapter.final_quant.blocks.0.attn.zero_k_bias"
    wrong = {
        **state,
        "synthesis.extra": torch.zeros(1),
        "vfm_encoder.other.weight": torch.zeros(1),
        f"{layers}.2.gamma": torch.zeros(1, 31, 1, 1),
        f"{layers}.2.norm.bias": torch.full((32,), torch.inf),
        f"{layers}.3.gamma": 3,
        f"{layers}.4.gamma": torch.zeros(1, 32, 1, 1, dtype=torch.int64),
        bias: torch.ones(96),
    }
    missing = ["mapping.x_avg", "synthesis.z_convs.3.0.1.weight", f"{layers}.1.gamma"]
    missing.append(f"{official.NESTED}post_layernorm.bias")
    for key in missing:
        del wrong[key]
    error = refuse(official.checkpoint(tmp_path / "wrong.pth", wrong), tmp_path, "4 missing .*; 2 unexpected")
    assert isinstance(error, WrongFileError)
    assert sorted(error.faults) == sorted([
        *(f"missing: {key}" for key in missing),
        "unexpected: synthesis.extra",
        "unexpected: vfm_encoder.other.weight",
        f"of another shape: {layers}.2.gamma [31], wanted [32]",
        f"not finite: {layers}.2.norm.bias",
        f"not a tensor of floating-point numbers: {layers}.3.gamma, a int",
        f"not a tensor of floating-point numbers: {layers}.4.gamma, a Tensor",
        f"not what lumitok builds: {bias} is not zero",
    ])  # fmt: skip


def test_many_wrong_keys_are_counted_and_all_listed(state: State, tmp_path: Path) -> None:
    gone = [key for key in state if key.startswith("synthesis.blocks.2.convs1")]
    wrong = {key: value for key, value in state.items() if key not in gone[:-1]}
    error = refuse(official.checkpoint(tmp_path / "wrong.pth", wrong), tmp_path, f"and {len(gone) - 6} more")
    assert isinstance(error, WrongFileError)
    assert sorted(error.faults) == sorted(f"missing: {key}" for key in gone[:-1])


def test_another_model_s_weights(tmp_path: Path) -> None:
    torch.save({"encoder.conv_in.weight": torch.zeros(2)}, tmp_path / "vae.pth")
    error = refuse(tmp_path / "vae.pth", tmp_path, "is no VFM-VAE generator: none of its 1 keys begins with")
    assert "the first are encoder.conv_in.weight" in str(error)


def test_a_decoder_alone_lacks_the_rest(plain: Fixture, tmp_path: Path) -> None:
    error = refuse(official.checkpoint(tmp_path / "half.pth", plain.weights), tmp_path, "missing")
    assert isinstance(error, WrongFileError)
    missing = [fault for fault in error.faults if fault.startswith("missing: ldm_adapter.")]
    assert len(missing) == 4 * 22


def test_layers_and_encoder_must_fit(file: Path, tmp_path: Path) -> None:
    refuse(
        file,
        tmp_path,
        r"projects 3 feature maps, the encoder would be read at 1 layers, \[-1\]",
        layers=(-1,),
    )
    refuse(file, tmp_path, "of 2 times the picture's side, not 1", scale=1.0)
    other = refuse(file, tmp_path, "of another shape", timm_kwargs={**official.TIMM, "embed_dim": 64})
    assert isinstance(other, WrongFileError)
    assert any(
        "embeddings.patch_embedding.weight [32, 3, 16, 16], wanted [64, 3, 16, 16]" in f for f in other.faults
    )


# The folder -------------------------------------------------------------------------------------


def test_paths_are_checked_first(file: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "oficial.pth", tmp_path, "there is no file .*did you mean '.*official.pth'")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    refuse(file, tmp_path, "is there already; name a new folder")
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_an_empty_folder_is_filled(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mode = (tmp_path / "out").stat().st_mode
    import_vfm_vae(file, tmp_path / "out", options())
    assert (tmp_path / "out" / WEIGHTS).is_file()
    assert (tmp_path / "out").stat().st_mode == mode


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("No space left")])
def test_a_full_disk_leaves_nothing(
    error: Exception, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tokenizer: VFMVAE, folder: Path, **_: Any) -> None:
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(b"half")
        raise error

    monkeypatch.setattr(import_weights.VFMVAE, "save_pretrained", full)
    refuse(file, tmp_path, "cannot write '.*out': .*No space left")
