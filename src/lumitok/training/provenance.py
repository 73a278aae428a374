"""What a run writes of itself into its tokenizer's folder and card."""

from __future__ import annotations

from pathlib import Path

from lumitok import __version__
from lumitok.evaluation.curves import read_history
from lumitok.evaluation.image_quality import PROTOCOL
from lumitok.tokenizers.provenance import Measurement, Provenance
from lumitok.training.begin import number_format
from lumitok.training.journal import HISTORY
from lumitok.training.setup import Run


def provenance_of(run: Run) -> Provenance:
    """What a run has done so far: its recipe, its pictures, and its last measurement.

    The measurement is read from the history, which a run that is taken up again has too.
    """
    recipe = run.recipe
    limit = recipe.training.validation_images
    data = recipe.data.validation
    return Provenance(
        recipe=recipe.name or _name(recipe.out),
        stages=[stage.name for stage in recipe.stages],
        started_from=_name(recipe.init) if recipe.init else "",
        data=_name(recipe.data.train),
        pictures=len(run.pictures),
        left_out=dict(run.pictures.left_out),
        step=run.place.step,
        images=run.place.images,
        held_out={
            name or _name(data if isinstance(data, str) and data else recipe.data.train): min(
                limit, len(found)
            )
            for name, found in run.held_out.items()
        },
        measured=_last_measurement(run),
        lumitok=__version__,
    )


def _last_measurement(run: Run) -> Measurement | None:
    path = run.folder / HISTORY
    records = read_history(path) if path.is_file() else []
    measured = [record for record in records if record["kind"] == "validation"]
    if not measured:
        return None
    last = measured[-1]
    return Measurement(
        values=last["values"],
        protocol=(
            "Averaged weights, reconstructions of the posterior's mean, centre-cropped to "
            f"{run.recipe.model.image_size} px, in {number_format(run.accelerator)}. {PROTOCOL}"
        ),
        step=last["step"],
    )


def _name(path: str) -> str:
    """The last part of a path: the name alone, never where it lies."""
    return Path(path).expanduser().resolve().name
