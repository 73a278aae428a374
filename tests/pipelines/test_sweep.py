"""Sweeps of tiny networks: every combination once, with the same seeds, gone on with and not made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from lumitok.cli import app
from lumitok.errors import LumitokError
from lumitok.evaluation.extractors import Extracted
from lumitok.evaluation.picture_sets import open_picture_set
from lumitok.pipelines import evaluate_generation as generation
from lumitok.pipelines import sweep as module
from lumitok.pipelines.evaluate_generation import evaluate_generation
from lumitok.pipelines.sweep import run_sweep
from lumitok.pipelines.sweep_plan import make_points, parse_over, parse_settings
from tests.pipelines.drawing import save_run, save_tokenizer
from tests.pipelines.generation import StandIn, pictures, write


class Narrow(StandIn):
    """The stand-in for Inception with few features: quicker still."""

    dim = 16

    def __call__(self, pixels: Tensor) -> Extracted:
        x = pixels.flatten(1).float() / 255
        return Extracted(x @ torch.randn(x.shape[1], self.dim, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (generation, module):
        monkeypatch.setattr(place, "open_extractor", lambda name, *_, **__: Narrow(name))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return save_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def run(tmp_path: Path, tokenizer: Any) -> str:
    save_run(tmp_path / "run", tokenizer, str(tmp_path / "tokenizer"))
    return str(tmp_path / "run")


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write(tmp_path / "real", pictures(6, seed=0, side=32))


def drawn(folder: Path) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(file)) for file in sorted((folder / "samples").glob("*.png"))])


def test_every_combination_is_drawn_and_measured(run: str, real: Path, tmp_path: Path) -> None:
    report = run_sweep(
        [run], ["guidance=1,3", "steps=1,2"], real, tmp_path / "out", count=4, sampling={"shift": 0.5}, seed=3
    )
    found = [one.point.values for one in report.points]
    assert found == [{"guidance": g, "steps": s} for g in (1.0, 3.0) for s in (1, 2)]
    for one in report.points:
        again = evaluate_generation(one.folder / "samples", real, metrics=["fid"])
        assert one.results["FID"] == pytest.approx(again["FID"], rel=1e-9)
        (number,) = one.results.numbers
        assert (number.protocol.steps, number.protocol.labels) == (
            one.point.values["steps"],
            "labels drawn uniformly",
        )
        assert number.protocol.solver == f"euler, {one.point.values['steps']} steps, shift 0.5"
        guided = one.point.values["guidance"] > 1  # type: ignore[operator]
        assert number.protocol.guidance == ("guidance 3" if guided else "no guidance")
        listed = (one.folder / "samples.csv").read_text()
        assert listed == (report.points[0].folder / "samples.csv").read_text()  # The same labels and seeds.
    assert len({one.results["FID"] for one in report.points}) == 4
    table = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [point["numbers"]["FID"] for point in table["points"]] == [
        one.results["FID"] for one in report.points
    ]
    assert table["points"][3]["sampling"]["guidance"] == 3
    assert (tmp_path / "out" / table["points"][0]["results"]).is_file()
    assert report.plot is not None
    assert report.plot.read_bytes().startswith(b"\x89PNG")


def test_a_solver_that_chooses_its_steps_may_stand_beside_one_that_does_not(
    run: str, real: Path, tmp_path: Path
) -> None:
    settings = {"steps": 2, "shift": 0.5, "rtol": 0.1, "atol": 0.1}
    report = run_sweep([run], ["solver=euler,dopri5"], real, tmp_path / "out", count=2, sampling=settings)
    solvers = [number.protocol.solver for one in report.points for number in one.results.numbers]
    assert solvers == ["euler, 2 steps, shift 0.5", "dopri5 (atol 0.1, rtol 0.1)"]


def test_finished_points_are_read_and_not_made_again(
    run: str, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = run_sweep([run], ["steps=1,2"], real, out, count=4)
    made: list[str] = []
    draw = module.sample_pictures

    def counted(checkpoint: str, folder: Path, *args: Any, **options: Any) -> Any:
        made.append(folder.name)
        return draw(checkpoint, folder, *args, **options)

    monkeypatch.setattr(module, "sample_pictures", counted)
    # Stopped while the second was measured: its samples are there, its results are not.
    (measured,) = first.points[1].folder.glob("measured-*.json")
    measured.unlink()
    times = {
        file: file.stat().st_mtime_ns
        for file in first.points[1].folder.rglob("*.png")
        if file.parent.name == "samples"
    }
    again = run_sweep([run], ["steps=1,2,3"], real, out, count=4)
    assert [one.read for one in again.points] == [True, False, False]
    assert [one.results["FID"] for one in again.points[:2]] == [one.results["FID"] for one in first.points]
    assert made == [one.folder.name for one in again.points[1:]]
    assert all(file.stat().st_mtime_ns == when for file, when in times.items())
    # Other weights at the same place are other points.
    made.clear()
    save_run(Path(run), save_tokenizer(tmp_path / "tokenizer"), str(tmp_path / "tokenizer"), seed=1)
    other = run_sweep([run], ["steps=1"], real, out, count=4)
    assert len(made) == 1
    assert other.points[0].results["FID"] != first.points[0].results["FID"]
    # Other features measure the same samples.
    made.clear()
    judged = run_sweep([run], ["steps=1"], real, out, count=4, encoder="efficientnet-lite2")
    assert judged.points[0].folder == other.points[0].folder
    assert [n.name for n in judged.points[0].results.numbers] == ["FD-efficientnet-lite2"]
    # And another reference, of the same name.
    shutil.rmtree(real)
    write(real, pictures(7, seed=1, side=32))
    assert not run_sweep([run], ["steps=1"], real, out, count=4).points[0].read


def test_the_checkpoints_of_a_run(run: str, real: Path, tmp_path: Path, tokenizer: Any) -> None:
    named = str(tmp_path / "tokenizer")
    for step in (20, 100):
        save_run(Path(run) / "checkpoints" / f"step-{step:08d}", tokenizer, named, seed=step)
    save_run(tmp_path / "other" / "checkpoints" / "step-00000050", tokenizer, named, seed=7)
    (Path(run) / "history.jsonl").write_text(json.dumps({"step": 100, "values": {}}) + "\n")
    given = [run, str(tmp_path / "other")]
    points = make_points(given, parse_over(["checkpoint", "guidance=1,2"]), {})
    # The run's own network is that of its last step.
    found = [(point.model, point.values["checkpoint"], point.values["guidance"]) for point in points]
    steps = [("run", 20), ("run", 100), ("other", 50)]
    assert found == [(*step, guidance) for step in steps for guidance in (1.0, 2.0)]
    report = run_sweep([given[0]], ["checkpoint"], real, tmp_path / "out", count=2, keep_samples=False)
    assert [one.results.step for one in report.points] == [20, 100]
    for one in report.points:
        assert not (one.folder / "samples").exists()
        assert (one.folder / "sheet.png").is_file()
    save_run(tmp_path / "bare", tokenizer, named)
    with pytest.raises(LumitokError, match="nothing tells the training step"):
        make_points([str(tmp_path / "bare")], {"checkpoint": []}, {})


def test_lines_and_axis(
    run: str, real: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path / "b", tokenizer, str(tmp_path / "tokenizer"), seed=1)
    seen: list[Any] = []
    plot = module.points_plot
    monkeypatch.setattr(
        module, "points_plot", lambda lines, **how: (seen.append((lines, how)), plot(lines, **how))[1]
    )
    over = ["solver=euler,heun", "steps=2,1"]
    report = run_sweep([run, str(tmp_path / "b")], over, real, tmp_path / "out", count=2)
    ((lines, how),) = seen
    assert [line.label for line in lines] == [
        f"{m}, solver {s}" for m in ("run", "b") for s in ("euler", "heun")
    ]
    assert all(list(line.steps) == [1, 2] for line in lines)
    assert (how["xlabel"], how["note"]) == ("steps", "2 samples")
    values = {(one.point.model, *one.point.values.values()): one.results["FID"] for one in report.points}
    assert lines[3].values == [values["b", "heun", 1], values["b", "heun", 2]]
    assert report.points[3].results.numbers[0].protocol.steps == 1
    assert run_sweep([run], ["solver=euler"], real, tmp_path / "out", count=2).plot is None


def test_autoguidance_rests_at_guidance_1(run: str, tmp_path: Path) -> None:
    points = make_points([run], parse_over(["guidance=1,2"]), {"autoguidance": "weaker"})
    assert [point.sampling.autoguidance for point in points] == [None, "weaker"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "name what is swept"),
        (["guidence=1,2"], "'guidence' cannot be swept.*did you mean 'guidance'"),
        (["steps=1.5"], "is not a setting with values"),
        (["guidance"], "is not a setting with values"),
        (["steps=1", "steps=2"], "swept twice"),
        (["checkpoint=3"], "takes no values"),
        (["solver=dopri5", "steps=1,2"], "dopri5 chooses its own steps"),
        (["guidance=0.5"], "sampling: guidance"),
        (["eta=0.5"], "eta belongs to the solver ddim"),
        (["shift=1,2"], "shift is swept"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_is_drawn(
    run: str, real: Path, tmp_path: Path, over: list[str], message: str
) -> None:
    with pytest.raises(LumitokError, match=message):
        run_sweep([run], over, real, tmp_path / "out", count=2, sampling={"shift": 0.5})
    assert not (tmp_path / "out").exists()


def test_what_else_it_refuses(run: str, real: Path, tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match="named twice"):
        run_sweep([run, f"{run}/"], ["steps=1"], real, tmp_path / "out", count=2)
    with pytest.raises(LumitokError, match="at least 2 samples"):
        run_sweep([run], ["steps=1"], real, tmp_path / "out", count=1)
    with pytest.raises(LumitokError, match=r"'step=3' is not a sampling setting.*did you mean 'steps'"):
        parse_settings(["step=3"])


def test_the_command(run: str, real: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["sweep", run, "--over", "guidance=1,2", "--reference", str(real), "--out", str(out)]
    given += [
        "--per-class",
        "1",
        "--classes",
        "owl, 0",
        "--set",
        "guidance-interval=0.1,1",
        "--set",
        "steps=2",
    ]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "2 points in" in done.output
    assert "exactly 1 a class" in done.output
    table = json.loads((out / "sweep.json").read_text())
    assert [point["sampling"]["steps"] for point in table["points"]] == [2, 2]
    assert table["points"][0]["sampling"]["guidance_interval"] == [0.1, 1.0]
    folder = (out / table["points"][0]["results"]).parent
    assert len(open_picture_set(folder / "samples")) == 2
    again = CliRunner().invoke(app, given)
    assert "2 points in" in again.output
    assert "(2 read)" in again.output
