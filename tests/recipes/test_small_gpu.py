"""Recipes for one small GPU: the papers' models, few pictures at a time, headers whose sums add up."""

from __future__ import annotations

import re

import pytest
import torch

from lumitok.config import RECIPES, load_recipe
from lumitok.tokenizers import build_tokenizer

# Recipe -> the paper's recipe of the same model.
PAPERS = {
    "vfm-vae": "vfm-vae/imagenet256/all",
    "aligntok": "aligntok/imagenet256/all",
    "va-vae": "va-vae/imagenet256/long/all",
    "vae": "vae/imagenet256/f16d32",
    "sd-vae": "vae/imagenet256/sd-vae-f8d4",
    "rae": "rae/imagenet256/dinov2-base-registers",
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_model_is_the_papers_and_the_weights_are_asked_for(name: str) -> None:
    recipe, paper = load_recipe(f"small-gpu/{name}"), load_recipe(PAPERS[name])
    assert recipe.model == paper.model
    assert recipe.init == f"runs/{paper.name}"
    (stage,) = recipe.stages
    assert stage.batch_size == 64
    assert stage.batch_size // recipe.training.accumulation <= 8
    assert (stage.begin, stage.average, recipe.training.precision) == ("averaged", "restart", "bf16")
    assert stage.losses.gan_from == 0


@pytest.mark.parametrize("name", ["vfm-vae", "aligntok", "vae", "sd-vae", "rae"])
def test_the_estimate_of_memory_adds_up(name: str) -> None:
    text = " ".join(
        line.lstrip("# ") for line in (RECIPES / f"small-gpu/{name}.yaml").read_text().splitlines()
    )
    recipe = load_recipe(f"small-gpu/{name}")
    said = re.search(r"ESTIMATED and not measured on any GPU: about (\d+) GB\. ([\d.]+) M trained", text)
    assert said is not None
    with torch.device("meta"):
        trained = sum(build_tokenizer(recipe.model, load_weights=False).parts().values()) / 1e6
    assert float(said[2]) == pytest.approx(trained, abs=0.06)
    arithmetic = text[said.end() : text.index("counted as")]
    first = re.search(r"average\) ([\d.]+)", arithmetic)
    assert first is not None
    assert float(first[1]) == pytest.approx(20 * trained / 1000, abs=0.06)
    terms = [float(number) for number in re.findall(r" (\d+\.\d)(?=[,;.])", arithmetic)]
    pictures = re.search(r"; (\d+) pictures at ([\d.]+) GB ([\d.]+),", arithmetic)
    assert pictures is not None
    assert int(pictures[1]) == recipe.stages[0].batch_size // recipe.training.accumulation
    assert float(pictures[3]) == pytest.approx(int(pictures[1]) * float(pictures[2]), abs=0.41)
    assert sum(terms) == pytest.approx(float(said[1]), abs=0.6)
    for option in re.findall(r"training\.accumulation=(\d+)", text):
        assert recipe.stages[0].batch_size % int(option) == 0
