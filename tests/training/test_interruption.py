"""Runs that are ended from outside: SIGTERM saves and leaves, kill -9 loses nothing but time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lumitok.config import Recipe, save_recipe
from lumitok.training import tokenizer_loop, train
from lumitok.training.checkpoint import checkpoints
from lumitok.training.interruption import Interruption
from tests.training.compare import assert_same, changed, history


@pytest.fixture(autouse=True)
def _python_handles_ctrl_c() -> Iterator[None]:
    """Also where the tests run in the background, with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_run_goes_on_as_if_nothing_was(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = train(changed(recipe, out=str(tmp_path / "whole")))
    calls = {"count": 0}
    real = tokenizer_loop.train_step

    def signalled(*arguments: object) -> None:
        calls["count"] += 1
        if calls["count"] == 3:
            os.kill(os.getpid(), number)
        real(*arguments)  # type: ignore[arg-type]

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_loop, "train_step", signalled)
        with pytest.raises(SystemExit) as left:
            train(recipe)
    assert left.value.code == 128 + number
    assert signal.getsignal(number) is before
    run = Path(recipe.out)
    assert [path.name for path in checkpoints(run)] == ["step-00000002", "step-00000003"]
    train(recipe, resume=True)
    assert_same(run / "checkpoints/step-00000006", whole / "checkpoints/step-00000006")
    assert history(run) == history(whole)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
    assert interruption.asked is None


def test_only_a_second_ctrl_c_acts_at_once() -> None:
    with Interruption() as interruption:
        for _ in range(3):  # From a scheduler and a launcher.
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_is_killed_three_times_ends_as_one_that_was_not(recipe: Recipe, tmp_path: Path) -> None:
    first = recipe.stages[0].model_dump() | {"images": 40}
    second = first | {"name": "second", "images": 40, "losses": {"l1": 1.0, "vf": 1.0}}
    long = changed(recipe, stages=[first, second], training__checkpoint_every=3, training__keep=2)
    whole = train(changed(long, out=str(tmp_path / "whole"))) / "checkpoints/step-00000020"
    save_recipe(long, tmp_path / "r.yaml")
    run = Path(long.out)
    command = [sys.executable, "-m", "lumitok", "train", str(tmp_path / "r.yaml"), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Moments: just after a checkpoint's folder was begun, in the middle of steps, in the second stage.
    for moment in (lambda: checkpoints(run), lambda: _step(run) >= 6, lambda: _step(run) >= 12):
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(command, env=environment, stderr=said)
        deadline = time.monotonic() + 120
        while not moment() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None, (tmp_path / "said").read_text()
        process.kill()
        process.wait()
    train(long, resume=True)
    assert_same(run / "checkpoints/step-00000020", whole)
    assert history(run) == history(whole.parent.parent)


def _step(run: Path) -> int:
    path = run / "history.jsonl"
    return path.read_text().count('"kind": "train"') * 2 if path.is_file() else 0
