"""Arguments that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A name from `lumitok recipes`, or a YAML file.")
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the recipe, such as data.train=photos stages.0.batch_size=16.",
        show_default=False,
    ),
]
