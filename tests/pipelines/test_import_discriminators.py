"""The released discriminators: imported beside the tokenizer, and taken up by a run that begins there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumitok.config import EncoderConfig, Recipe, load_recipe
from lumitok.errors import LumitokError
from lumitok.interop.faults import WrongFileError
from lumitok.pipelines.import_folder import ImportReport
from lumitok.pipelines.import_weights import Options, import_vfm_vae
from lumitok.training.setup import Run, start_run
from tests.interop import official
from tests.parity.fixtures import Fixture

DINO = {
    "name": "timm:vit_small_patch16_224.dino",
    "layers": [3, 6, 9, 12, 0],
    "timm_kwargs": {"img_size": 64, "embed_dim": 24, "depth": 12, "num_heads": 2},
}
JUDGES = "training/discriminator.safetensors"


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return official.generator(Fixture("vfmvae_decoder_plain"))


@pytest.fixture(scope="module")
def judges() -> dict[str, Tensor]:
    return official.discriminators()


def imported(folder: Path, generator: dict[str, Any], judges: Any, **changes: Any) -> ImportReport[Any]:
    file = official.checkpoint(folder / "official.pth", generator, D=judges)
    values: dict[str, Any] = {"layers": official.LAYERS, "timm_kwargs": official.TIMM}
    values["discriminator_encoder"] = EncoderConfig.model_validate(DINO)
    return import_vfm_vae(file, folder / "out", Options(**values | changes))


def told(report: ImportReport[Any]) -> dict[str, tuple[int, str]]:
    return {row.what: (row.tensors, row.about) for row in report.rows}


def tuned(folder: Path, judges: dict[str, Tensor], *changes: str) -> Recipe:
    """A recipe that goes on from what was imported, against both discriminators."""
    prefix = "dino.model.model."
    backbone = {k.removeprefix(prefix): v for k, v in judges.items() if k.startswith(prefix)}
    save_file(backbone, folder / "dino.safetensors")
    (folder / "pictures").mkdir()
    for index in range(2):
        Image.new("RGB", (256, 256), (90 * index, 0, 0)).save(folder / "pictures" / f"{index}.png")
    losses = {"l1": 1.0, "gan": 0.1, "patchgan": 0.1}
    tree = {
        "about": "Goes on.",
        "model": "init",
        "init": str(folder / "out"),
        "out": str(folder / "run"),
        "data": {"train": str(folder / "pictures"), "workers": 0},
        "discriminator": {"encoder": DINO | {"weights": str(folder / "dino.safetensors")}},
        "patch_discriminator": {"channels": 8},
        "stages": [{"name": "tune", "images": 2, "batch_size": 2, "losses": losses}],
        "training": {"tracker": "none"},
    }
    (folder / "tune.yaml").write_text(yaml.safe_dump(tree))
    return load_recipe(str(folder / "tune.yaml"), list(changes))


def begun(recipe: Recipe) -> Run:
    return start_run(recipe, resume=False)


def test_a_run_takes_them_up(generator: dict[str, Any], judges: dict[str, Tensor], tmp_path: Path) -> None:
    rows = told(imported(tmp_path, generator, judges))
    backbone = sum(key.startswith("dino.") for key in judges)
    assert rows["discriminators"][0] == len(judges) - backbone
    assert "foundation, on layers [3, 6, 9, 12, 0] of timm:vit_small" in rows["discriminators"][1]
    assert "patch, on 3 scales; init= takes them up" in rows["discriminators"][1]
    assert rows["discriminators, dropped"][0] == backbone
    assert rows["not read"][1] == "the file's G, training_set_kwargs"
    run = begun(tuned(tmp_path, judges))
    assert run.began.endswith("out, with foundation discriminator and patch discriminator")
    assert run.discriminators is not None
    ours = run.discriminators.state_dict()
    for name, key in {
        "foundation.heads.4.conv_mid.weight": "heads.4.main.1.fn.0.weight_orig",
        "foundation.heads.0.conv_mid.weight_v": "heads.0.main.1.fn.0.weight_v",
        "patch.networks.0.1.conv.weight": "patchgan_discriminator.scale2_layer1.0.weight",
    }.items():
        assert torch.equal(ours[name], judges[key]), name
    assert load_file(tmp_path / "out" / JUDGES).keys() == {
        name for name in ours if not name.startswith("foundation.encoder.")
    }
    # The same heads on other weights of the encoder.
    other = tuned_again(tmp_path, "discriminator.encoder.weights=random")
    with pytest.raises(
        LumitokError, match=r"trained on an encoder with the hash .* by removing .*out/training"
    ):
        begun(other)


def tuned_again(folder: Path, *changes: str) -> Recipe:
    return load_recipe(str(folder / "tune.yaml"), [f"out={folder / 'other'}", *changes])


def test_without_any_a_run_begins_with_new_ones(
    generator: dict[str, Any], judges: dict[str, Tensor], tmp_path: Path
) -> None:
    assert told(imported(tmp_path, generator, {}))["discriminators"] == (0, "none in the file")
    assert not (tmp_path / "out" / "training").exists()
    assert begun(tuned(tmp_path, judges)).began.endswith("out, with new discriminators")


def test_they_may_be_left_out_and_an_earlier_stage_has_no_patchgan(
    generator: dict[str, Any], judges: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    left = told(imported(tmp_path / "a", generator, judges, without_discriminators=True))
    assert left["discriminators"] == (0, "left out")
    assert not (tmp_path / "a/out/training").exists()
    heads = {key: value for key, value in judges.items() if not key.startswith("patchgan")}
    imported(tmp_path / "b", generator, heads)
    assert all(name.startswith("foundation.heads.") for name in load_file(tmp_path / "b/out" / JUDGES))


def test_every_wrong_key_is_named_and_nothing_written(
    generator: dict[str, Any], judges: dict[str, Tensor], tmp_path: Path
) -> None:
    gone, short = "patchgan_discriminator.scale1_layer4.0.bias", "heads.2.cls.bias"
    wrong = {key: value for key, value in judges.items() if key != gone}
    wrong |= {short: torch.zeros(2), "heads.0.cmapper.weight": torch.zeros(1)}
    with pytest.raises(WrongFileError, match="discriminators that lumitok does not know") as caught:
        imported(tmp_path, generator, wrong)
    assert caught.value.faults == [
        f"missing: {gone}",
        "unexpected: heads.0.cmapper.weight",
        f"of another shape: {short} [2], wanted [1]",
    ]
    assert "--without-discriminators" in str(caught.value)
    assert not (tmp_path / "out").exists()
