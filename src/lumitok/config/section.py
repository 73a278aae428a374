"""What every part of a recipe is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values keep the type that is written here."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)
