"""Frozen vision foundation models: pixels to feature maps at chosen layers.

``encoder_names``, ``describe_weights`` and the other names of the registry load without torch, so
that the command line stays quick; the encoder itself brings torch and timm with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lumitok.foundation.registry import WeightsRecord, describe_weights, encoder_names

if TYPE_CHECKING:
    from lumitok.foundation.encoder import (
        Features,
        FoundationEncoder,
        frozen_encoders,
        frozen_prefixes,
        trained_state,
    )

__all__ = [
    "Features",
    "FoundationEncoder",
    "WeightsRecord",
    "describe_weights",
    "encoder_names",
    "frozen_encoders",
    "frozen_prefixes",
    "trained_state",
]


def __getattr__(name: str) -> Any:
    if name in ("Features", "FoundationEncoder", "frozen_encoders", "frozen_prefixes", "trained_state"):
        from lumitok.foundation import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
