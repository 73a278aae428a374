"""What every part of a recipe is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values keep the type that is written here."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


def by_dotted_keys(settings: Mapping[str, Any], whole: tuple[str, ...] = ()) -> dict[str, Any]:
    """Flatten settings: ``{"encoder": {"scale": 2}}`` becomes ``{"encoder.scale": 2}``.

    Args:
        settings: sections in sections.
        whole: names whose values stay as they are, at any depth.
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and key not in whole:
            flat |= {f"{key}.{name}": inner for name, inner in by_dotted_keys(value, whole).items()}
        else:
            flat[key] = value
    return flat
