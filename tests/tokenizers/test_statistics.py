"""Encode, whiten, un-whiten, decode: nothing is lost, with the statistics of a folder that was stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lumitok import Tokenizer
from lumitok.data import open_pictures, validation_batches
from lumitok.training import measure_latents
from lumitok.training.measure import to_pictures
from tests.pipelines.kinds import KINDS, save_kind


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of 40 x 36 px."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(6):
        patches = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        patches.resize((40, 36), Image.Resampling.NEAREST).save(folder / f"{index}.png")
    return folder


def train(tokenizer: Tokenizer, x: torch.Tensor) -> None:
    """A few steps on L1, so that no weight stands where it was initialised."""
    parameters = [p for n, p in tokenizer.named_parameters() if n in set(tokenizer.trainable_names())]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    tokenizer.train()
    for _ in range(3):
        loss = (tokenizer(x).sample - x).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_whitening_and_back_is_the_identity_on_what_is_decoded(
    kind: str, tiny_recipe: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_pretrained(save_kind(kind, tiny_recipe, tmp_path / "start"))
    found = open_pictures(pictures)
    size = int(tokenizer.config.image_size)
    x = to_pictures(next(iter(validation_batches(found, size, 6))), torch.device("cpu"))
    train(tokenizer, x)
    tokenizer.set_latent_statistics(*measure_latents(tokenizer, found, batch_size=4, limit=6, seed=0))
    tokenizer.save_pretrained(tmp_path / "trained")
    opened = Tokenizer.from_pretrained(tmp_path / "trained")
    spec = opened.latent_spec
    with torch.no_grad():
        z = opened.encode(x).latent_dist.sample(torch.Generator().manual_seed(1))
        white = spec.whiten(z)
        again = spec.unwhiten(white)
        scale = float(z.abs().max())
        torch.testing.assert_close(again, z, rtol=0, atol=4e-7 * scale)
        torch.testing.assert_close(opened.decode(again).sample, opened.decode(z).sample, rtol=0, atol=1e-4)
    # And it is a whitening, not merely something that can be taken back.
    flat = white.transpose(0, 1).flatten(1)
    assert flat.mean(dim=1).abs().max() < 0.7
    assert (flat.std(dim=1) - 1).abs().max() < 0.5
    assert not torch.allclose(white, z, atol=1e-2)
