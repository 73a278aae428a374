"""The loop's parts: average, learning rate, seeds, latent statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from lumitok.config import LossConfig, Recipe, StageConfig
from lumitok.data import open_pictures, validation_batches
from lumitok.evaluation.curves import read_history
from lumitok.tokenizers import build_tokenizer
from lumitok.training import measure_latents
from lumitok.training.checkpoint import Place
from lumitok.training.ema import EMA
from lumitok.training.journal import Journal
from lumitok.training.measure import to_pictures
from lumitok.training.seeds import Draw, StepDraws, derive_seed, seed_step
from lumitok.training.steps import learning_rate_factor


def test_average_has_the_half_life_of_the_paper() -> None:
    ema = EMA(nn.Linear(1, 1), ["weight"], half_life=160_000, ramp=0.05)
    # tokenizers.md of the reference facts, section 3: batch 512 gives 0.99778.
    assert ema.decay(20_000_000, 512) == pytest.approx(0.99778, abs=5e-6)
    assert ema.decay(512, 512) == 0.0
    assert ema.decay(1024, 512) == pytest.approx(0.5 ** (512 / (0.05 * 512)))


def test_average_follows_and_is_applied_for_a_while() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = EMA(module, ["weight"], half_life=10, ramp=1.0)
    nn.init.ones_(module.weight)
    ema.update(images_seen=30, batch_size=10)  # half-life min(10, 20): half of the way
    assert float(ema.average["weight"].detach()) == pytest.approx(0.5)
    with ema.applied():
        assert float(module.weight.detach()) == pytest.approx(0.5)
    assert float(module.weight.detach()) == 1.0


def stage(**changes: Any) -> StageConfig:
    return StageConfig(name="s", images=1, batch_size=1, losses=LossConfig(l1=1.0), **changes)


def test_learning_rate_warms_up_and_falls() -> None:
    constant = stage(warmup_steps=4)
    assert [learning_rate_factor(constant, s, 100) for s in (0, 3, 4, 99)] == [0.25, 1.0, 1.0, 1.0]
    cosine = stage(schedule="cosine")
    assert learning_rate_factor(cosine, 0, 100) == 1.0
    assert learning_rate_factor(cosine, 50, 100) == pytest.approx(0.505)
    assert learning_rate_factor(cosine, 100, 100) == pytest.approx(0.01)


def test_seeds_follow_from_the_place_alone() -> None:
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)
    assert (
        len({derive_seed(0, s, step, rank) for s in range(3) for step in range(3) for rank in range(2)}) == 18
    )
    seed_step(0, 1, 2)
    first = torch.rand(3)
    torch.rand(7)
    seed_step(0, 1, 2)
    assert torch.equal(first, torch.rand(3))


def test_latent_statistics_are_those_of_the_samples(recipe: Recipe, folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(recipe.model).eval()
    pictures = open_pictures(folder)
    mean, std, count = measure_latents(tokenizer, pictures, batch_size=5, limit=100, seed=3)
    assert count == 12
    generator = torch.Generator().manual_seed(derive_seed(3, 1))
    with torch.no_grad():
        z = torch.cat(
            [
                tokenizer.encode(to_pictures(pixels, torch.device("cpu"))).latent_dist.sample(generator)
                for pixels in validation_batches(pictures, 32, 5)
            ]
        )
    flat = z.transpose(0, 1).flatten(1).numpy().astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(std, flat.std(axis=1, ddof=1), rtol=1e-4)


def test_speed_counts_the_steps_and_not_the_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("lumitok.training.journal.time.monotonic", lambda: clock[0])
    with Journal(tmp_path, Accelerator(cpu=True), Place(), total_steps=4) as journal:
        clock[0] += 2
        with journal.pause():
            clock[0] += 50
        clock[0] += 2
        journal.record(Place(step=2, images=20), "s", "train", {})
        clock[0] += 5
        journal.record(Place(step=4, images=40), "s", "train", {})
    speeds = [record["values"]["images_per_second"] for record in read_history(tmp_path / "history.jsonl")]
    assert speeds == [5.0, 4.0]


def test_the_console_shows_each_term_of_a_tokenizer_s_total(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(tmp_path, Accelerator(cpu=True), Place(), total_steps=4) as journal:
        terms = {"l1": 0.45, "preservation": 2.0, "kl": 6305.0, "kl_weight": 3.0, "total": 6308.0}
        journal.record(Place(step=1, images=10), "s", "train", terms)
    said = capsys.readouterr().err
    assert "l1 0.45  preservation 2  kl 6305  total 6308" in said


def drawn(draws: StepDraws, use: Draw) -> list[float]:
    return [float(torch.rand((), generator=generator)) for generator in draws.pictures(use)]


def test_what_is_drawn_for_a_picture_does_not_depend_on_who_draws_it() -> None:
    whole = drawn(StepDraws(0, 1, 5, first=0, count=8), Draw.POSTERIOR)
    halves = [drawn(StepDraws(0, 1, 5, first, 4), Draw.POSTERIOR) for first in (0, 4)]
    assert halves[0] + halves[1] == whole
    assert len(set(whole)) == 8


@pytest.mark.parametrize("other", [(1, 1, 5), (0, 2, 5), (0, 1, 6)])
def test_draws_differ_by_seed_stage_step_and_use(other: tuple[int, int, int]) -> None:
    draws = StepDraws(0, 1, 5, first=0, count=4)
    assert not set(drawn(draws, Draw.REAL)) & set(drawn(StepDraws(*other, 0, 4), Draw.REAL))
    assert not set(drawn(draws, Draw.REAL)) & set(drawn(draws, Draw.FAKE))


def test_what_all_pictures_share_is_the_same_on_every_process() -> None:
    first, second = (StepDraws(0, 1, 5, first, 4) for first in (0, 4))
    for use in Draw:
        one, two = (float(torch.rand((), generator=draws.shared(use))) for draws in (first, second))
        assert one == two
        assert first.numpy(use).random() == second.numpy(use).random()
        assert one not in drawn(first, use)
