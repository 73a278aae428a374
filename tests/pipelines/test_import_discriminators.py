"""The released discriminators: imported beside the tokenizer, and taken up by a run that begins there."""

from __future__ import annotations

import json
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
from lumitok.pipelines import import_discriminators
from lumitok.pipelines.import_folder import ImportReport
from lumitok.pipelines.import_ldm import LDMOptions, import_va_vae
from lumitok.pipelines.import_weights import Options, import_vfm_vae
from lumitok.tokenizers import Tokenizer
from lumitok.training.checkpoint import check_identity
from lumitok.training.setup import Run, start_run
from tests.interop import kl, official
from tests.parity.fixtures import Fixture

DINO = {
    "name": "timm:vit_small_patch16_224.dino",
    "layers": [3, 6, 9, 12, 0],
    "timm_kwargs": {"img_size": 64, "embed_dim": 24, "depth": 12, "num_heads": 2},
}
LAYERS = "the layers of the discriminator's foundation.encoder"
JUDGES = "training/discriminator.safetensors"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_discriminators, "DINO", EncoderConfig.model_validate(DINO))


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return official.generator(Fixture("vfmvae_decoder_plain"))


@pytest.fixture(scope="module")
def judges() -> dict[str, Tensor]:
    return official.discriminators()


def imported(folder: Path, generator: dict[str, Any], judges: Any, **changes: Any) -> ImportReport[Any]:
    file = official.checkpoint(folder / "official.pth", generator, D=judges)
    values: dict[str, Any] = {"layers": official.LAYERS, "timm_kwargs": official.TIMM}
    return import_vfm_vae(file, folder / "out", Options(**values | changes))


def told(report: ImportReport[Any]) -> dict[str, tuple[int, str]]:
    return {row.what: (row.tensors, row.about) for row in report.rows}


def tuned(folder: Path, judges: dict[str, Tensor], *changes: str) -> Recipe:
    """A recipe that goes on from what was imported, against both discriminators."""
    prefix = "dino.model.model."
    backbone = {k.removeprefix(prefix): v for k, v in judges.items() if k.startswith(prefix)}
    save_file(backbone, folder / "dino.safetensors")
    return goes_on(
        folder,
        256,
        {"gan": 0.1, "patchgan": 0.1},
        *changes,
        discriminator={"encoder": DINO | {"weights": str(folder / "dino.safetensors")}},
        patch_discriminator={"channels": 8},
    )


def goes_on(folder: Path, side: int, losses: dict[str, float], *changes: str, **judges: Any) -> Recipe:
    """A recipe that goes on from ``out`` in the folder, on two pictures of a side in pixels."""
    (folder / "pictures").mkdir()
    for index in range(2):
        Image.new("RGB", (side, side), (90 * index, 0, 0)).save(folder / "pictures" / f"{index}.png")
    stage = {"name": "tune", "images": 2, "batch_size": 2, "losses": {"l1": 1.0, **losses}}
    tree = {
        "about": "Goes on.",
        "model": "init",
        "init": str(folder / "out"),
        "out": str(folder / "run"),
        "data": {"train": str(folder / "pictures"), "workers": 0},
        "stages": [stage],
        "training": {"tracker": "none"},
        **judges,
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
    # The same heads on other weights of the encoder, or on other layers of the same width.
    other = tuned_again(tmp_path, "discriminator.encoder.weights=random")
    said = r"foundation.encoder, of hash \w+ there and of hash \w+ here; .* by removing .*out/training"
    with pytest.raises(LumitokError, match=said):
        begun(other)
    turned = tuned_again(tmp_path, "discriminator.encoder.layers=[0,3,6,9,12]")
    with pytest.raises(LumitokError, match=r"\[3, 6, 9, 12, 0\] there and \[0, 3, 6, 9, 12\] here"):
        begun(turned)
    saved = tmp_path / "out" / "training"
    resumed = {name: value for name, value in run.identity.items() if "discriminator" in name}
    check_identity(saved, resumed)
    with pytest.raises(LumitokError, match=r"the layers of the discriminator's foundation.encoder changed"):
        check_identity(saved, resumed | {LAYERS: [0, 3, 6, 9, 12]})
    # A folder from before says nothing of layers.
    known = json.loads((saved / "identity.json").read_text())
    del known[LAYERS]
    (saved / "identity.json").write_text(json.dumps(known))
    assert "with foundation discriminator" in begun(turned).began
    check_identity(saved, resumed)


def tuned_again(folder: Path, *changes: str) -> Recipe:
    return load_recipe(str(folder / "tune.yaml"), [f"out={folder / 'other'}", *changes])


def test_without_any_a_run_begins_with_new_ones(
    generator: dict[str, Any], judges: dict[str, Tensor], tmp_path: Path
) -> None:
    assert told(imported(tmp_path, generator, {}))["discriminators"] == (0, "none in the file")
    assert not (tmp_path / "out" / "training").exists()
    assert begun(tuned(tmp_path, judges)).began.endswith("out, with new discriminators")


def test_an_earlier_stage_has_no_patchgan(
    generator: dict[str, Any], judges: dict[str, Tensor], tmp_path: Path
) -> None:
    heads = {key: value for key, value in judges.items() if not key.startswith("patchgan")}
    imported(tmp_path, generator, heads)
    assert all(name.startswith("foundation.heads.") for name in load_file(tmp_path / "out" / JUDGES))


def test_unknown_ones_are_left_out_and_every_wrong_key_is_named(
    generator: dict[str, Any], judges: dict[str, Tensor], tmp_path: Path
) -> None:
    gone, short = "patchgan_discriminator.scale1_layer4.0.bias", "heads.2.cls.bias"
    wrong = {key: value for key, value in judges.items() if key != gone}
    strangers: dict[Any, Any] = {short: torch.zeros(2), "heads.0.cmapper.weight": torch.zeros(1), 7: None}
    rows = told(imported(tmp_path, generator, wrong | strangers, faults=tmp_path / "faults.txt"))
    assert rows["discriminators"] == (
        len(judges) + 1,
        f"left out, for lumitok does not know them: 1 missing ({gone}); "
        f"2 unexpected (heads.0.cmapper.weight, 7); 1 of another shape ({short} [2], wanted [1])",
    )
    assert rows["not read"][1] == "the file's G, training_set_kwargs"
    assert (tmp_path / "faults.txt").read_text().splitlines() == [
        f"missing: {gone}",
        "unexpected: heads.0.cmapper.weight",
        "unexpected: 7",
        f"of another shape: {short} [2], wanted [1]",
    ]
    assert not (tmp_path / "out" / "training").exists()
    assert Tokenizer.from_pretrained(tmp_path / "out").settings.latent_channels == 8


# VA-VAE's ---------------------------------------------------------------------------------------


def va_vae(folder: Path, judge: dict[str, Tensor]) -> ImportReport[Any]:
    content = {**kl.va_vae()[1], **{f"loss.discriminator.{key}": value for key, value in judge.items()}}
    torch.save({"state_dict": content}, folder / "vavae.pt")
    return import_va_vae(folder / "vavae.pt", folder / "out", LDMOptions(image_size=32))


def test_a_run_takes_up_the_patchgan_of_a_va_vae(tmp_path: Path) -> None:
    fixture = Fixture("taming_patchgan")
    rows = told(va_vae(tmp_path, fixture.weights))
    unread = sum("running" in key or "batches" in key for key in fixture.weights)
    assert rows["discriminators"] == (
        len(fixture.weights) - unread,
        "patch, on 1 scale; init= takes them up",
    )
    assert rows["discriminators, dropped"] == (unread, "statistics of an eval mode, never read")
    sizes = {"channels": fixture.arguments["first_channels"]}
    sizes |= {"strided_layers": fixture.arguments["strided_layers"]}
    patch = {"scales": 1, "padding": 1, "norm": "batch", "loss": "hinge", **sizes}
    run = begun(goes_on(tmp_path, 32, {"patchgan": 0.5}, patch_discriminator=patch))
    assert run.began.endswith("out, with patch discriminator")
    assert run.discriminators is not None
    assert run.discriminators.patch is not None
    fixture.check(
        logits_train=run.discriminators.patch(fixture.inputs["image"].to(run.tokenizer.device))[0][-1].cpu()
    )
    # With another padding every shape is the same.
    with pytest.raises(LumitokError, match="the patch discriminator's padding, 1 there and 2 here"):
        begun(tuned_again(tmp_path, "patch_discriminator.padding=2"))


def test_an_unknown_one_of_a_va_vae_is_left_out(tmp_path: Path) -> None:
    wrong = Fixture("taming_patchgan").weights | {"main.3.loc": torch.zeros(1)}
    about = told(va_vae(tmp_path, wrong))["discriminators"][1]
    assert about == "left out, for lumitok does not know them: 1 unexpected (main.3.loc)"
    assert not (tmp_path / "out" / "training").exists()
    assert told(va_vae_again(tmp_path))["discriminators"] == (0, "none in the file")


def va_vae_again(folder: Path) -> ImportReport[Any]:
    (folder / "again").mkdir()
    return va_vae(folder / "again", {})
