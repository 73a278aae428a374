"""``lumitok train``."""

from __future__ import annotations

from typing import Annotated

import typer

from lumitok.cli.arguments import Changes, RecipeName


def train(
    recipe: RecipeName,
    changes: Changes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint, exactly where it stopped.")
    ] = False,
) -> None:
    """Train a tokenizer.

    The run's folder is the recipe's `out`, runs/NAME by default.
    """
    from lumitok.config import load_recipe

    resolved = load_recipe(recipe, changes or ())  # Before torch is imported: a wrong key answers at once.
    from lumitok.training import train as run

    typer.echo(f"The run: {run(resolved, resume=resume)}")
