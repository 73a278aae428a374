"""``lumitok fetch-weights``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lumitok.cli.tables import console, table

if TYPE_CHECKING:
    from lumitok.pipelines.weights import Weights


def fetch_weights(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="inception, vgg16, or encoders; by default all are listed.",
            show_default=False,
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch those that are named and not at hand.")
    ] = False,
) -> None:
    """Say which weights would be loaded, from where, with which hash.

    Without --download nothing is fetched.
    """
    from lumitok.errors import LumitokError

    if download and not names:
        raise LumitokError(
            "name what to download, such as `lumitok fetch-weights inception vgg16 --download`; all encoders "
            "together are many gigabytes"
        )
    from lumitok.pipelines.weights import describe, fetch

    if download:
        describe(names or ())  # A wrong name answers before anything is fetched.
        found = [fetch(name) for name in names or ()]
    else:
        found = describe(names or ())
    _print(found)
    # Outside of the table, which would break them over lines. Of all encoders they would be a page.
    for weights in found if names else ():
        place = f"lie at {weights.path}" if weights.path else f"would be put at {weights.target}"
        typer.echo(f"{weights.name}: {place}")


def _print(found: list[Weights]) -> None:
    listed = table("weights", "at hand", "MB", "sha256", "licence", "from")
    for weights in found:
        digest = f"{weights.sha256[:12]}..." if weights.sha256 else "the hub's"
        state = weights.fault or ("yes" if weights.path else "no")
        megabytes = f"{weights.size / 1e6:.0f}"
        listed.add_row(weights.name, state, megabytes, digest, weights.licence, weights.source)
    console().print(listed)
