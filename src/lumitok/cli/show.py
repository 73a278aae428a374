"""``lumitok show``."""

from __future__ import annotations

import typer

from lumitok.cli.arguments import Changes, RecipeName


def show(recipe: RecipeName, changes: Changes = None) -> None:
    """Print a recipe in full, defaults and changes included."""
    from lumitok.config import dump_recipe, load_any

    typer.echo(dump_recipe(load_any(recipe, changes or ())), nl=False)
