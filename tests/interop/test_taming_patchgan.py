"""Names and sizes of VQGAN's PatchGAN; that it computes the same is in ``tests/parity``."""

from __future__ import annotations

import pytest
import torch

from lumitok.config import PatchDiscriminatorConfig
from lumitok.interop.taming_patchgan import (
    SIZES,
    UNREAD,
    first_channels,
    official_key,
    official_keys,
    strided_layers,
)
from lumitok.losses.discriminators.patch import PatchDiscriminator
from tests.parity.fixtures import Fixture


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_the_sizes_are_read_from_the_keys(layers: int) -> None:
    config = PatchDiscriminatorConfig.model_validate({**SIZES, "channels": 2, "strided_layers": layers})
    ours = PatchDiscriminator(config).state_dict()
    official = {official_key(name): value for name, value in ours.items()}
    assert len(official) == len(ours)
    assert (first_channels(official), strided_layers(official)) == (2, layers)
    assert (first_channels({"main.0.weight": torch.zeros(0)}), strided_layers({})) == (64, 1)


def test_the_keys_are_the_official_code_s() -> None:
    n = Fixture("taming_patchgan")
    sizes = {"channels": first_channels(n.weights), "strided_layers": strided_layers(n.weights)}
    assert sizes == {
        k: n.arguments[a] for k, a in zip(sizes, ("first_channels", "strided_layers"), strict=True)
    }
    ours = PatchDiscriminator(PatchDiscriminatorConfig.model_validate({**SIZES, **sizes})).state_dict()
    keys = official_keys(f"patch.{name}" for name in ours)
    assert set(keys.values()) == {key for key in n.weights if not key.endswith(UNREAD)}
    assert all(ours[name.removeprefix("patch.")].shape == n.weights[key].shape for name, key in keys.items())
