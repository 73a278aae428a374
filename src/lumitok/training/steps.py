"""The two steps of a GAN tokenizer's training, and what they share."""

from __future__ import annotations

import math
from collections.abc import Iterable
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
from lumitok.losses.adversarial import hinge_discriminator
from lumitok.tokenizers import Tokenizer, VFMVAEOutput
from lumitok.training.objective import GeneratorObjective, first_not_finite

Values = dict[str, Tensor]


@dataclass
class StageState:
    """The networks as one stage trains them."""

    accelerator: Accelerator
    config: StageConfig
    tokenizer: Tokenizer
    generator: nn.Module
    """The tokenizer as the accelerator wraps it; forward passes that train go through it."""
    objective: GeneratorObjective
    optimizer: Adam
    discriminator: nn.Module | None = None
    wrapped_discriminator: nn.Module | None = None
    discriminator_optimizer: Adam | None = None
    sums: Values = field(default_factory=dict)
    count: int = 0

    def collect(self, values: Values) -> None:
        """Add a step's values to the means of the next log line."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Means over the steps and processes since the last call."""
        if not self.sums:
            return {}
        stacked = torch.stack([v.float() for v in self.sums.values()]) / max(self.count, 1)
        stacked = self.accelerator.reduce(stacked, reduction="mean")
        means = dict(zip(self.sums, stacked.tolist(), strict=True))
        self.sums, self.count = {}, 0
        return means


def train_step(state: StageState, parts: list[Tensor], images_seen: int) -> None:
    """One step on a batch that comes in parts: the discriminator first, then the generator.

    ``parts`` are pictures (b, 3, H, W) in [-1, 1]. With a single part both steps share one forward
    pass of the tokenizer, since the discriminator's step does not change it; with several parts the
    graphs would not fit, and the tokenizer runs anew.
    """
    adversarial = state.config.losses.gan > 0 and images_seen >= state.config.losses.gan_from
    shared = reconstruct(state, parts[0]) if len(parts) == 1 else None
    values: Values = {}
    if adversarial:
        values |= discriminator_step(state, parts, shared)
    values |= generator_step(state, parts, shared, images_seen, adversarial)
    state.collect(values)


def reconstruct(state: StageState, pictures: Tensor) -> VFMVAEOutput:
    """A forward pass through the generator as the accelerator wraps it."""
    with state.accelerator.autocast():
        output: VFMVAEOutput = state.generator(pictures)
    return output


def discriminator_step(state: StageState, parts: list[Tensor], shared: VFMVAEOutput | None) -> Values:
    """Teach the discriminator to tell the pictures from their reconstructions."""
    assert state.wrapped_discriminator is not None
    assert state.discriminator is not None
    assert state.discriminator_optimizer is not None
    set_trained(state.discriminator, True)
    total = torch.zeros((), device=parts[0].device)
    for index, pictures in enumerate(parts):
        if shared is None:
            with torch.no_grad():
                fake = reconstruct(state, pictures).sample
        else:
            fake = shared.sample.detach()
        with _synchronised(state, state.wrapped_discriminator, index, len(parts)):
            with state.accelerator.autocast():
                real_logits = state.wrapped_discriminator(pictures)
                fake_logits = state.wrapped_discriminator(fake)
                loss = hinge_discriminator(real_logits.float(), fake_logits.float()) / len(parts)
            state.accelerator.backward(loss)
        total = total + loss.detach()
    values = {"discriminator": total}
    _require_finite(values)
    state.discriminator_optimizer.step()
    state.discriminator_optimizer.zero_grad(set_to_none=True)
    set_trained(state.discriminator, False)
    return values


def generator_step(
    state: StageState, parts: list[Tensor], shared: VFMVAEOutput | None, images_seen: int, adversarial: bool
) -> Values:
    """Move the tokenizer down its objective."""
    values: Values = {}
    for index, pictures in enumerate(parts):
        with _synchronised(state, state.generator, index, len(parts)):
            output = reconstruct(state, pictures) if shared is None else shared
            with state.accelerator.autocast():
                total, terms = state.objective(
                    output,
                    pictures,
                    images_seen=images_seen,
                    balance=state.tokenizer.balance_parameter(),
                    discriminator=state.discriminator if adversarial else None,
                )
            _require_finite(terms)
            state.accelerator.backward(total / len(parts))
        for name, value in terms.items():
            values[name] = values.get(name, torch.zeros_like(value)) + value / len(parts)
    values["generator_gradient"] = gradient_norm(state.tokenizer.parameters())
    _require_finite(values)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return values


def _synchronised(
    state: StageState, module: nn.Module, index: int, count: int
) -> AbstractContextManager[None]:
    """Exchange gradients between processes only after the last part."""
    last = index == count - 1
    return nullcontext() if last else cast(AbstractContextManager[None], state.accelerator.no_sync(module))


def _require_finite(values: Values) -> None:
    name = first_not_finite(values)
    if name is not None:
        raise LumitokError(
            f"'{name}' is {values[name].item()}; the last checkpoint is good. Lower the learning rate, train "
            "in fp32 (training.precision=fp32), or look for broken pictures; then go on with --resume"
        )


# ------------------------------------------------------------------------------------------------
# Setting a stage up


def set_trained(discriminator: nn.Module, on: bool) -> None:
    """Let gradients reach a discriminator's parameters or not; its frozen encoder's never."""
    for name, parameter in discriminator.named_parameters():
        if not name.startswith("encoder."):
            parameter.requires_grad_(on)


def choose_trainable(tokenizer: Tokenizer, config: StageConfig) -> list[nn.Parameter]:
    """Freeze all but the parameters whose names match the stage's patterns, and return those."""
    names = tokenizer.trainable_names()
    for pattern in config.trainable:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = {f"{name.split('.')[0]}.*" for name in names}
            raise LumitokError(
                f"stage '{config.name}': no parameter is named '{pattern}'{nearest(pattern, known)}"
            )
    chosen = []
    for name, parameter in tokenizer.named_parameters():
        on = name in set(names) and any(fnmatchcase(name, pattern) for pattern in config.trainable)
        if name.startswith("vf_head.") and config.losses.vf == 0:
            on = False
        parameter.requires_grad_(on)
        if on:
            chosen.append(parameter)
    return chosen


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


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
