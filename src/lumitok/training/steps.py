"""The two steps of a GAN tokenizer's training, and what they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Adam

from lumitok.config import StageConfig
from lumitok.errors import LumitokError, nearest
from lumitok.losses.equivariance import Equivariance, draw_equivariance
from lumitok.tokenizers import Tokenizer, TokenizerOutput
from lumitok.training.adversaries import Discriminators, Terms, discriminator_terms, generator_terms
from lumitok.training.guards import Guard, gradient_norms
from lumitok.training.objective import GeneratorObjective
from lumitok.training.reference import SemanticReference
from lumitok.training.seeds import Draw, StepDraws
from lumitok.training.sums import Sums


@dataclass
class Part:
    """A part of a step's batch on this process."""

    pictures: Tensor
    """(b, 3, H, W) in [-1, 1]."""
    draws: StepDraws
    labels: Tensor | None = None
    """(b,), for a network that is trained beside the tokenizer."""


@dataclass
class StageState:
    """The networks as one stage trains them."""

    accelerator: Accelerator
    config: StageConfig
    tokenizer: Tokenizer
    generator: nn.Module
    """The tokenizer as the accelerator wraps it; forward passes that train go through it."""
    objective: GeneratorObjective
    parameters: list[nn.Parameter]
    optimizer: Adam
    guard: Guard
    reference: SemanticReference | None = None
    """What the preservation loss holds the latent near."""
    beside: Callable[[Part, TokenizerOutput], Terms] | None = None
    """What a network that is trained beside adds to the tokenizer's objective."""
    discriminators: Discriminators | None = None
    wrapped_discriminators: nn.Module | None = None
    discriminator_parameters: list[nn.Parameter] = field(default_factory=list)
    discriminator_optimizer: Adam | None = None
    sums: Sums = field(default_factory=Sums)


def train_step(state: StageState, parts: list[Part], images_seen: int) -> None:
    """One step on a batch that comes in parts: the discriminators first, then the generator.

    With a single part both steps share one forward pass of the tokenizer, since the discriminators'
    step does not change it; with several parts the graphs would not fit, and the tokenizer runs anew.
    """
    losses = state.config.losses
    adversarial = losses.adversarial and images_seen >= losses.gan_from
    equivariance = None
    if state.config.equivariance is not None:
        rng = parts[0].draws.numpy(Draw.EQUIVARIANCE)
        equivariance = draw_equivariance(state.config.equivariance, rng)
    shared = reconstruct(state, parts[0], equivariance) if len(parts) == 1 else None
    if adversarial:
        discriminator_step(state, parts, shared, equivariance)
    generator_step(state, parts, shared, equivariance, images_seen, adversarial)


def reconstruct(state: StageState, part: Part, equivariance: Equivariance | None) -> TokenizerOutput:
    """A forward pass through the generator as the accelerator wraps it."""
    draws = part.draws.pictures(Draw.POSTERIOR)
    with state.accelerator.autocast():
        output: TokenizerOutput = state.generator(part.pictures, generator=draws, equivariance=equivariance)
    return output


def encoded_and_target(part: Part, equivariance: Equivariance | None) -> tuple[Tensor, Tensor]:
    """The pictures as they are encoded, and those that the reconstructions shall equal."""
    if equivariance is None:
        return part.pictures, part.pictures
    encoded = equivariance.shrink(part.pictures)
    return encoded, equivariance.picture(encoded)


def discriminator_step(
    state: StageState, parts: list[Part], shared: TokenizerOutput | None, equivariance: Equivariance | None
) -> None:
    """Teach the discriminators to tell the pictures from their reconstructions."""
    network, discriminators = state.wrapped_discriminators, state.discriminators
    optimizer, losses = state.discriminator_optimizer, state.config.losses
    assert network is not None
    assert discriminators is not None
    assert optimizer is not None
    discriminators.set_trained(losses, True)
    sums: dict[str, Tensor] = {}
    for index, part in enumerate(parts):
        if shared is None:
            with torch.no_grad():
                fake = reconstruct(state, part, equivariance).sample
        else:
            fake = shared.sample.detach()
        with _synchronised(state, network, index, len(parts)):
            draws = part.draws
            with state.accelerator.autocast():
                real_views = draws.pictures(Draw.REAL), draws.shared(Draw.REAL)
                real = network(encoded_and_target(part, equivariance)[1], losses, *real_views)
                fake_views = draws.pictures(Draw.FAKE), draws.shared(Draw.FAKE)
                terms = discriminator_terms(
                    real, network(fake, losses, *fake_views), discriminators.patch_loss
                )
            total = _weighted(terms)
            state.accelerator.backward(total / len(parts))
        _add(sums, {name: value.detach() / len(parts) for name, (_, value) in terms.items()})
    sums |= gradient_norms(discriminators, "discriminator_gradient")
    _move(state, "discriminators", sums, discriminators, state.discriminator_parameters, optimizer)
    discriminators.set_trained(losses, False)


def generator_step(
    state: StageState,
    parts: list[Part],
    shared: TokenizerOutput | None,
    equivariance: Equivariance | None,
    images_seen: int,
    adversarial: bool,
) -> None:
    """Move the tokenizer down its objective."""
    sums: dict[str, Tensor] = {}
    for index, part in enumerate(parts):
        with _synchronised(state, state.generator, index, len(parts)):
            output = reconstruct(state, part, equivariance) if shared is None else shared
            encoded, target = encoded_and_target(part, equivariance)
            with state.accelerator.autocast():
                others = {} if state.beside is None else state.beside(part, output)
                if adversarial:
                    others = _fool(state, part, output.sample, target) | others
                total, terms = state.objective(
                    output,
                    target,
                    encoded=encoded,
                    kept=None if state.reference is None else state.reference(encoded),
                    images_seen=images_seen,
                    tokenizer=state.tokenizer,
                    others=others,
                    average=lambda gradient: state.accelerator.reduce(gradient, reduction="mean"),
                )
            state.accelerator.backward(total / len(parts))
        _add(sums, {name: value / len(parts) for name, value in terms.items()})
    sums |= gradient_norms(state.tokenizer, "generator_gradient")
    _move(state, "generator", sums, state.tokenizer, state.parameters, state.optimizer)


def _fool(state: StageState, part: Part, fake: Tensor, target: Tensor) -> Terms:
    """The generator's losses against the discriminators, whose weights stand still here."""
    discriminators, losses = state.discriminators, state.config.losses
    assert discriminators is not None
    draws = part.draws.pictures(Draw.FOOLED), part.draws.shared(Draw.FOOLED)
    judgement = discriminators(fake, losses, *draws)
    real = None
    if losses.feature_matching > 0:
        with torch.no_grad():
            assert discriminators.patch is not None
            real = discriminators.patch(target)
    return generator_terms(judgement, real, losses, discriminators.patch_loss)


def _move(
    state: StageState,
    title: str,
    values: dict[str, Tensor],
    network: nn.Module,
    parameters: list[nn.Parameter],
    optimizer: Adam,
) -> None:
    """Look at losses and gradients, clip, and take the optimizer's step."""
    averaged = state.sums.average(state.accelerator, values)
    if state.guard.passes(averaged, network, title):
        if state.config.clip_norm is not None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            torch.nn.utils.clip_grads_with_norm_(parameters, state.config.clip_norm, norm)
        optimizer.step()
        state.guard.check_weights(network, parameters)
        state.sums.collect(averaged)
    optimizer.zero_grad(set_to_none=True)


def _weighted(terms: Terms) -> Tensor:
    return torch.stack([weight * value for weight, value in terms.values()]).sum()


def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value


def _synchronised(
    state: StageState, module: nn.Module, index: int, count: int
) -> AbstractContextManager[None]:
    """Exchange gradients between processes only after the last part."""
    last = index == count - 1
    return nullcontext() if last else cast(AbstractContextManager[None], state.accelerator.no_sync(module))


# ------------------------------------------------------------------------------------------------
# Setting a stage up


def choose_trainable(tokenizer: Tokenizer, config: StageConfig) -> list[nn.Parameter]:
    """Freeze all but the parameters whose names match the stage's patterns, and return those."""
    names = trained_names(tokenizer, config)
    chosen = []
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names:
            chosen.append(parameter)
    return chosen


def trained_names(tokenizer: Tokenizer, config: StageConfig) -> set[str]:
    """Names of the parameters that a stage trains.

    Raises:
        LumitokError: a pattern names none.
    """
    names = tokenizer.trainable_names()
    for pattern in config.trainable:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = sorted({f"{name.split('.')[0]}.*" for name in names})
            raise LumitokError(
                f"stage '{config.name}': no parameter is named '{pattern}'{nearest(pattern, known)}; "
                f"there are {', '.join(known)}"
            )
    chosen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in config.trainable)}
    # A head that no loss reads.
    return chosen if config.losses.vf > 0 else {name for name in chosen if not name.startswith("vf_head.")}


def adam(parameters: Iterable[nn.Parameter], lr: float, config: StageConfig) -> Adam:
    """The stage's optimizer for one of the networks."""
    return Adam(list(parameters), lr=lr, betas=config.betas, eps=1e-8, fused=True)


def learning_rate_factor(config: StageConfig, step: int, steps: int) -> float:
    """Factor on the stage's learning rates at ``step`` (from 0) of ``steps``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(state: StageState, factor: float) -> None:
    """Set both optimizers' rates for the coming step."""
    for group in state.optimizer.param_groups:
        group["lr"] = state.config.generator_lr * factor
    if state.discriminator_optimizer is not None:
        for group in state.discriminator_optimizer.param_groups:
            group["lr"] = state.config.discriminator_lr * factor
