"""Many samples: the same whatever the batch, gone on with after a stop, and written for evaluators."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from lumitok.cli import app
from lumitok.errors import LumitokError
from lumitok.evaluation.picture_sets import open_picture_set
from lumitok.pipelines import sample as module
from lumitok.pipelines.latent_diffusion import LatentDiffusionPipeline
from lumitok.pipelines.sample import Wanted, sample_pictures
from tests.pipelines.drawing import save_run, save_tokenizer
from tests.training.test_processes import TORCHRUN, free_port


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run of three classes whose recipe names the tokenizer."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    save_run(tmp_path / "run", tokenizer, str(tmp_path / "tokenizer"))
    return str(tmp_path / "run")


def drawn(folder: Path) -> NDArray[np.uint8]:
    """All samples of a folder, in order."""
    files = sorted((folder / "samples").glob("*.png"))
    assert [file.stem for file in files] == [f"{index:06d}" for index in range(len(files))]
    return np.stack([picture(file) for file in files])


def picture(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(image, dtype=np.uint8)


def listed(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def labels(folder: Path) -> list[int]:
    return [int(row["label"]) for row in listed(folder)]


def same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two sets are one, but for the rounding of matrix products of another size."""
    return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= 1


def test_batch_and_count_change_nothing(run: str, tmp_path: Path) -> None:
    sample_pictures(run, tmp_path / "a", Wanted(count=7, seed=3), batch_size=3)
    sample_pictures(run, tmp_path / "b", Wanted(count=5, seed=3), batch_size=5)
    first, second = drawn(tmp_path / "a"), drawn(tmp_path / "b")
    assert len(first) == 7
    assert same(first[:5], second)
    assert labels(tmp_path / "a")[:5] == labels(tmp_path / "b")
    # Each is a picture of its own.
    assert len({one.tobytes() for one in first}) == 7
    sample_pictures(run, tmp_path / "c", Wanted(count=5, seed=4))
    assert not same(second, drawn(tmp_path / "c"))


def test_a_listed_seed_draws_the_same_picture(run: str, tmp_path: Path) -> None:
    sample_pictures(run, tmp_path / "out", Wanted(count=3))
    row = listed(tmp_path / "out")[2]
    pipe = LatentDiffusionPipeline.from_pretrained(run)
    again = pipe.decode(pipe.draw([int(row["label"])], [int(row["seed"])]))
    levels = (again[0].permute(1, 2, 0).clamp(-1, 1).numpy() + 1) * 127.5
    assert np.abs(levels - drawn(tmp_path / "out")[2]).max() < 1.01
    assert row["class"] == ("cat", "dog", "owl")[int(row["label"])]


def test_what_is_there_is_not_drawn_again(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample_pictures(run, tmp_path / "whole", Wanted(count=8), batch_size=2)
    assert (whole.count, whole.drawn) == (8, 8)
    draw, asked = LatentDiffusionPipeline.draw, []

    def stopping(self: Any, labels: Any, seeds: list[int], *args: Any, **more: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(seeds))
        return draw(self, labels, seeds, *args, **more)

    monkeypatch.setattr(LatentDiffusionPipeline, "draw", stopping)
    with pytest.raises(KeyboardInterrupt):
        sample_pictures(run, tmp_path / "out", Wanted(count=8), batch_size=2)
    monkeypatch.undo()
    samples = tmp_path / "out" / "samples"
    assert 2 <= len(list(samples.glob("*.png"))) <= 4
    # Killed in the midst of writing.
    (samples / "000001.png").rename(samples / "000001.partial")
    written = {file.name: file.stat().st_mtime_ns for file in samples.glob("*.png")}
    again = sample_pictures(run, tmp_path / "out", Wanted(count=8), batch_size=2)
    assert again.drawn == 8 - len(written)
    with pytest.raises(LumitokError, match="holds 8 samples, more than the 3 asked for"):
        sample_pictures(run, tmp_path / "out", Wanted(count=3))
    assert all((samples / name).stat().st_mtime_ns == when for name, when in written.items())
    assert same(drawn(tmp_path / "out"), drawn(tmp_path / "whole"))
    more = sample_pictures(run, tmp_path / "out", Wanted(count=9))
    assert (more.count, more.drawn) == (9, 1)


@pytest.mark.parametrize(
    ("wanted", "sampling", "message"),
    [
        (Wanted(count=2, seed=1), {}, "seed was 0, now 1"),
        (Wanted(count=2), {"steps": 2}, r"sampling.steps was 3, now 2"),
        (Wanted(count=2, classes=[1]), {}, r"labels was drawn, now \[1\]"),
    ],
)
def test_a_folder_of_other_samples_is_refused(
    run: str, tmp_path: Path, wanted: Wanted, sampling: dict[str, Any], message: str
) -> None:
    sample_pictures(run, tmp_path / "out", Wanted(count=2))
    with pytest.raises(LumitokError, match=message):
        sample_pictures(run, tmp_path / "out", wanted, sampling=sampling)


def test_other_weights_and_other_folders_are_refused(run: str, tmp_path: Path) -> None:
    sample_pictures(run, tmp_path / "out", Wanted(count=1))
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    save_run(tmp_path / "run", tokenizer, str(tmp_path / "tokenizer"), seed=1)
    with pytest.raises(LumitokError, match="network was"):
        sample_pictures(run, tmp_path / "out", Wanted(count=1))
    with pytest.raises(LumitokError, match="holds something else than samples"):
        sample_pictures(run, tmp_path / "tokenizer", Wanted(count=1))


def test_per_class_is_exact_and_classes_come_in_turn(run: str, tmp_path: Path) -> None:
    sample_pictures(run, tmp_path / "each", Wanted(per_class=4))
    assert Counter(labels(tmp_path / "each")) == {0: 4, 1: 4, 2: 4}
    sample_pictures(run, tmp_path / "named", Wanted(per_class=2, classes=["owl", "0"]))
    assert labels(tmp_path / "named") == [2, 0, 2, 0]
    sample_pictures(run, tmp_path / "turn", Wanted(count=3, classes=[1, 2]))
    assert labels(tmp_path / "turn") == [1, 2, 1]
    # More of them begin with the same.
    assert sample_pictures(run, tmp_path / "each", Wanted(per_class=5)).drawn == 3


def test_no_class_is_asked_for_by_name(run: str, tmp_path: Path) -> None:
    sample_pictures(run, tmp_path / "out", Wanted(classes=["none", "owl"], count=2))
    assert [row["label"] for row in listed(tmp_path / "out")] == ["3", "2"]


def test_labels_are_drawn_evenly(run: str) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(run)
    found = Counter(module._plan(pipe, Wanted(count=3000), "fp32").labels)
    assert set(found) == {0, 1, 2}
    assert min(found.values()) > 900


def test_without_classes_there_are_no_labels(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    save_run(tmp_path / "free", tokenizer, str(tmp_path / "tokenizer"), classes=0)
    free, npz = str(tmp_path / "free"), tmp_path / "free.npz"
    sample_pictures(free, tmp_path / "out", Wanted(count=2), npz=npz)
    assert [row["label"] for row in listed(tmp_path / "out")] == ["", ""]
    assert open_picture_set(npz).labels is None
    with pytest.raises(LumitokError, match="knows no classes"):
        sample_pictures(free, tmp_path / "other", Wanted(per_class=2))
    # A folder has not begun before all is seen to fit.
    with pytest.raises(LumitokError, match="it knows none, so give guidance 1"):
        sample_pictures(free, tmp_path / "other", Wanted(count=2), sampling={"guidance": 2.0})
    assert not (tmp_path / "other").exists()


def test_the_npz_is_shuffled_and_reads_as_a_set(run: str, tmp_path: Path) -> None:
    npz = tmp_path / "npz" / "samples.npz"
    sample_pictures(run, tmp_path / "out", Wanted(per_class=4), npz=npz)
    pictures, order = drawn(tmp_path / "out"), labels(tmp_path / "out")
    source = open_picture_set(npz)
    assert (len(source), source.size) == (12, 32)
    found = np.concatenate([batch.permute(0, 2, 3, 1).numpy() for batch, _ in source.batches(range(12), 5)])
    places = [next(i for i in range(12) if np.array_equal(pictures[i], one)) for one in found]
    assert sorted(places) == list(range(12))
    assert places != list(range(12))
    assert source.labels == [order[place] for place in places]
    with np.load(npz) as arrays:  # As ADM's evaluator does.
        assert np.array_equal(arrays["arr_0"], found)
        assert arrays["arr_1"].dtype == np.int64
    before = npz.read_bytes()
    sample_pictures(run, tmp_path / "out", Wanted(per_class=4), npz=npz)
    with np.load(npz) as arrays:
        assert np.array_equal(arrays["arr_0"], found)
    assert len(before) == npz.stat().st_size
    assert [path.name for path in npz.parent.iterdir()] == ["samples.npz"]
    with pytest.raises(LumitokError, match="not named as an npz"):
        sample_pictures(run, tmp_path / "out", Wanted(per_class=4), npz=tmp_path / "samples.zip")


def test_the_sheet_has_a_row_a_class(run: str, tmp_path: Path) -> None:
    sample_pictures(run, tmp_path / "out", Wanted(per_class=5))
    sheet = picture(tmp_path / "out" / "sheet.png")
    assert sheet.shape[1] > 5 * 32 > sheet.shape[0] > 3 * 32
    order = labels(tmp_path / "out")
    owls = [one for one, label in zip(drawn(tmp_path / "out"), order, strict=True) if label == 2]
    strip = sheet[-8 - 32 : -8]
    places = [
        next(x for x in range(sheet.shape[1] - 31) if np.array_equal(strip[:, x : x + 32], owl))
        for owl in owls
    ]
    assert places == sorted(places)


def test_another_tokenizer_is_refused(run: str, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(LumitokError, match="give the tokenizer that made them"):
        sample_pictures(run, tmp_path / "out", Wanted(count=1), tokenizer=str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(count=2, per_class=2), "not both"),
        (Wanted(classes=[]), "no classes to draw"),
        (Wanted(classes=["cow"]), "no class 'cow'"),
        (Wanted(classes=["3"]), "no class 3: the network has 3, 0 to 2; 'none' draws without one"),
        (Wanted(count=2_000_000), "0 to 1,000,000"),
        (Wanted(seed=-1), "seed -1"),
    ],
)
def test_what_cannot_be_wanted_is_said(run: str, tmp_path: Path, wanted: Wanted, message: str) -> None:
    with pytest.raises(LumitokError, match=message):
        sample_pictures(run, tmp_path / "out", wanted)


def test_two_processes_draw_what_one_does(run: str, tmp_path: Path) -> None:
    sample_pictures(run, tmp_path / "one", Wanted(count=5))
    given = [
        "sample",
        run,
        "--out",
        str(tmp_path / "two"),
        "--count",
        "5",
        "--npz",
        str(tmp_path / "two.npz"),
    ]
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "lumitok", *given],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("5 samples in") == 1
    assert same(drawn(tmp_path / "one"), drawn(tmp_path / "two"))
    assert len(open_picture_set(tmp_path / "two.npz")) == 5


def test_the_command(run: str, tmp_path: Path) -> None:
    out, saved = tmp_path / "out", tmp_path / "pipe"
    given = ["sample", run, "--out", str(out), "--classes", "owl, 1", "--count", "4", "--steps", "2"]
    given += ["--guidance", "2", "--guidance-interval", "0.1,1", "--guidance-channels", "3", "--seed", "5"]
    done = CliRunner().invoke(app, [*given, "--save-pipeline", str(saved)])
    assert done.exit_code == 0, done.output
    assert "4 samples in" in done.output
    said = "classes in turn; euler, 2 steps, guidance 2, on the first 3 channels, for t from 0.1 to 1; seed 5"
    assert said in done.output
    assert labels(out) == [2, 1, 2, 1]
    settings = json.loads((out / "samples.json").read_text())["settings"]
    assert settings["sampling"]["guidance_interval"] == [0.1, 1.0]
    # The saved pipeline draws the same, with its settings and without the run.
    again = ["sample", str(saved), "--out", str(tmp_path / "again"), "--classes", "owl,1", "--count", "4"]
    done = CliRunner().invoke(app, [*again, "--seed", "5"])
    assert done.exit_code == 0, done.output
    assert same(drawn(out), drawn(tmp_path / "again"))
    done = CliRunner().invoke(app, [*given[:4], "--guidance-interval", "0.1"])
    assert isinstance(done.exception, LumitokError)
    assert "two times parted by a comma" in str(done.exception)
