"""Runs of diffusion networks on the page: alone, beside a tokenizer's, and trained together with one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lumitok.config import DiffusionRecipe, EndToEndRecipe, load_any, load_diffusion_recipe, save_recipe
from lumitok.diffusion import DiffusionNetwork
from lumitok.errors import LumitokError
from lumitok.evaluation.protocol import PictureSet, Protocol
from lumitok.evaluation.report import Report
from lumitok.evaluation.representations import DETERMINISTIC
from lumitok.evaluation.results import Number, Results, default_path
from lumitok.foundation.weights import hash_weights
from lumitok.pipelines import report_album
from lumitok.pipelines.report import gather, write_report
from lumitok.pipelines.report_curves import add_curves
from lumitok.pipelines.report_networks import maker_of
from lumitok.pipelines.report_runs import open_runs
from lumitok.pipelines.report_samples import _moments, class_names
from lumitok.tokenizers import Tokenizer
from lumitok.tokenizers.provenance import Provenance
from tests.pipelines.drawing import TINY, save_run, save_tokenizer
from tests.pipelines.test_report import Page, make_run

STEPS = (2, 4, 6, 8, 10, 12, 14)
COUNT = 9
DRAWN = Protocol(
    data=PictureSet("samples", 50, "a" * 64),
    reference=PictureSet("real", 90, "b" * 64),
    extractor="inception",
    guidance="2",
)
LAYERS = Protocol(
    data=PictureSet("val", 14, "c" * 64),
    latent="posterior sample",
    method="k 4; spatial tokens at t 0.5, no class, noise by picture",
)


@pytest.fixture(autouse=True)
def _on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_album, "default_device", lambda: torch.device("cpu"))


def lines(*names: str) -> str:
    records = [
        {
            "step": step,
            "images": 8 * step,
            "stage": "only",
            "kind": "train",
            "values": {**dict.fromkeys(names, 1.0 / step), "gradient": 1.0, "images_per_second": 40.0},
        }
        for step in STEPS
    ]
    return "".join(json.dumps(record) + "\n" for record in records)


def draw(run: Path, sheets: str, steps: tuple[int, ...] = STEPS) -> None:
    """Samples and sheets as training leaves them; a picture's red tells its step, its green its number."""
    (run / sheets).mkdir()
    for step in steps:
        folder = run / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for index in range(COUNT):
            Image.new("RGB", (8, 8), (step, index, 0)).save(folder / f"{index}.png")
        Image.new("RGB", (30, 30), (step, 255, 255)).save(run / sheets / f"step-{step:08d}.png")


def layers(values: list[float], protocol: Protocol = LAYERS, reference: str = "dino") -> Results:
    numbers = [Number(f"CKNNA, mean over blocks vs {reference}", sum(values) / len(values), protocol)]
    numbers += [Number(f"CKNNA, block {i} vs {reference}", v, protocol) for i, v in enumerate(values, 1)]
    return Results("layers", "anything", numbers, tables={"layers": {reference: values}})


def keep(run: Path, results: Results) -> Path:
    return results.save(default_path(run, results))


def make_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = save_tokenizer(folder)
    tokenizer.provenance = Provenance(
        recipe="vae/small", stages=["only"], data="photos", pictures=10, step=7, images=56, lumitok="0"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_network(tmp_path: Path, name: str = "net", **changes: Any) -> Path:
    """A finished run of a network on the latents of ``tmp_path/tokenizer``."""
    home = tmp_path / "vae" / "tokenizer"
    tokenizer = Tokenizer.from_pretrained(home) if home.exists() else make_tokenizer(home)
    run = tmp_path / name
    save_run(run, tokenizer, str(home), **changes)
    recipe = load_diffusion_recipe(str(run / "recipe.yaml"))
    samples = recipe.samples.model_copy(update={"count": COUNT})
    values = {"name": "mine", "about": "Small networks.", "samples": samples}
    save_recipe(recipe.model_copy(update=values), run / "recipe.yaml")
    (run / "history.jsonl").write_text(lines("velocity", "cosine"))
    draw(run, "grids")
    return run


def page_of(*runs: Path, **options: Any) -> tuple[str, str]:
    """The page as it stands, and its words."""
    html = write_report(runs, runs[0].parent / "report.html", **options).read_text(encoding="utf-8")
    return html, Page(html).text


# ------------------------------------------------------------------------------------------------
# One run of a network


def test_a_networks_run_tells_what_was_trained_on_which_latents(tmp_path: Path) -> None:
    run = make_network(tmp_path, depth=2)
    material = gather([run])
    network = material.networks["net"]
    html, text = page_of(run)
    size = f"{network.parameters / 1e6:.2f} M parameters"
    assert f"mine Small networks. LightningDiT, patch 1, 2 blocks of 16, {size}. 112 latents seen." in text
    fingerprint = Tokenizer.from_pretrained(tmp_path / "vae").latent_fingerprint()[:12]
    trained = "recipe vae/small, 56 pictures of photos seen in 7 steps"
    assert f"Latents made by vae; fingerprint {fingerprint}; {trained}" in text
    for words in (
        "Latents learnt 4 x 4 x 4",
        "Classes 3: cat, dog, owl",
        "Losses velocity 1",
        "Sampling euler, 3 steps, no guidance",
        "Latents seen 112",
        "Over the latents seen.",
        "Parameters of the networks, cost of one evaluation",
        "The resolved recipe",
        "tokenizer: '.../tokenizer'",
    ):
        assert words in text
    assert 'aria-label="Velocity, mean square error over the latents seen"' in html
    for absent in ("Reconstructions", "Trainable", "Encode, GMACs", "gradient over"):
        assert absent not in html


def test_samples_stand_over_the_training_under_the_names_of_their_classes(tmp_path: Path) -> None:
    html, text = page_of(make_network(tmp_path))
    section = html[html.index('<section id="samples-over-the-training">') :]
    section = section[: section.index("</section>")]
    # Nine samples of three classes, six shown: 0, 2, 3, 5, 6 and 8.
    assert re.findall(r'<div class="heading[^>]*>([^<]*)<', section) == [
        "cat",
        "cat",
        "dog",
        "dog",
        "owl",
        "owl",
    ]
    # The first, the last, and some between.
    assert re.findall(r"<span>step (\d+)</span>", section) == ["2", "6", "8", "10", "14"]
    assert section.count("<img") == 5 * 6 + 1
    assert "net: all 9 samples of step 14." in text


def test_samples_of_another_number_than_the_last_are_left_out(tmp_path: Path) -> None:
    run = make_network(tmp_path)
    folders = sorted((run / "samples").iterdir())
    for folder in folders[:2]:
        (folder / "0.png").unlink()
    assert _moments(folders, 3) == [folders[2], folders[4], folders[6]]
    assert _moments(folders[:1], 5) == folders[:1]


def test_classes_are_those_that_training_chose(tmp_path: Path) -> None:
    (run,) = open_runs([make_network(tmp_path)])
    assert isinstance(run.recipe, DiffusionRecipe)
    assert class_names(run, COUNT) == ["cat"] * 3 + ["dog"] * 3 + ["owl"] * 3
    chosen = run.recipe.samples.model_copy(update={"classes": [2, 0]})
    other = replace(run, recipe=run.recipe.model_copy(update={"samples": chosen}))
    assert class_names(other, COUNT) == ["owl", "cat", "owl", "cat", "owl", "cat", "owl", "cat", "owl"]
    assert class_names(run, COUNT - 1) == []  # Drawn by another recipe than is there now.
    assert class_names(replace(run, latents=None), COUNT) == []


def test_a_tokenizer_that_changed_since_is_not_the_one_that_made_the_latents(tmp_path: Path) -> None:
    (run,) = open_runs([make_network(tmp_path)])
    tokenizer = make_tokenizer(tmp_path / "vae" / "tokenizer")
    with torch.no_grad():
        next(iter(tokenizer.parameters())).add_(1.0)
    tokenizer.save_pretrained(tmp_path / "vae" / "tokenizer")
    told = maker_of(run)
    assert told is not None
    assert told.endswith("it has other weights by now")
    assert "vae/small" not in told
    (tmp_path / "vae" / "tokenizer" / "config.json").unlink()
    told = maker_of(run)
    assert told is not None
    assert re.fullmatch("vae; fingerprint [0-9a-f]{12}", told)


def test_a_checkpoint_that_made_the_latents_is_named_by_its_run_and_step(tmp_path: Path) -> None:
    (run,) = open_runs([make_network(tmp_path)])
    assert isinstance(run.recipe, DiffusionRecipe)
    for named in ("/x/vae/checkpoints/step-00000100", "/x/vae/checkpoints/step-00000100/tokenizer"):
        data = run.recipe.data.model_copy(update={"tokenizer": named})
        told = maker_of(replace(run, recipe=run.recipe.model_copy(update={"data": data})))
        assert told is not None
        assert told.startswith("vae, step 100; fingerprint ")


def test_layers_of_other_weights_than_the_networks_are_noted(tmp_path: Path) -> None:
    run = make_network(tmp_path)
    mine = hash_weights(DiffusionNetwork.from_pretrained(run).state_dict().items())
    assert gather([run]).fingerprints == {}  # Nothing to hold against them.
    keep(run, replace(layers([0.1, 0.2]), fingerprint=mine))
    assert "measured on other weights" not in page_of(run)[1]
    keep(run, replace(layers([0.1, 0.2]), fingerprint="e" * 64))
    assert "measured on other weights than the run has now" in page_of(run)[1]


def test_its_evaluations_and_sweeps_are_on_the_page(tmp_path: Path) -> None:
    run = make_network(tmp_path)
    Results("generation", "x", [Number("FID", 31.5, DRAWN, better="low")]).save(run / "evaluation/gen.json")
    kept = keep(run, layers([0.1, 0.4, 0.3]))
    Image.new("RGB", (8, 8)).save(kept.with_suffix(".png"))
    sweep(run / "sweep")
    html, text = page_of(run)
    for words in (
        "Generation against real",
        "FID, real 31.5 50 samples",
        "Alignment over depth on val",
        "net: highest 0.400 at block 2 of 3",
        "net: sweep of guidance",
        "Protocol. data: samples, 50 pictures, list aaaaaaaaaaaa; reference: real",
    ):
        assert words in text
    assert "CKNNA, block" not in text  # Drawn, not listed.
    assert "Pictures of the evaluations" not in text
    swept = html[html.index("sweep of guidance") :]
    cells = re.findall(r'<td class="number( best)?">([\d.]+)</td>', swept)
    assert cells[:4] == [("", "1"), ("", "40.5"), ("", "2"), (" best", "30.5")]


def sweep(folder: Path) -> None:
    points = []
    for guidance, fid in ((1, 40.5), (2, 30.5)):
        file = folder / "points" / f"{guidance}.json"
        Results("generation", "x", [Number("FID", fid, DRAWN, better="low")]).save(file)
        point = {"model": "net", "values": {"guidance": guidance}, "numbers": {"FID": fid}}
        points.append(point | {"results": file.relative_to(folder).as_posix()})
    (folder / "sweep.json").write_text(json.dumps({"over": ["guidance"], "points": points}))


def test_a_damaged_sweep_is_named(tmp_path: Path) -> None:
    run = make_network(tmp_path)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "sweep.json").write_text('{"over": ["guidance"], "points": []}')
    with pytest.raises(LumitokError, match=r"evaluation/sweep\.json is damaged"):
        page_of(run)


def test_a_network_alone_has_neither_curves_nor_samples(tmp_path: Path) -> None:
    _, text = page_of(make_network(tmp_path) / "network")
    assert "LightningDiT" in text
    assert "Curves" not in text
    assert "Samples over" not in text


# ------------------------------------------------------------------------------------------------
# Several


def test_networks_of_several_runs_stand_in_one_plot_over_depth(tmp_path: Path) -> None:
    one, other = make_network(tmp_path, "one"), make_network(tmp_path, "other")
    keep(one, layers([0.1, 0.4, 0.3]))
    keep(other, layers([0.2, 0.3, 0.5]))
    html, text = page_of(one, other)
    assert html.count('aria-label="CKNNA with dino over the blocks of 2 networks"') == 1
    assert "one: highest 0.400 at block 2 of 3; other: highest 0.500 at block 3 of 3" in text


def test_what_lines_over_depth_do_not_share_is_said_of_each(tmp_path: Path) -> None:
    one, other = make_network(tmp_path, "one"), make_network(tmp_path, "other")
    own: dict[str, Any] = {
        "latent": DETERMINISTIC,
        "method": f"{LAYERS.method}, class token of dino noised alike",
    }
    keep(one, layers([0.1, 0.4]))
    keep(other, layers([0.2, 0.3], replace(LAYERS, **own)))
    html, text = page_of(one, other)
    assert "over the blocks of 2 networks" in html
    said = text[text.index("one: highest 0.400") :]
    assert "Protocol. data: val, 14 pictures, list cccccccccccc one." in said
    assert f"one. latent: {LAYERS.latent}; method: {LAYERS.method} other." in said
    assert f"other. latent: {own['latent']}; method: {own['method']}" in said


def test_a_plot_names_the_runs_that_have_a_line_and_what_they_saw(tmp_path: Path) -> None:
    network, tokenizer = open_runs([make_network(tmp_path), make_together(tmp_path)])
    report = Report("t")
    add_curves(report, [replace(network, history=network.history[:2]), tokenizer])
    plots = {
        title: re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
        for title, drawing in re.findall(
            r'<svg role="img" aria-label="([^"]*)"[^>]*>(.*?)</svg>', report.html(), re.DOTALL
        )
    }
    both = plots["Velocity, mean square error over the latents or pictures seen"]
    alone = plots["L1 over the pictures seen"]
    assert {"net", "both", "latents or pictures"} <= set(both)
    assert {"both", "pictures"} <= set(alone)
    assert "net" not in alone


def test_a_tokenizers_run_and_a_networks_each_have_their_sections(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    network, tokenizer = make_network(tmp_path), make_run(tmp_path / "vfm", tiny_recipe)
    html, text = page_of(network, tokenizer)
    for words in ("Three moments", "Samples over the training", "Encode, GMACs", "An evaluation, GMACs"):
        assert words in text
    assert "Over the latents or pictures seen." in text
    assert f"lumitok evaluate reconstruction {tokenizer} --data" in text
    assert f"lumitok evaluate layers {network} --data" in text
    for wrong in (f"reconstruction {network}", f"layers {tokenizer}", f"sample {tokenizer}"):
        assert wrong not in text
    assert "net has no checkpoint" not in text
    keep(network, layers([0.1, 0.2]))
    assert "vfm." not in page_of(network, tokenizer)[1]  # It lacks nothing that it could have.
    assert "Pictures seen" in html


def test_pictures_cannot_be_given_to_networks_alone(tmp_path: Path) -> None:
    run = make_network(tmp_path)
    with pytest.raises(LumitokError, match="reconstruct nothing; leave the pictures out"):
        gather([run], data=[run / "grids"])


# ------------------------------------------------------------------------------------------------
# Tokenizer and network together


def make_together(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "both", error=20)
    tokenizer = save_tokenizer(run / "tokenizer")
    save_run(run, tokenizer)
    losses = {"alignment": 0.5, "alignment_encoder": {"name": "dinov2-small", "weights": "random"}}
    stage = {"name": "only", "images": 8, "batch_size": 4, "losses": {"l1": 1.0}, "network_losses": losses}
    values = {
        "name": "both",
        "model": load_model(run),
        "network": {"type": "lightningdit", **TINY, "projector": {"block": 1}},
        "stages": [stage],
        "samples": {"count": COUNT},
    }
    save_recipe(EndToEndRecipe.model_validate(values), run / "recipe.yaml")
    (run / "history.jsonl").write_text(lines("l1", "velocity", "tokenizer_alignment"))
    draw(run, "sample-grids")
    (run / "grids").mkdir()
    Image.new("RGB", (30, 30)).save(run / "grids" / f"step-{STEPS[-1]:08d}.png")
    return run


def load_model(run: Path) -> dict[str, Any]:
    config = json.loads((run / "tokenizer" / "config.json").read_text())
    return {key: value for key, value in config.items() if not key.startswith("_")}


def test_a_run_of_both_has_the_sections_of_both(tmp_path: Path) -> None:
    run = make_together(tmp_path)
    assert isinstance(load_any(str(run / "recipe.yaml")), EndToEndRecipe)
    (opened,) = open_runs([run])
    assert not opened.network_alone
    assert opened.sheets[-1].parent.name == "sample-grids"  # Not those of reconstructions.
    network = DiffusionNetwork.from_pretrained(run)
    keep(run, replace(layers([0.1, 0.2]), fingerprint=hash_weights(network.state_dict().items())))
    html, text = page_of(run)
    for words in (
        "Reconstructions",
        "The latent in colour",
        "Samples over the training",
        "Encode, GMACs",
        "An evaluation, GMACs",
        "Latents made by the tokenizer trained along with it",
        "Losses velocity 1, alignment 0.5; encoder dinov2-small",
        "Pictures seen 112",
        "Over the pictures seen.",
    ):
        assert words in text
    assert "measured on other weights" not in text  # The network's fingerprint is not the tokenizer's.
    assert "Alignment, in the tokenizer&#x27;s objective over the pictures seen" in html
