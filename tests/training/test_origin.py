"""Beginning with the weights of another run or tokenizer: every kind, other sizes, other models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lumitok import Tokenizer
from lumitok.config import Recipe, load_recipe
from lumitok.errors import LumitokError
from lumitok.tokenizers import build_tokenizer
from lumitok.training import train
from lumitok.training.checkpoint import checkpoints
from tests.tokenizers.kinds import KINDS as SETTINGS
from tests.training.compare import changed

KINDS = ("vfm-vae", "frozen-ldm", "aligntok", "ldm")


@pytest.fixture
def tuned(recipe: Recipe) -> Recipe:
    """One step of two pictures, against both discriminators."""
    stage = {"name": "tune", "images": 2, "batch_size": 2, "generator_lr": 1e-3}
    losses = {"l1": 1.0, "gan": 0.1, "patchgan": 0.1}
    one = changed(recipe, stages=[stage | {"losses": losses}], patch_discriminator={"channels": 4})
    return changed(one, training__validate_every=0, training__checkpoint_every=0)


def saved(kind: str, recipe: Recipe, folder: Path) -> Path:
    """A random tokenizer of a kind as the hub would give it, and statistics of no use."""
    torch.manual_seed(1)
    changes = SETTINGS[kind]
    own = {"image_size": 32, "latent_channels": 4}
    model = (own if "type" in changes else recipe.model.model_dump()) | changes
    tokenizer = build_tokenizer(changed(recipe, model=model).model)
    tokenizer.set_latent_statistics(torch.full((4,), 9.0), torch.full((4,), 9.0), 7)
    tokenizer.save_pretrained(folder)
    return folder


def written(recipe: Recipe, path: Path, **more: Any) -> str:
    """The recipe as a file whose model is the checkpoint's."""
    tree = recipe.model_dump(mode="json") | {"model": "init"} | more
    path.write_text(yaml.safe_dump(tree))
    return str(path)


# Kind -> what lies behind the latent.
DECODING = {
    "vfm-vae": ["expand.*", "mapping.*", "spatial.*", "blocks.*"],
    "frozen-ldm": ["expand.*", "decoder.*"],
    "aligntok": ["decoder.*"],
    "ldm": ["post_quant_conv.*", "decoder.*"],
}


@pytest.mark.parametrize("kind", DECODING)
def test_a_decoder_trained_alone_keeps_the_latent_and_its_statistics(
    kind: str, tuned: Recipe, tmp_path: Path
) -> None:
    folder = saved(kind, tuned, tmp_path / "saved")
    imported = Tokenizer.from_pretrained(folder)  # 1 / 0.18215 is not a number of float32.
    imported.set_latent_statistics(torch.zeros(4), torch.full((4,), 1 / 0.18215, dtype=torch.float64), 7)
    imported.save_pretrained(folder)
    file = written(tuned, tmp_path / "tune.yaml")
    recipe = load_recipe(file, [f"init={folder}", f"out={tmp_path / 'decoder'}"])
    run = train(changed(recipe, stages__0__trainable=DECODING[kind]))
    before, after = Tokenizer.from_pretrained(folder), Tokenizer.from_pretrained(run)
    assert after.latent_spec == before.latent_spec
    assert after.settings.latents_count == 7
    assert after.fingerprint() != before.fingerprint()
    # From that run once more; and where everything is trained, everything is measured.
    again = load_recipe(file, [f"init={run}", f"out={tmp_path / 'again'}"])
    same = Tokenizer.from_pretrained(train(changed(again, stages__0__trainable=DECODING[kind])))
    assert same.latent_spec == before.latent_spec
    whole = Tokenizer.from_pretrained(train(changed(again, out=str(tmp_path / "whole"))))
    assert whole.latent_spec.tokenizer != before.latent_spec.tokenizer
    assert whole.settings.latents_count == 8


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_tuned_from_its_folder_alone_and_from_that_run_again(
    kind: str, tuned: Recipe, tmp_path: Path
) -> None:
    folder = saved(kind, tuned, tmp_path / "saved")
    file = written(tuned, tmp_path / "tune.yaml")
    first = load_recipe(file, [f"init={folder}", f"out={tmp_path / 'first'}"])
    assert first.model.latents_mean is None
    run = train(first)
    before = load_file(folder / "diffusion_pytorch_model.safetensors")
    after = load_file(checkpoints(run)[-1] / "training/generator.safetensors")
    assert before.keys() == after.keys()
    gaps = [float((after[n] - t).abs().max()) for n, t in before.items() if t.numel() and n in after]
    assert 0 < max(gaps) < 0.01  # A step of Adam of 1e-3 away, not drawn anew.
    opened = Tokenizer.from_pretrained(run)
    assert opened.settings.latents_count == 8
    assert max(opened.settings.latents_std or []) != 9.0
    # Again from the run, of which the recipe takes the model too; its discriminators come along.
    again = load_recipe(file, [f"init={run}", f"out={tmp_path / 'again'}"])
    assert again.model.model_dump(exclude={"encoder"}) == first.model.model_dump(exclude={"encoder"})
    second = train(changed(again, stages__0__discriminator_lr=1e-30))
    judges = [load_file(checkpoints(r)[-1] / "training/discriminator.safetensors") for r in (run, second)]
    biases = [name for name in judges[0] if name.endswith("bias")]
    assert {name.split(".")[0] for name in biases} == {"foundation", "patch"}
    assert all(torch.equal(judges[0][name], judges[1][name]) for name in biases)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_may_have_another_size_than_they_had(
    kind: str, tuned: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(kind, tuned, tmp_path / "saved")
    file = written(tuned, tmp_path / "tune.yaml", init=str(folder), patch_discriminator={"channels": 4})
    recipe = load_recipe(file, ["model.image_size=64"])
    if kind == "vfm-vae":
        with pytest.raises(
            LumitokError, match="decodes 32 px with 3 blocks, the recipe's model 64 px with 4"
        ):
            train(recipe)
        return
    assert Tokenizer.from_pretrained(train(recipe)).config.image_size == 64
    assert "trained at 32 px, now at 64" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latent_channels": 8}, r"model\.latent_channels is 4 there and 8 here"),
        ({"attention_heads": 1}, r"model\.attention_heads is 2 there and 1 here"),
        (
            {"block_blurs": [3] * 6, "block_kernels": [3] * 6},
            "model.block_kernels is .* model.block_blurs is",
        ),
    ],
)
def test_another_model_is_refused_also_where_every_shape_is_the_same(
    change: dict[str, Any], said: str, tuned: Recipe, tmp_path: Path
) -> None:
    folder = saved("vfm-vae", tuned, tmp_path / "saved")
    other = Recipe.model_validate(tuned.model_dump() | {"model": tuned.model.model_dump() | change})
    with pytest.raises(LumitokError, match=said):
        train(changed(other, init=str(folder)))
    assert not Path(tuned.out).exists()


def test_a_tokenizer_of_another_type_is_refused(tuned: Recipe, tmp_path: Path) -> None:
    folder = saved("ldm", tuned, tmp_path / "saved")
    with pytest.raises(LumitokError, match="is of the type ldm, the recipe's model vfm-vae; choose a recipe"):
        train(changed(tuned, init=str(folder)))


def test_discriminators_of_other_sizes_are_refused_and_left_behind_when_asked(
    tuned: Recipe, tmp_path: Path
) -> None:
    file = written(tuned, tmp_path / "tune.yaml")
    folder = saved("ldm", tuned, tmp_path / "saved")
    run = train(load_recipe(file, [f"init={folder}", f"out={tmp_path / 'first'}"]))
    wider = ["patch_discriminator.channels=8", f"out={tmp_path / 'second'}"]
    with pytest.raises(LumitokError, match=r"are not the recipe's \(.*\); give the recipe theirs"):
        train(load_recipe(file, [f"init={run}", *wider]))
    train(load_recipe(file, [f"init={checkpoints(run)[-1] / 'tokenizer'}", *wider]))


def test_model_init_says_what_it_lacks(tuned: Recipe, tmp_path: Path) -> None:
    file = written(tuned, tmp_path / "tune.yaml")
    with pytest.raises(LumitokError, match=r"that of the checkpoint .* none is named; add init="):
        load_recipe(file)
    with pytest.raises(LumitokError, match="holds no tokenizer whose model could be taken"):
        load_recipe(file, [f"init={tmp_path}"])
    folder = saved("ldm", tuned, tmp_path / "saved")
    with pytest.raises(LumitokError, match=r"there is no key 'model\.chanels'; did you mean 'channels'"):
        load_recipe(file, [f"init={folder}", "model.chanels=8"])
    child = tmp_path / "child.yaml"
    child.write_text(yaml.safe_dump({"base": "tune.yaml", "model": {"image_size": 64}}))
    assert load_recipe(str(child), [f"init={folder}"]).model.image_size == 64
    other = load_recipe("vae/imagenet256/f16d32", [f"init={folder}", "model=init", "model.image_size=64"])
    assert (other.model.type, other.model.latent_channels, other.model.image_size) == ("ldm", 4, 64)
    (folder / "config.json").write_text("{")
    with pytest.raises(LumitokError, match=r"config\.json is damaged"):
        load_recipe(file, [f"init={folder}"])


def test_an_encoder_that_is_trained_need_not_be_at_hand(tuned: Recipe, tmp_path: Path) -> None:
    folder = saved("aligntok", tuned, tmp_path / "saved")
    file = written(tuned, tmp_path / "tune.yaml")
    recipe = load_recipe(file, [f"init={folder}", "model.encoder.weights=nowhere.safetensors"])
    train(recipe)
    run = Path(recipe.out)
    shutil.rmtree(run / "tokenizer")
    train(recipe, resume=True)
    assert Tokenizer.from_pretrained(run).settings.latents_count == 8
