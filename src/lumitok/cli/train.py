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
    bundle_encoder: Annotated[
        bool, typer.Option("--bundle-encoder", help="Copy the frozen encoder into the final tokenizer.")
    ] = False,
) -> None:
    """Train a tokenizer, a diffusion network on a tokenizer's latents, or both together.

    The run's folder is the recipe's `out`, runs/NAME by default.
    """
    from lumitok.config import EndToEndRecipe, Recipe, load_any

    changes = [*(changes or []), *(["training.bundle_encoder=true"] if bundle_encoder else [])]
    resolved = load_any(recipe, changes)  # Before torch is imported: a wrong key answers at once.
    from lumitok.training import train as run
    from lumitok.training import train_diffusion, train_end_to_end

    if isinstance(resolved, Recipe):
        typer.echo(f"The run: {run(resolved, resume=resume)}")
    elif isinstance(resolved, EndToEndRecipe):
        typer.echo(f"The run: {train_end_to_end(resolved, resume=resume)}")
    else:
        typer.echo(f"The run: {train_diffusion(resolved, resume=resume)}")
