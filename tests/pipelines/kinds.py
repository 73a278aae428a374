"""A saved tiny tokenizer of every kind, for the tests of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from lumitok.config import ModelConfig
from lumitok.tokenizers import build_tokenizer
from tests.tokenizers.test_sizes import KINDS as SETTINGS

KINDS = ("vfm-vae", "frozen-ldm", "aligntok", "ldm", "rae")


def save_kind(kind: str, recipe: dict[str, Any], folder: Path) -> str:
    """Save a random tokenizer of a kind, and return its folder."""
    torch.manual_seed(0)
    changes = SETTINGS[kind]
    own = {"image_size": 32, "latent_channels": 4}
    config = (own if "type" in changes else recipe["model"]) | changes
    build_tokenizer(TypeAdapter(ModelConfig).validate_python(config)).save_pretrained(folder)
    return str(folder)
