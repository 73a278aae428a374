from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lumitok.config import EncoderConfig
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.losses.alignment import alignment, alignment_targets


def encoder(name: str = "dinov2-small", **settings: Any) -> FoundationEncoder:
    torch.manual_seed(0)
    tiny = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    return FoundationEncoder(
        EncoderConfig(name=name, weights="random", timm_kwargs=tiny, **{"scale": 0.875, **settings})
    )


def test_alignment_is_the_negative_cosine_of_each_sample() -> None:
    targets = torch.randn(3, 5, 8)
    torch.testing.assert_close(alignment(7 * targets, targets), -torch.ones(3))
    mixed = targets.clone()
    mixed[0] *= -1
    mixed[1, :2] = 0
    torch.testing.assert_close(alignment(mixed, targets), torch.tensor([1.0, -0.6, -1.0]))


def test_no_gradient_reaches_the_targets() -> None:
    projected, targets = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(2))
    alignment(projected, targets).sum().backward()
    assert projected.grad is not None
    assert targets.grad is None


def test_tokens_that_do_not_fit() -> None:
    with pytest.raises(LumitokError, match=r"\(2, 16, 8\) and the encoder gives \(2, 9, 8\)"):
        alignment(torch.zeros(2, 16, 8), torch.zeros(2, 9, 8))


def test_targets_are_repas() -> None:
    """Normalised first, then resized without antialias; the last block's tokens with the final norm."""
    model, pixels = encoder(), torch.rand(2, 3, 64, 64)
    normalised = (pixels - model.mean) / model.std
    resized = F.interpolate(normalised, size=56, mode="bicubic")
    expected = model(resized * model.std + model.mean, scaled=False)
    tokens = alignment_targets(model, pixels)
    assert tokens.shape == (2, 16, 48)
    torch.testing.assert_close(tokens, expected.maps[0].flatten(2).mT, atol=1e-5, rtol=1e-4)
    with_class = alignment_targets(model, pixels, class_token=True)
    torch.testing.assert_close(with_class[:, 0], expected.tokens[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(with_class[:, 1:], tokens)
    antialiased = model(pixels).maps[0].flatten(2).mT
    assert float((antialiased - tokens).abs().max()) > 1e-3


def test_targets_of_pictures_at_the_encoders_size() -> None:
    model, pixels = encoder(scale=1.0), torch.rand(1, 3, 56, 56)
    assert torch.equal(alignment_targets(model, pixels), model(pixels).maps[0].flatten(2).mT)


def test_an_encoder_that_has_not_what_is_asked() -> None:
    with pytest.raises(LumitokError, match=r"one layer of its encoder, not layers \[1, -1\]"):
        alignment_targets(encoder(layers=[1, -1]), torch.rand(1, 3, 64, 64))
    siglip = encoder("siglip2-base-patch16-256", scale=1.0)
    with pytest.raises(LumitokError, match="has no class token"):
        alignment_targets(siglip, torch.rand(1, 3, 64, 64), class_token=True)
