"""The command ``lumitok``: a file a verb, and no mathematics.

The verbs import what they need when they run, so that ``lumitok --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from lumitok import __version__
from lumitok.cli.cost import cost
from lumitok.cli.demo import demo
from lumitok.cli.doctor import doctor
from lumitok.cli.encode import convert_latents, encode
from lumitok.cli.evaluate import evaluate
from lumitok.cli.export import export
from lumitok.cli.fetch_weights import fetch_weights
from lumitok.cli.import_weights import import_weights
from lumitok.cli.info import info
from lumitok.cli.recipes import recipes
from lumitok.cli.reconstruct import reconstruct
from lumitok.cli.report import report
from lumitok.cli.sample import sample
from lumitok.cli.show import show
from lumitok.cli.statistics import statistics
from lumitok.cli.sweep import sweep
from lumitok.cli.train import train
from lumitok.errors import LumitokError

app = typer.Typer(
    name="lumitok",
    help="Image tokenizers for latent diffusion: train them, look at them, use them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # Plain help: rich's panels make `lumitok --help` three times as slow.
    # A traceback that reaches the user is our bug: they should be able to paste it as it is.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    demo,
    doctor,
    recipes,
    show,
    info,
    cost,
    train,
    encode,
    convert_latents,
    reconstruct,
    sample,
    sweep,
    report,
    fetch_weights,
    import_weights,
    export,
    statistics,
):
    app.command()(verb)
app.add_typer(evaluate, name="evaluate")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lumitok {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version  # Its callback has done the work.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what a user can mend is one sentence on stderr and exit code 2."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="lumitok")
    except LumitokError as error:
        print(f"lumitok: {error}", file=sys.stderr)
        raise SystemExit(2) from None
