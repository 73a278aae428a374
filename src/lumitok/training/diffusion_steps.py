"""One step of a diffusion network's training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from lumitok.config import DiffusionStageConfig, TimesConfig
from lumitok.diffusion.base import DiffusionNetwork, NetworkOutput
from lumitok.diffusion.flow import drop_labels, interpolate, sample_times, velocity
from lumitok.foundation import FoundationEncoder
from lumitok.losses.alignment import alignment, alignment_targets
from lumitok.losses.velocity import velocity_angle, velocity_error
from lumitok.training.guards import Guard, gradient_norms
from lumitok.training.seeds import Draw, StepDraws
from lumitok.training.sums import Sums


@dataclass
class LatentPart:
    """A part of a step's batch on this process."""

    data: Tensor
    """Whitened latents (b, C, h, w)."""
    labels: Tensor | None
    """(b,), None for an unconditional network."""
    pixels: Tensor | None
    """The same pictures, mirrored alike: (b, 3, H, W) in [0, 1]; only where an encoder must see them."""
    draws: StepDraws
    targets: Tensor | None = None
    """The encoder's tokens (b, T, d), where they are known already."""


@dataclass
class DiffusionState:
    """The network as one stage trains it."""

    accelerator: Accelerator
    config: DiffusionStageConfig
    network: DiffusionNetwork
    wrapped: nn.Module
    """The network as the accelerator wraps it."""
    encoder: FoundationEncoder | None
    """What REPA aligns to, and REG's class token comes from."""
    parameters: list[nn.Parameter]
    optimizer: AdamW
    guard: Guard
    sums: Sums = field(default_factory=Sums)


@dataclass(frozen=True)
class Drawn:
    """What chance decides for a batch: each picture's from its own generator."""

    t: Tensor
    """(b,)."""
    labels: Tensor | None
    """(b,), some of them dropped."""
    noise: Tensor
    """(b, C, h, w)."""
    class_noise: Tensor | None
    """(b, d), REG's."""


def draw(part: LatentPart, config: DiffusionStageConfig, network: DiffusionNetwork) -> Drawn:
    """Draw times, dropped labels and noise for a part."""
    times, labels, noise, tokens = [], [], [], []
    for index, generator in enumerate(part.draws.pictures(Draw.DIFFUSION)):
        times.append(_time(config.times, generator))
        if part.labels is not None:
            label = part.labels[index : index + 1].cpu()
            labels.append(drop_labels(label, network.null_label, config.label_dropout, generator))
        noise.append(torch.randn(part.data.shape[1:], generator=generator))
        if network.class_channels:
            tokens.append(torch.randn(network.class_channels, generator=generator))
    device = part.data.device
    return Drawn(
        t=torch.cat(times).to(device),
        labels=torch.cat(labels).to(device) if labels else None,
        noise=torch.stack(noise).to(device),
        class_noise=torch.stack(tokens).to(device) if tokens else None,
    )


def _time(config: TimesConfig, generator: torch.Generator) -> Tensor:
    t = sample_times(
        1, kind=config.kind, mean=config.mean, std=config.std, shift=config.shift, generator=generator
    )
    return t.clamp_min(config.least)


def losses(
    output: NetworkOutput,
    part: LatentPart,
    drawn: Drawn,
    config: DiffusionStageConfig,
    targets: Tensor | None,
) -> dict[str, tuple[float, Tensor]]:
    """Every term of the objective, by its name in the log, with its weight.

    Args:
        output: the network's at the interpolated latents.
        part: the data.
        drawn: what was drawn for them.
        config: the weights.
        targets: the encoder's tokens (b, T, d), the class token first where it is diffused.
    """
    wanted = velocity(drawn.noise, part.data)
    terms = {"velocity": (config.losses.velocity, velocity_error(output.velocity, wanted).mean())}
    if config.losses.cosine > 0:
        terms["cosine"] = (config.losses.cosine, velocity_angle(output.velocity, wanted).mean())
    if config.losses.alignment > 0:
        assert output.projected is not None
        assert targets is not None
        terms["alignment"] = (config.losses.alignment, alignment(output.projected, targets).mean())
    if config.losses.class_token > 0:
        assert output.class_velocity is not None
        assert targets is not None
        assert drawn.class_noise is not None
        token = velocity_error(output.class_velocity, velocity(drawn.class_noise, targets[:, 0].float()))
        terms["class_token"] = (config.losses.class_token, token.mean())
    return terms


def diffusion_step(state: DiffusionState, parts: Sequence[LatentPart]) -> None:
    """Move the network down its objective, on a batch that comes in parts."""
    sums: dict[str, Tensor] = {}
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        with nullcontext() if last else state.accelerator.no_sync(state.wrapped):
            total, terms = _forward(state, part)
            state.accelerator.backward(total / len(parts))
        for name, (_, value) in terms.items():
            sums[name] = sums.get(name, value.new_zeros(())) + value.detach() / len(parts)
    sums |= gradient_norms(state.network, "gradient")
    values = state.sums.average(state.accelerator, sums)
    if state.guard.passes(values, state.network, "network"):
        if state.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.parameters, state.config.clip_norm)
        state.optimizer.step()
        state.guard.check_weights(state.network, state.parameters)
        state.sums.collect(values)
    state.optimizer.zero_grad(set_to_none=True)


def _forward(state: DiffusionState, part: LatentPart) -> tuple[Tensor, dict[str, tuple[float, Tensor]]]:
    config, network = state.config, state.network
    drawn = draw(part, config, network)
    targets, token = part.targets, None
    with state.accelerator.autocast():
        if state.encoder is not None and targets is None:
            assert part.pixels is not None
            with_class = network.class_channels > 0
            targets = alignment_targets(state.encoder, part.pixels, class_token=with_class)
        if drawn.class_noise is not None:
            assert targets is not None
            token = interpolate(drawn.class_noise, targets[:, 0].float(), drawn.t)
        output: NetworkOutput = state.wrapped(
            interpolate(drawn.noise, part.data, drawn.t),
            drawn.t,
            drawn.labels,
            class_token=token,
            project=config.losses.alignment > 0,
        )
        terms = losses(output, part, drawn, config, targets)
    return torch.stack([weight * value for weight, value in terms.values()]).sum(), terms
