"""The benchmarks of diffusion, gone through at tiny sizes and without the official code."""

from __future__ import annotations

import importlib
import os
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lumitok.config.sampling import SamplingConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ["--depth", "1", "--width", "16", "--batch", "2", "--rounds", "1"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> partial[ModuleType]:
    # As scripts they find each other beside them, and so do the processes that they start.
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # The benchmark sets it; this puts it back.
    return partial(importlib.import_module)


@pytest.fixture
def here(load: partial[ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each way in this process: starting others takes seconds."""
    rounds = load("alternating").Rounds

    def in_turn(ways: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {name: rounds(make()(), [2.0], [1.0]) for name, make in ways.items()}

    for name in ("lightningdit_step", "guidance_interval"):
        monkeypatch.setattr(load(name), "in_turn", in_turn)


@pytest.mark.usefixtures("here")
def test_a_training_step_is_timed(load: partial[ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    load("lightningdit_step").main([*TINY, "--precision", "fp32"])
    rows = capsys.readouterr().out.splitlines()
    # At the start the network predicts zero: the loss is the mean square of data - noise, about 2.
    assert float(rows[1].split()[-1]) == pytest.approx(2.0, abs=0.2)
    assert rows[3].split() == ["lumitok,", "eager", "1.000", "1.000", "1.000", "1.00", "2.000", "1.00"]


@pytest.mark.usefixtures("here")
def test_sampling_is_timed_with_and_without_an_interval(
    load: partial[ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    load("guidance_interval").main([*TINY, "--steps", "4"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[1] == "the interval alone allows 1.33"
    assert [row.split()[1] for row in rows[3:5]] == ["all", "eager"]


def test_what_an_interval_leaves_out_is_counted(load: partial[ModuleType]) -> None:
    allowed = load("guidance_interval").allowed
    assert allowed(SamplingConfig(steps=10)) == 1
    assert allowed(SamplingConfig(steps=10, guidance_interval=(0.45, 1.0))) == 2 * 10 / (10 + 5)


def test_each_way_has_a_process_of_its_own(load: partial[ModuleType]) -> None:
    ways = {"it": partial(partial, os.getpid)}  # What builds os.getpid, to be called and timed.
    found = load("alternating").in_turn(ways, rounds=2, threads=1, report=False)["it"]
    assert found.first != os.getpid()
    assert len(found.wall) == len(found.processor) == 2


def test_what_is_no_checkout_is_refused(load: partial[ModuleType], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no models/lightningdit\.py"):
        load("alternating").put_first(tmp_path)


def test_ways_to_attend_are_timed_and_told_apart_by_their_errors(
    load: partial[ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("attention")
    module.main(["--tokens", "32", "--rounds", "1"])
    rows = [row.split() for row in capsys.readouterr().out.splitlines()[2:]]
    errors = {" ".join(row[1:-4]): [float(value.rstrip("%")) for value in row[-2:]] for row in rows}
    assert list(errors) == list(module.WAYS)
    assert max(errors["lumitok"]) < 0.65 < min(errors["rounded scores"])
