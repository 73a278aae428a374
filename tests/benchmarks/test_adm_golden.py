"""ADM's golden table, gone through with made-up weights and pictures: the way is tested, not the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch_fidelity")

from benchmarks.adm_golden import GOLDEN, TOLERANCE, compare, main, measure
from lumitok.errors import LumitokError
from lumitok.evaluation.protocol import PictureSet, Protocol
from lumitok.evaluation.results import Number, Results
from lumitok.pipelines.evaluate_generation import Settings
from tests.evaluation.inception import write_random_inception


def results(batch: str, **changed: float) -> Results:
    protocol = Protocol(data=PictureSet("samples", 50_000, ""))
    values = GOLDEN[batch] | changed
    return Results("generation", "samples", [Number(name, v, protocol) for name, v in values.items()])


@pytest.mark.parametrize("batch", GOLDEN)
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_number_outside_its_tolerance_is_seen(batch: str, name: str) -> None:
    assert all(row.agrees for row in compare(results(batch), batch))
    for sign in (-1, 1):
        inside, outside = (
            results(batch, **{name: GOLDEN[batch][name] + sign * factor * TOLERANCE[name]})
            for factor in (0.9, 1.1)
        )
        assert all(row.agrees for row in compare(inside, batch))
        assert [row.name for row in compare(outside, batch) if not row.agrees] == [name]


def test_other_samples_have_no_golden_numbers() -> None:
    with pytest.raises(LumitokError, match="not for 'mine'"):
        compare(results(next(iter(GOLDEN))), "mine")


def test_the_command_runs_and_says_that_made_up_weights_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_random_inception(tmp_path / "made-up.pth")
    draw = np.random.default_rng(0)
    samples, real = (draw.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    path, reference = tmp_path / "admnet_guided_imagenet128.npz", tmp_path / "reference.npz"
    np.savez(path, samples)
    np.savez(
        reference,
        mu=np.zeros(2048),
        sigma=np.eye(2048),
        mu_s=np.zeros(2023),
        sigma_s=np.eye(2023),
        arr_0=real,
    )
    code = main(
        [str(path), str(reference), "--weights", str(weights), "--batch-size", "5"],
        verify=False,
        settings=Settings(split_size=4),
    )
    printed = capsys.readouterr().out
    assert code == 1
    assert [line.split()[0] for line in printed.splitlines()[-5:]] == [
        "IS",
        "FID",
        "sFID",
        "precision",
        "recall",
    ]
    assert printed.count("DIFFERS") >= 3
    with pytest.raises(
        LumitokError, match="starts with"
    ):  # Without `verify=False` only the published will do.
        measure(path, reference, weights=weights, settings=Settings(split_size=4))


def test_samples_of_an_unknown_name_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "mine.npz"), "reference.npz"])
