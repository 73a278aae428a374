"""What tokenizers cost on this machine: what AlignTok's Tables 6 to 8 print (arXiv 2509.25162)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from lumitok.config import ModelConfig, Recipe, load_recipe, recipe_names
from lumitok.errors import LumitokError, nearest
from lumitok.pipelines.cost_child import Measurement, Setting, measure
from lumitok.pipelines.cost_networks import (
    Side,
    StageParameters,
    Verb,
    count_sides,
    count_stage,
    run_steps,
    run_verb,
    with_random_weights,
)
from lumitok.pipelines.doctor import examine
from lumitok.pipelines.information import model_of
from lumitok.tokenizers import build_tokenizer
from lumitok.tokenizers.base import find_tokenizer
from lumitok.training.precision import choose_precision, default_device

Precision = Literal["auto", "fp32", "bf16"]
Say = Callable[[str], None]

HOW = (
    "All weights are random: cost does not depend on them.",
    "Parameters: those that encoding or decoding reads; trainable: all outside the frozen encoder.",
    "GMACs: 10^9 multiply-accumulates of matrix products and convolutions, attention's among them, for one "
    "picture (half of what torch.utils.flop_counter counts); not counted: norms, activations, softmax, "
    "resizing. The paper's Table 7 leaves out attention's products in its encoder.",
    "Time: median of the repeats after a warm-up, of the whole batch.",
    "Memory: the most at one time, weights included and the other side's left out; on CUDA what torch "
    "allocated, on a processor what the process held of its own above the level before building.",
    "Training: whole steps of the engine on random pictures (discriminators, tokenizer, average), as at the "
    "end of the stage; reading pictures is not part of them. Frozen: also the losses' networks.",
)


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        sizes: sides of square pictures in pixels.
        batch_sizes: pictures at a time, of encoding and decoding.
        device: ``cpu``, ``cuda`` or ``mps``; None: where a run would compute.
        precision: None: the recipe's, ``auto`` where there is none.
        repeats: runs that are counted.
        limit: seconds that one measurement may take.
        training: whether training steps are measured too.
        train_batch: images of a training step; None: the stage's.
    """

    sizes: Sequence[int] = (256, 512, 1024)
    batch_sizes: Sequence[int] = (1, 4, 8)
    device: str | None = None
    precision: Precision | None = None
    repeats: int = 5
    limit: float = 120.0
    training: bool = True
    train_batch: int | None = None


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a tokenizer."""

    encoder: int
    """Read by encoding, a foundation encoder's among them."""
    decoder: int
    """Read by decoding."""
    trainable: int
    """All outside a frozen encoder."""
    frozen: int


@dataclass(frozen=True)
class VerbCost:
    """Encoding or decoding a batch."""

    verb: Verb
    size: int
    batch: int
    gmacs: float
    """Of one picture."""
    measured: Measurement


@dataclass(frozen=True)
class StageCost:
    """A training step of one stage."""

    name: str
    batch: int
    parameters: StageParameters
    measured: Measurement
    hours: float | None
    """The whole stage at this pace; None where the batch is not the recipe's own."""


@dataclass(frozen=True)
class Cost:
    """Of one tokenizer."""

    name: str
    model: str
    precision: Literal["fp32", "bf16"]
    parameters: Parameters
    verbs: list[VerbCost]
    stages: list[StageCost]
    """Empty where there is no recipe, or no training was asked for."""


@dataclass(frozen=True)
class Costs:
    """What ``lumitok cost`` prints."""

    device: str
    threads: int
    limit_seconds: float
    costs: list[Cost]
    machine: dict[str, str]
    versions: dict[str, str]
    made: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    how: tuple[str, ...] = HOW

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as ``lumitok cost --json`` prints them."""
        return asdict(self)


def measure_costs(arguments: Sequence[str], request: Request, say: Say = lambda _: None) -> Costs:
    """Measure one tokenizer after the other.

    Args:
        arguments: recipes' names, YAML files, folders of a run, a checkpoint or a tokenizer, and
            ``key=value`` changes, which hold for every recipe among them.
        request: what to measure.
        say: is told what is measured next.

    Raises:
        LumitokError: an unknown name, a device that is not there, numbers below 1.
    """
    device = _device(request)
    found = [(name, *_read(name, changes, request)) for name, changes in _sorted(arguments)]
    threads, costs = torch.get_num_threads(), []
    for name, model, recipe in found:
        wanted = request.precision or ("auto" if recipe is None else recipe.training.precision)
        chosen = choose_precision(wanted, device).dtype
        precision: Literal["fp32", "bf16"] = "bf16" if chosen == torch.bfloat16 else "fp32"
        setting = Setting(device, precision, threads, request.repeats, request.limit)
        costs.append(_cost(name, model, recipe, request, setting, say))
    findings = examine()
    return Costs(device, threads, request.limit, costs, findings.machine, findings.versions)


def _cost(
    name: str, model: ModelConfig, recipe: Recipe | None, request: Request, setting: Setting, say: Say
) -> Cost:
    with torch.device("meta"):
        tokenizer = build_tokenizer(model, load_weights=False)
    tokenizer.eval()
    sides = {size: count_sides(tokenizer, size) for size in sorted(set(request.sizes))}
    frozen = 0 if tokenizer.frozen is None else sum(p.numel() for p in tokenizer.frozen.parameters())
    any_size = sides[min(sides)]
    parameters = Parameters(
        encoder=sum(any_size["encode"].parameters.values()),
        decoder=sum(any_size["decode"].parameters.values()),
        trainable=sum(tokenizer.parts().values()),
        frozen=frozen,
    )
    # Counted before anything is measured, for a pattern that names nothing shall be said at once.
    training = recipe if request.training else None
    counts = [] if training is None else [count_stage(training, i) for i in range(len(training.stages))]
    verbs = _measure_verbs(model, sides, sorted(set(request.batch_sizes)), setting, partial(_said, say, name))
    stages = []
    for index, counted in enumerate(counts):
        assert training is not None
        stages.append(_measure_stage(training, index, counted, request, setting, partial(_said, say, name)))
    return Cost(name, model.type, setting.precision, parameters, verbs, stages)


def _measure_verbs(
    model: ModelConfig, sides: dict[int, dict[Verb, Side]], batches: list[int], setting: Setting, say: Say
) -> list[VerbCost]:
    """Measure from small to large; beyond a size and batch that was too much, larger ones are not run."""
    rows: list[VerbCost] = []
    verbs: tuple[Verb, ...] = ("encode", "decode")
    for verb in verbs:
        too_much: list[VerbCost] = []
        for size, counted in sides.items():
            for batch in batches:
                smaller = [row for row in too_much if row.size <= size and row.batch <= batch]
                if smaller:
                    note = f"not run: {smaller[0].size} px, batch {smaller[0].batch} was too much"
                    measured = Measurement(smaller[0].measured.status, note=note)
                else:
                    say(f"{verb} {size} px, batch {batch}")
                    measured = measure(setting.limit, run_verb, model, verb, counted[verb], batch, setting)
                rows.append(VerbCost(verb, size, batch, counted[verb].macs / 1e9, measured))
                if measured.status in ("over the limit", "out of memory") and not smaller:
                    too_much.append(rows[-1])
    return rows


def _measure_stage(
    recipe: Recipe, index: int, counted: StageParameters, request: Request, setting: Setting, say: Say
) -> StageCost:
    stage = recipe.stages[index]
    say(f"training step of stage {stage.name}, batch {stage.batch_size}")
    measured = measure(setting.limit, run_steps, recipe, index, setting)
    hours = None
    if measured.seconds is not None and request.train_batch is None:
        hours = measured.seconds * (stage.images // stage.batch_size) / 3600
    return StageCost(stage.name, stage.batch_size, counted, measured, hours)


def _said(say: Say, name: str, what: str) -> None:
    say(f"{name}: {what}")


# ------------------------------------------------------------------------------------------------
# What is asked for


def _device(request: Request) -> str:
    numbers = {"sizes": request.sizes, "batch sizes": request.batch_sizes}
    for what, values in numbers.items():
        if not values or min(values) < 1:
            raise LumitokError(f"{what} are whole numbers from 1, such as 256,512; not {list(values)}")
    device = request.device or default_device().type
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, False):
        usable = ", ".join(name for name, found in there.items() if found)
        raise LumitokError(f"there is no device '{device}' here; there is {usable}")
    return device


def _sorted(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Names, each with all changes."""
    changes = [a for a in arguments if re.match(r"[A-Za-z_][\w.]*=", a) and not Path(a).exists()]
    names = [a for a in arguments if a not in changes]
    if not names:
        raise LumitokError("name at least one recipe or checkpoint (`lumitok recipes` lists the recipes)")
    return [(name, changes) for name in names]


def _read(name: str, changes: list[str], request: Request) -> tuple[ModelConfig, Recipe | None]:
    """The model, and the recipe where it is one; no encoder in them needs weights."""
    if Path(name).is_dir():
        if changes:
            raise LumitokError(f"'{changes[0]}' changes a recipe, and '{name}' is a folder of weights")
        return with_random_weights(model_of(find_tokenizer(name) / "config.json")), None
    if name not in recipe_names() and not name.endswith((".yaml", ".yml")):
        raise LumitokError(
            f"there is no recipe and no checkpoint '{name}'{nearest(name, recipe_names())} "
            "(`lumitok recipes` lists the recipes)"
        )
    recipe: Recipe = with_random_weights(load_recipe(name, changes))
    if request.train_batch is not None:
        if request.train_batch % recipe.training.accumulation:
            raise LumitokError(
                f"a training batch of {request.train_batch} does not divide into the "
                f"{recipe.training.accumulation} parts of training.accumulation of {name}"
            )
        update = {"batch_size": request.train_batch}
        stages = [stage.model_copy(update=update) for stage in recipe.stages]
        recipe = recipe.model_copy(update={"stages": stages})
    return recipe.model, recipe
