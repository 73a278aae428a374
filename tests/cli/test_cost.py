"""``lumitok cost``: what is printed; what is measured is tested with the pipeline."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from lumitok.cli import app, main
from lumitok.pipelines.cost import Cost, Costs, Parameters, Request, StageCost, VerbCost
from lumitok.pipelines.cost_child import Measurement
from lumitok.pipelines.cost_networks import StageParameters


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the pipeline is asked; it answers with made-up numbers."""
    calls: list[Any] = []
    done = Measurement("measured", 0.0123, 0.0111, 0.0222, 5, 300 * 2**20)
    verbs = [
        VerbCost("encode", 256, 1, 81.03, done),
        VerbCost("encode", 512, 8, 361.9, Measurement("over the limit", note="not run: too much")),
        VerbCost("decode", 256, 1, 126.1, Measurement("out of memory")),
    ]
    stages = [StageCost("first", 64, StageParameters(41_490_000, 2_760_000, 319_000_000), done, 1.5)]
    parameters = Parameters(304_435_296, 41_417_603, 345_852_899, 0)
    cost = Cost("some/recipe", "aligntok", "fp32", parameters, verbs, stages)
    machine = {"system": "Linux", "cpu: Some Processor": "fp32", "a run computes on": "cpu"}

    def answer(arguments: list[str], request: Request, say: Any) -> Costs:
        calls.append((arguments, request))
        say("encode 256 px")
        return Costs("cpu", 2, 30.0, [cost], machine, {"lumitok": "1", "torch": "2"}, made="today")

    monkeypatch.setattr("lumitok.pipelines.cost.measure_costs", answer)
    return calls


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["cost", *arguments], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result


def test_tables(asked: list[Any]) -> None:
    result = run("some/recipe", "a.b=1", "--sizes", "256,512", "--batch-sizes", "1", "--no-training")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["decoder", "41.42"] in rows
    assert ["256", "px", "1", "81.03", "12.3", "11.1", "to", "22.2", "300"] in rows
    assert ["512", "px", "8", "361.90", "over", "30", "s", "not", "run:", "too", "much"] in rows
    assert ["256", "px", "1", "126.10", "out", "of", "memory"] in rows
    assert ["first", "64", "44.25", "2.76", "319.00", "0.012", "0.011", "to", "0.022", "300", "1.50"] in rows
    assert "cpu: Some Processor; 2 threads; Linux; lumitok 1, torch 2; today" in result.stdout
    assert "All weights are random: cost does not depend on them." in result.stdout
    assert "encode 256 px" in result.stderr
    assert asked == [(["some/recipe", "a.b=1"], Request(sizes=[256, 512], batch_sizes=[1], training=False))]


def test_json(asked: list[Any]) -> None:
    options = ("--device", "cpu", "--precision", "fp32", "--repeats", "3", "--limit-seconds", "9")
    printed = json.loads(run("a", "b", "--json", "--train-batch", "8", *options).stdout)
    assert printed["costs"][0]["verbs"][0]["measured"]["seconds"] == 0.0123
    assert {"machine", "versions", "made", "threads", "how"} <= printed.keys()
    request = Request((256, 512, 1024), (1, 4, 8), "cpu", "fp32", 3, 9.0, train_batch=8)
    ((arguments, given),) = asked
    assert arguments == ["a", "b"]
    assert Request(**{**vars(given), "sizes": (256, 512, 1024), "batch_sizes": (1, 4, 8)}) == request


def test_sizes_that_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cost", "vfm-vae/demo", "--sizes", "256x256"])
    assert capsys.readouterr().err == (
        "lumitok: --sizes is whole numbers with commas, such as 256,512; not '256x256'\n"
    )
