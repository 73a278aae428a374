"""The runs of a report, each read once from its folder.

A run of any kind becomes a :class:`Run`; the sections of the report ask what is there, not of what kind
it is: one that trains a tokenizer and a network together has all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from lumitok.config import AnyRecipe, DiffusionRecipe, EndToEndRecipe, load_any
from lumitok.config.networks import AnyNetwork
from lumitok.config.saved import look_for_saved, read_config
from lumitok.data.latents import LatentOrigin
from lumitok.diffusion import DiffusionNetwork
from lumitok.errors import LumitokError
from lumitok.evaluation.curves import read_history
from lumitok.evaluation.results import FOLDER, Results
from lumitok.pipelines.network_information import network_config
from lumitok.training.journal import HISTORY, SAMPLE_SHEETS

SWEEP = "sweep.json"
"""What ``lumitok sweep`` calls its table."""


@dataclass(frozen=True)
class Run:
    """What a folder tells of a run; whatever it does not hold is empty.

    Attributes:
        name: unlike every other's in the report.
        path: as the user gave it.
        recipe: as it was resolved when the run began.
        history: records of ``history.jsonl``.
        results: what was evaluated, by the names of the files without ``.json``.
        pictures: PNG files beside the results.
        examples: held-out pictures (``input``) and their reconstructions, a folder a step, oldest first.
        tokenizer: folder of the newest tokenizer.
        config: of that tokenizer.
        network: settings of the diffusion network.
        latents: what is kept beside its weights of the latents that it learnt.
        samples: pictures drawn on the way, a folder a step, oldest first.
        sheets: the same, a labelled sheet a step.
        sweeps: tables of sweeps that lie in the run's folder.
    """

    name: str
    path: Path
    recipe: AnyRecipe | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Results] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    examples: list[Path] = field(default_factory=list)
    tokenizer: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    network: AnyNetwork | None = None
    latents: LatentOrigin | None = None
    samples: list[Path] = field(default_factory=list)
    sheets: list[Path] = field(default_factory=list)
    sweeps: list[Path] = field(default_factory=list)

    @property
    def network_alone(self) -> bool:
        """Whether it holds a diffusion network and no tokenizer, so that it reconstructs nothing."""
        from_network = self.network is not None and not isinstance(self.recipe, EndToEndRecipe)
        return from_network and self.tokenizer is None

    @property
    def seen(self) -> str:
        """What it is trained on: ``pictures`` or ``latents``."""
        return "latents" if self.network_alone else "pictures"

    @property
    def step(self) -> int | None:
        """Training steps done, where the run says so."""
        return int(self.history[-1]["step"]) if self.history else None

    @property
    def images(self) -> int | None:
        """Images seen, those of the runs it started from included."""
        return int(self.history[-1]["images"]) if self.history else None

    @property
    def total_steps(self) -> int | None:
        """Steps of all stages of its recipe."""
        if self.recipe is None:
            return None
        return sum(stage.images // stage.batch_size for stage in self.recipe.stages)

    @property
    def tokenizer_step(self) -> int | None:
        """Training step of the weights in ``tokenizer``."""
        if self.tokenizer is not None and self.tokenizer.parent.name.startswith("step-"):
            return int(self.tokenizer.parent.name.removeprefix("step-"))
        return self.step

    @cached_property
    def images_per_second(self) -> float | None:
        """Median over the log lines."""
        speeds = [speed for record in self.history if (speed := _speed(record)) > 0]
        return median(speeds) if speeds else None

    @cached_property
    def training_seconds(self) -> float | None:
        """Time spent on training steps, from the speeds in the history."""
        lines = [record for record in self.history if record["kind"] == "train"]
        if not lines:
            return None
        batch = self.recipe.stages[0].batch_size if self.recipe is not None else 0
        # A run that started from another's weights goes on with its count of images.
        before = lines[0]["images"] - lines[0]["step"] * batch if batch else 0
        seen = [before, *(record["images"] for record in lines)]
        return sum(
            float(now - then) / speed
            for (then, now), record in zip(pairwise(seen), lines, strict=True)
            if (speed := _speed(record)) > 0
        )


def _speed(record: dict[str, Any]) -> float:
    return float(record["values"].get("images_per_second") or 0.0) if record["kind"] == "train" else 0.0


# ------------------------------------------------------------------------------------------------
# Reading


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs from their folders and give each a name of its own.

    Raises:
        LumitokError: no folder was given, or one twice, or it is no run, or a file in it is damaged.
    """
    if not paths:
        raise LumitokError("a report needs at least one run; give the folders that `lumitok train` wrote")
    places = [path.resolve() for path in paths]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise LumitokError(f"the run '{paths[index]}' was given twice; leave one out")
    return [_read(path, name) for path, name in zip(paths, unique_names(paths), strict=True)]


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Name folders by the last parts of their paths: as few as set each apart from all the others."""
    # '.' and '..' name nothing by themselves.
    parts = [(path if path.name not in ("", "..") else path.resolve()).parts for path in paths]
    names = []
    for index, mine in enumerate(parts):
        others = parts[:index] + parts[index + 1 :]
        length = next(
            (n for n in range(1, len(mine)) if all(mine[-n:] != other[-n:] for other in others)), len(mine)
        )
        names.append("/".join(mine[-length:]))
    return names


def _read(path: Path, name: str) -> Run:
    if not path.is_dir():
        raise LumitokError(f"there is no run '{path}'; give a folder that `lumitok train` wrote")
    # A run has neither before its first checkpoint.
    tokenizer, network = _saved(path, "tokenizer"), _saved(path, "network")
    history, written = path / HISTORY, path / "recipe.yaml"
    if tokenizer is None and network is None and not history.is_file():
        raise LumitokError(
            f"'{path}' is not a run: it has neither {HISTORY} nor a tokenizer or a network; give a folder "
            "that `lumitok train` wrote"
        )
    recipe = load_any(str(written)) if written.is_file() else None
    # Where a tokenizer is trained, its reconstructions lie in `grids`.
    drawn = "grids" if isinstance(recipe, DiffusionRecipe) else ""
    drawn = SAMPLE_SHEETS if isinstance(recipe, EndToEndRecipe) else drawn
    config = network_config(str(network)) if network is not None else getattr(recipe, "network", None)
    found = [file for file in sorted((path / FOLDER).glob("*.json")) if file.name != SWEEP]
    tables = {*path.glob(SWEEP), *path.glob(f"*/{SWEEP}"), *path.glob(f"{FOLDER}/*/{SWEEP}")}
    return Run(
        name=name,
        path=path,
        recipe=recipe,
        history=_history(history) if history.is_file() else [],
        results={file.stem: Results.load(file) for file in found},
        pictures=[file for file in sorted((path / FOLDER).glob("*.png")) if file.stem != Path(SWEEP).stem],
        examples=sorted((path / "examples").glob("step-*")),
        tokenizer=tokenizer,
        config=read_config(tokenizer) if tokenizer is not None else {},
        network=config,
        latents=LatentOrigin.load(network) if network is not None else None,
        samples=sorted((path / "samples").glob("step-*")) if drawn else [],
        sheets=sorted((path / drawn).glob("step-*.png")) if drawn else [],
        sweeps=sorted(tables),
    )


def _saved(path: Path, part: str) -> Path | None:
    """The newest ``tokenizer`` or ``network`` of a folder, which may be one of them itself."""
    folder = look_for_saved(path, part)
    if folder is None:
        return None
    is_network = read_config(folder).get("_class_name") in DiffusionNetwork._kinds
    return folder if is_network == (part == "network") else None


def _history(path: Path) -> list[dict[str, Any]]:
    try:
        records = read_history(path)
    except UnicodeDecodeError as error:
        raise LumitokError(f"{path} is damaged: {error}") from None
    for record in records:
        if not (isinstance(record["values"], dict) and {"kind", "images"} <= record.keys()):
            raise LumitokError(
                f"{path} is damaged: the record of step {record['step']} needs 'kind', 'images' and, as a "
                "table, 'values'; remove the line"
            )
    return records
