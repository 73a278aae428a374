"""``lumitok recipes``."""

from __future__ import annotations

from lumitok.cli.tables import console, table


def recipes() -> None:
    """List the recipes that come with lumitok."""
    from lumitok.config import load_any, recipe_names

    listed = table("name", "about")
    for name in recipe_names():
        listed.add_row(name, load_any(name).about)
    console().print(listed)
