"""The points of a sweep: which settings are swept, which checkpoints stand on which line."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumitok.config import SamplingConfig
from lumitok.diffusion import find_network
from lumitok.errors import LumitokError, nearest
from lumitok.nn.folders import WEIGHTS, fetch_folder
from lumitok.pipelines.beside_network import changed_sampling, recipe_beside, sampling_beside
from lumitok.pipelines.report_runs import unique_names
from lumitok.pipelines.saved_step import network_step
from lumitok.training.checkpoint import checkpoints as saved_checkpoints

CHECKPOINT = "checkpoint"
SWEPT: dict[str, type[int] | type[float] | type[str]] = {
    "guidance": float,
    "steps": int,
    "solver": str,
    "shift": float,
    "class_guidance": float,
    "guidance_channels": int,
    "eta": float,
}
"""Settings that can be swept, and what their values are."""

Value = int | float | str
Over = dict[str, list[Value]]


@dataclass(frozen=True)
class Point:
    """One setting of one checkpoint.

    Attributes:
        checkpoint: as :func:`~lumitok.pipelines.sample.sample_pictures` takes it.
        model: what stands in the table and the legend: the run's name.
        step: training step of the network, where it is known.
        values: of what is swept, the step as ``checkpoint``.
        sampling: all settings, resolved.
        weights: sha256 of the file of the network's weights.
    """

    checkpoint: str
    model: str
    step: int | None
    values: dict[str, Value]
    sampling: SamplingConfig
    weights: str


def parse_over(given: Sequence[str]) -> Over:
    """Read ``guidance=1,1.5,2``, ``solver=euler,heun``, ``checkpoint``.

    Raises:
        LumitokError: nothing is swept, an unknown setting, a value that does not fit, a setting twice.
    """
    over: Over = {}
    for text in given:
        key, equals, values = text.partition("=")
        key = key.strip().replace("-", "_")
        if key not in (*SWEPT, CHECKPOINT):
            raise LumitokError(f"'{key}' cannot be swept{nearest(key, [*SWEPT, CHECKPOINT])}")
        if key in over:
            raise LumitokError(f"'{key}' is swept twice; name all of its values at once")
        if key == CHECKPOINT:
            if equals:
                raise LumitokError("checkpoint takes no values: name the run, or its checkpoints, instead")
            over[key] = []
            continue
        try:
            read = [SWEPT[key](value.strip()) for value in values.split(",")]
        except ValueError:
            raise LumitokError(
                f"'{text}' is not a setting with values parted by commas, such as guidance=1,1.5,2"
            ) from None
        over[key] = list(dict.fromkeys(read))
    if not over:
        raise LumitokError(f"name what is swept, such as guidance=1,1.5,2; known: {', '.join(SWEPT)}")
    return over


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """Read ``steps=50``, ``guidance_interval=0.1,1`` into changes of ``SamplingConfig``.

    Raises:
        LumitokError: no ``=``, or there is no such setting; the values are checked with the points.
    """
    settings: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in SamplingConfig.model_fields:
            raise LumitokError(
                f"'{text}' is not a sampling setting and its value, such as steps=50"
                f"{nearest(key, list(SamplingConfig.model_fields))}"
            )
        settings[key] = value.split(",") if key == "guidance_interval" else value
    return settings


def make_points(checkpoints: Sequence[str], over: Over, sampling: Mapping[str, Any]) -> list[Point]:
    """Every combination of what is swept, for every checkpoint; nothing is opened but small files.

    Args:
        checkpoints: runs, checkpoints, network folders, pipelines or hub ids. With ``checkpoint`` swept a run
            stands for all of its checkpoints.
        over: see :func:`parse_over`.
        sampling: changes of what the recipes say, for all points.

    Raises:
        LumitokError: a checkpoint is named twice or there is none, settings that do not fit together, or a
            step that nothing tells.
    """
    twice = [key for key in over if sampling.get(key) is not None]
    if twice:
        raise LumitokError(
            f"{twice[0]} is swept, so it has no one value for all points; leave one of the two out"
        )
    models = _models(checkpoints, CHECKPOINT in over)
    keys = [key for key in over if key != CHECKPOINT]
    points = []
    for model, checkpoint in models:
        folder = find_network(fetch_folder(checkpoint, None))
        beside = folder.parent if folder.name == "network" else None
        recipe = recipe_beside(beside)
        step, weights = network_step(checkpoint), _digest(folder / WEIGHTS)
        if CHECKPOINT in over and step is None:
            raise LumitokError(f"nothing tells the training step of '{checkpoint}'; name a run's checkpoints")
        for combination in itertools.product(*(over[key] for key in keys)):
            values = dict(zip(keys, combination, strict=True))
            changes = {**sampling, **values}
            settings = _settings(sampling_beside(beside, recipe), changes)
            if unheeded := sorted(settings.unheeded & over.keys()):
                swept = " and ".join(unheeded)
                raise LumitokError(f"{settings.solver} chooses its own steps; sweep {swept} of others")
            if step is not None and CHECKPOINT in over:
                values = {CHECKPOINT: step, **values}
            # In the order that they were named in, the checkpoint too.
            values = {key: values[key] for key in over}
            points.append(Point(checkpoint, model, step, values, settings, weights))
    return points


def slug(point: Point, digits: str) -> str:
    """A folder's name for a point, for people; the digits set it apart."""
    said = [point.model, *(f"{key}-{_shown(value)}" for key, value in point.values.items())]
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', '-'.join(said)).strip('-.')}-{digits}"


def line_of(point: Point, axis: str, models: int) -> str:
    """The name of the line that a point stands on, where ``axis`` is the horizontal one."""
    rest = [f"{key} {_shown(value)}" for key, value in point.values.items() if key != axis]
    return ", ".join([*([point.model] if models > 1 or not rest else []), *rest])


def digits_of(values: Any) -> str:
    """Eight digits that stand for plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


# ------------------------------------------------------------------------------------------------


def _models(checkpoints: Sequence[str], expand: bool) -> list[tuple[str, str]]:
    """The name of the line of each checkpoint, and the checkpoint."""
    if not checkpoints:
        raise LumitokError("a sweep needs at least one checkpoint")
    places = [Path(one).resolve() if Path(one).is_dir() else Path(one) for one in checkpoints]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise LumitokError(f"'{checkpoints[index]}' is named twice; leave one out")
    if not expand:
        return list(zip(unique_names([Path(one) for one in checkpoints]), checkpoints, strict=True))
    owners = [_run_of(one) for one in checkpoints]
    runs = list(dict.fromkeys(owners))
    names = dict(zip(runs, unique_names(runs), strict=True))
    found: dict[tuple[str, int | None], str] = {}
    for owner, one in zip(owners, checkpoints, strict=True):
        for checkpoint in _expanded(one):
            # The run's own network is the last checkpoint's.
            found.setdefault((names[owner], network_step(checkpoint)), checkpoint)
    return [(name, checkpoint) for (name, _), checkpoint in found.items()]


def _run_of(checkpoint: str) -> Path:
    path = Path(checkpoint)
    path = path.parent if path.name == "network" else path
    return path.parent.parent if path.parent.name == "checkpoints" else path


def _expanded(checkpoint: str) -> list[str]:
    """A run's checkpoints, oldest first, and the run itself; anything else is itself."""
    path = Path(checkpoint)
    saved = saved_checkpoints(path) if path.is_dir() else []
    last = [checkpoint] if not saved or (path / "network").is_dir() else []
    return [*(str(one) for one in saved), *last]


def _settings(sampling: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    # At guidance 1 autoguidance leads nowhere, and the point is one of the sweep all the same.
    without = changed_sampling(sampling, {**changes, "autoguidance": None})
    guide = changes.get("autoguidance", sampling.autoguidance)
    return changed_sampling(without, {"autoguidance": guide}) if without.guided else without


def _digest(path: Path) -> str:
    if not path.is_file():
        raise LumitokError(f"there are no weights at '{path}'; name a run, a checkpoint or a network")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
