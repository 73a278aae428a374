"""The networks whose cost is measured: all weights random, so that none need to be at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from lumitok.config import EncoderConfig, LossConfig, ModelConfig, Recipe, Section
from lumitok.losses.lpips import LPIPS
from lumitok.pipelines.cost_child import Measurement, PeakMemory, Ready, Setting, timed
from lumitok.tokenizers import AlignTok, Tokenizer, build_tokenizer
from lumitok.training.adversaries import Discriminators
from lumitok.training.begin import accelerator_in
from lumitok.training.ema import EMA
from lumitok.training.guards import Guard
from lumitok.training.measure import to_pictures
from lumitok.training.memory import keep_freed_memory
from lumitok.training.objective import GeneratorObjective
from lumitok.training.reference import SemanticReference
from lumitok.training.seeds import StepDraws, seed_step
from lumitok.training.steps import Part, StageState, adam, choose_trainable, train_step

Verb = Literal["encode", "decode"]


def with_random_weights(section: Any) -> Any:
    """Copy a config so that no encoder named in it needs its weights."""
    if isinstance(section, EncoderConfig):
        return section.model_copy(update={"weights": "random", "sha256": None})
    if isinstance(section, Section):
        fields = {name: with_random_weights(getattr(section, name)) for name in type(section).model_fields}
        return section.model_copy(update=fields)
    if isinstance(section, list):
        return [with_random_weights(item) for item in section]
    return section


# ------------------------------------------------------------------------------------------------
# Counting, on nothing


@dataclass(frozen=True)
class Side:
    """What one verb computes for one picture."""

    macs: float
    parameters: dict[str, int]
    """Names of those that take part, and how many numbers each has."""
    input_shape: tuple[int, ...]
    """Of one picture or latent, without the batch."""


def count_sides(tokenizer: Tokenizer, size: int) -> dict[Verb, Side]:
    """Count encoding a square picture of ``size`` pixels and decoding its latent, on the meta device."""
    picture = torch.empty(1, 3, size, size, device="meta")
    encoded, encode = _count(tokenizer, lambda: tokenizer.encode(picture).latent_dist.mode(), picture)
    _, decode = _count(tokenizer, lambda: tokenizer.decode(encoded).sample, encoded)
    return {"encode": encode, "decode": decode}


def _count(tokenizer: Tokenizer, run: Callable[[], Tensor], given: Tensor) -> tuple[Tensor, Side]:
    names = {id(parameter): name for name, parameter in tokenizer.named_parameters()}
    with torch.no_grad(), _Touched(names) as touched, FlopCounterMode(display=False) as counter:
        output = run()
    return output, Side(counter.get_total_flops() / 2, touched.found, tuple(given.shape[1:]))


class _Touched(TorchDispatchMode):
    """Notes which parameters any operation reads."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        for value in tree_iter((args, kwargs)):
            if id(value) in self.names:
                self.found[self.names[id(value)]] = value.numel()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class StageParameters:
    """Parameters of all that a stage's step computes with, as the paper's Table 6 counts them."""

    trainable: int
    """Of the tokenizer."""
    discriminator: int
    """Trained ones of the discriminators in use."""
    frozen: int
    """All others: frozen parts of tokenizer and discriminators, perceptual networks, the reference that the
    preservation loss compares with."""


def count_stage(recipe: Recipe, index: int) -> StageParameters:
    """Count a stage's networks on the meta device; the recipe's weights are random ones."""
    stage = recipe.stages[index]
    with torch.device("meta"):
        tokenizer = build_tokenizer(recipe.model, load_weights=False)
        discriminators = Discriminators.of(recipe)
        held: list[nn.Module] = [tokenizer, GeneratorObjective(stage.losses, [_random_lpips(recipe)])]
        trainable = choose_trainable(tokenizer, stage)
        reference = _reference(tokenizer, stage.losses)
    held += [] if reference is None else [reference]
    judging: list[nn.Parameter] = []
    if discriminators is not None:
        judging = discriminators.set_trained(stage.losses, True)
        used = {"foundation": stage.losses.gan > 0, "patch": stage.losses.patchgan > 0}
        held += [part for name, part in discriminators.named_children() if used[name]]
    sizes = {id(p): p.numel() for module in held for p in module.parameters()}
    chosen, judged = (sum(p.numel() for p in found) for found in (trainable, judging))
    return StageParameters(chosen, judged, sum(sizes.values()) - chosen - judged)


def _random_lpips(recipe: Recipe) -> GeneratorObjective:
    """An objective without losses that lends the others its LPIPS, whose weights are random."""
    lender = GeneratorObjective(LossConfig())
    if any(stage.losses.lpips > 0 for stage in recipe.stages):
        lender.lpips = LPIPS(load_weights=False)
    return lender


def _reference(tokenizer: Tokenizer, losses: LossConfig) -> SemanticReference | None:
    if losses.preservation == 0:
        return None
    assert isinstance(tokenizer, AlignTok)
    return SemanticReference(tokenizer)


# ------------------------------------------------------------------------------------------------
# Running, each in a process of its own


def run_verb(
    model: ModelConfig, verb: Verb, side: Side, batch: int, setting: Setting, ready: Ready
) -> Measurement:
    """Encode pictures or decode latents; parameters that the verb does not read are not there."""
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    memory = PeakMemory(device)
    tokenizer = build_tokenizer(model, load_weights=False).eval()
    for name, parameter in tokenizer.named_parameters():
        if name not in side.parameters:
            parameter.data = parameter.data.new_empty(0)
    tokenizer.to(device)
    given = torch.rand(batch, *side.input_shape).mul(2).sub(1).to(device)

    @torch.no_grad()
    def run() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
            if verb == "encode":
                latent: Tensor = tokenizer.encode(given).latent_dist.mode()
                return latent
            sample: Tensor = tokenizer.decode(given).sample
            return sample

    return timed(run, setting, memory, ready)


def run_steps(recipe: Recipe, index: int, setting: Setting, ready: Ready) -> Measurement:
    """Take training steps of a stage on random pictures, with the engine's own functions.

    As in a run, the networks of all stages lie in memory, and the average follows every step.
    """
    torch.set_num_threads(setting.threads)
    if setting.device == "cpu":
        keep_freed_memory()
    memory = PeakMemory(torch.device(setting.device))
    with tempfile.TemporaryDirectory() as folder, _stage(recipe, index, setting, Path(folder)) as step:
        numbers = iter(range(10**9))
        return timed(lambda: step(next(numbers)), setting, memory, ready)


@contextmanager
def _stage(recipe: Recipe, index: int, setting: Setting, folder: Path) -> Iterator[Callable[[int], None]]:
    """Set up what ``start_run`` does before the pictures, and give the function that takes a step."""
    training, stage = recipe.training, recipe.stages[index]
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    accelerator = accelerator_in(dtype, torch.device(setting.device))
    tokenizer = build_tokenizer(recipe.model, load_weights=False).to(accelerator.device)
    tokenizer.to(memory_format=torch.channels_last)
    discriminators = Discriminators.of(recipe, accelerator.device)
    objectives = [_random_lpips(recipe)]
    for each in recipe.stages:
        objectives.append(GeneratorObjective(each.losses, objectives).to(accelerator.device))
    ema = EMA(
        tokenizer, tokenizer.trainable_names(), training.ema_half_life, training.ema_ramp, training.ema_decay
    )
    parameters = choose_trainable(tokenizer, stage)
    state = StageState(
        accelerator=accelerator,
        config=stage,
        tokenizer=tokenizer,
        generator=accelerator.prepare_model(tokenizer),
        objective=objectives[index + 1],
        parameters=parameters,
        optimizer=adam(parameters, stage.generator_lr, stage),
        guard=Guard(folder, 0, allowed=0),
        reference=_reference(tokenizer, stage.losses),
    )
    if discriminators is not None and stage.losses.adversarial:
        state.discriminator_parameters = discriminators.set_trained(stage.losses, True)
        state.discriminators = discriminators
        state.wrapped_discriminators = accelerator.prepare_model(discriminators)
        state.discriminator_optimizer = adam(state.discriminator_parameters, stage.discriminator_lr, stage)
        discriminators.set_trained(stage.losses, False)
    tokenizer.train()
    share = stage.batch_size // training.accumulation
    shape = (share, 3, recipe.model.image_size, recipe.model.image_size)
    pixels = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(training.accumulation)]
    # The last steps of a stage: those losses that begin or end on the way are as for most of it.
    seen = sum(each.images for each in recipe.stages[: index + 1]) - stage.batch_size
    yield partial(_step, state, ema, pixels, seen)


def _step(state: StageState, ema: EMA, pixels: list[Tensor], seen: int, number: int) -> None:
    share, device = len(pixels[0]), state.accelerator.device
    seed_step(number)
    state.guard.watch(number, pixels, [])
    parts = [
        Part(to_pictures(part, device), StepDraws(0, 0, number, place * share, share))
        for place, part in enumerate(pixels)
    ]
    train_step(state, parts, seen)
    ema.update(seen + state.config.batch_size, state.config.batch_size)
