"""Checkpoints that survive: half written ones, the last and the best, a full disk."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from lumitok.config import Recipe, save_recipe
from lumitok.errors import LumitokError
from lumitok.training import train
from lumitok.training.checkpoint import (
    Best,
    checkpoints,
    load_best,
    load_trained_state,
    remove_old,
    save_best,
    write_checkpoint,
)
from tests.training.compare import assert_same, changed, stopped_at


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoints(run)]


def write(run: Path, step: int) -> None:
    write_checkpoint(run, step, lambda folder: (folder / "training" / "x").write_text(str(step)) and None)


def test_a_folder_gets_its_name_only_when_all_of_it_is_written(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "training" / "x").write_text("half")
        assert names(tmp_path) == []
        raise KeyboardInterrupt  # As a kill would, it leaves what is there.

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 3, fill)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003.partial"]
    assert names(tmp_path) == []
    write(tmp_path, 4)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_checkpoint_half_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        write(tmp_path, step)

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("lumitok.training.checkpoint.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_old(tmp_path, keep=1)
    assert names(tmp_path) == ["step-00000002"]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, step)
        if step == 2:
            save_best(tmp_path, Best("psnr", 20.0, step))
        remove_old(tmp_path, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    save_best(tmp_path, Best("psnr", 21.0, 5))
    remove_old(tmp_path, keep=2)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]


def test_lower_is_better_for_l1_alone() -> None:
    assert Best("l1", 0.2, 1).beaten_by(0.1)
    assert not Best("l1", 0.1, 1).beaten_by(0.2)
    assert Best("psnr", 10.0, 1).beaten_by(11.0)
    assert not Best("ssim", 0.5, 1).beaten_by(0.5)


def test_a_run_marks_its_best_checkpoint(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(20.0, 0.1), (30.0, 0.1), (25.0, 0.1)])

    def measured(*_: object, **__: object) -> tuple[dict[str, float], list[object]]:
        psnr, l1 = next(scores)
        return {"psnr": psnr, "ssim": 0.5, "l1": l1}, []

    monkeypatch.setattr("lumitok.training.tokenizer_loop.held_out_quality", measured)
    run = train(
        changed(
            recipe,
            training__best="psnr",
            training__keep=1,
            training__validate_every=2,
            training__checkpoint_every=0,
        )
    )
    assert names(run) == ["step-00000004", "step-00000006"]
    assert load_best(run) == Best("psnr", 30.0, 4)
    assert json.loads((run / "checkpoints" / "best.json").read_text())["metric"] == "psnr"


def test_a_full_disk_is_said_and_the_old_checkpoints_stay_whole(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(changed(recipe, out=str(tmp_path / "whole")))
    calls = {"count": 0}

    def full(path: Path, text: object) -> None:
        calls["count"] += 1
        if calls["count"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        (path / "place.json").write_text(json.dumps(text.__dict__))

    with monkeypatch.context() as patch:
        patch.setattr("lumitok.training.tokenizer_loop.save_place", full)
        with pytest.raises(LumitokError) as caught:
            train(recipe)
    run = Path(recipe.out)
    assert "step 6 could not be written" in str(caught.value)
    assert "the disk is full; the last whole one is" in str(caught.value)
    assert names(run) == ["step-00000002", "step-00000004"]
    assert not list((run / "checkpoints").glob("*.partial"))
    train(recipe, resume=True)
    assert_same(run / "checkpoints/step-00000006", whole / "checkpoints/step-00000006")


def test_the_system_refuses_to_write_and_the_run_says_so(recipe: Recipe, tmp_path: Path) -> None:
    # A limit on the size of files stands for a full disk: the real call fails, no stand-in.
    save_recipe(changed(recipe, training__checkpoint_every=3), tmp_path / "r.yaml")
    script = f"""
        import resource
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from lumitok.config import load_recipe
        from lumitok.errors import LumitokError
        from lumitok.training import tokenizer_loop
        real = tokenizer_loop.write_checkpoint
        def limited(run, step, fill):
            size = 20_000 if step == 6 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return real(run, step, fill)
        tokenizer_loop.write_checkpoint = limited
        try:
            tokenizer_loop.train(load_recipe({str(tmp_path / "r.yaml")!r}))
        except LumitokError as error:
            print("SAID", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=240
    )
    assert "SAID the checkpoint of step 6 could not be written" in done.stdout, done.stderr
    assert "the disk is full" in done.stdout
    assert names(Path(recipe.out)) == ["step-00000003"]


def test_weights_that_do_not_fit_are_all_named() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(LumitokError, match=r"missing bias; left over other; weight is \(1, 2\), not"):
        load_trained_state(module, {"weight": torch.zeros(1, 2), "other": torch.zeros(1)}, Path("here"))
    load_trained_state(module, {"weight": torch.ones(2, 2)}, Path("here"), new=("bias",))
    assert float(module.weight.detach().sum()) == 4.0


def test_a_checkpoint_without_a_file_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    run = train(changed(recipe, stages__0__images=16))
    stopped = stopped_at(run, 2, tmp_path / "stopped")
    (stopped / "checkpoints/step-00000002/training/ema.safetensors").unlink()
    with pytest.raises(LumitokError, match=r"ema\.safetensors is missing"):
        train(changed(recipe, out=str(stopped), stages__0__images=16), resume=True)
