"""Guidance: a velocity led away from a worse one, v_worse + s (v - v_worse).

The worse velocity is that without a class (classifier-free, arXiv 2207.12598), or that of a second, weaker
network with the same class (autoguidance, arXiv 2406.02507). Outside the interval in which it is guided
(arXiv 2404.07724) the worse velocity is not computed at all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lumitok.config.sampling import SamplingConfig
from lumitok.diffusion.base import DiffusionNetwork


class Velocity(NamedTuple):
    """A network's velocity."""

    latent: Tensor
    """(B, C, h, w)."""
    class_token: Tensor | None = None
    """(B, d) where the network diffuses a class token along (REG), else None."""


def lead_away(velocity: Tensor, worse: Tensor, scale: float, channels: int | None = None) -> Tensor:
    """Return worse + scale (velocity - worse), on the first ``channels`` channels or all; the others stay."""
    if channels is None:
        return worse + scale * (velocity - worse)
    led = lead_away(velocity[:, :channels], worse[:, :channels], scale)
    return torch.cat([led, velocity[:, channels:]], dim=1)


def guided_velocity(
    network: DiffusionNetwork,
    latent: Tensor,
    class_token: Tensor | None,
    t: float,
    labels: Tensor | None,
    config: SamplingConfig,
    *,
    guide: DiffusionNetwork | None = None,
    start: float | None = None,
) -> Velocity:
    """The velocity of a network, guided where the config says so.

    Args:
        network: the network, in the latent's dtype.
        latent: the state, (B, C, h, w).
        class_token: the class token's state, (B, d), or None.
        t: time of the state.
        labels: (B,), or None for an unconditional network.
        config: scales, interval and channels.
        guide: the weaker network of autoguidance; None: classifier-free.
        start: where the step began, which decides whether it is guided; None: at t.
    """
    low, high = config.guidance_interval
    if not (config.guided and low <= (t if start is None else start) <= high):
        return _predict(network, latent, class_token, t, labels)
    if guide is not None:
        good = _predict(network, latent, class_token, t, labels)
        worse = _predict(guide, latent, class_token, t, labels)
    else:
        assert labels is not None, "without classes there is no guidance without a second network"
        both = torch.cat([labels, torch.full_like(labels, network.null_label)])
        token = None if class_token is None else torch.cat([class_token, class_token])
        doubled = _predict(network, torch.cat([latent, latent]), token, t, both)
        count = len(latent)
        good, worse = (
            Velocity(doubled.latent[half], None if token is None else _given(doubled.class_token)[half])
            for half in (slice(None, count), slice(count, None))
        )
    led = lead_away(good.latent, worse.latent, config.guidance, config.guidance_channels)
    if class_token is None:
        return Velocity(led)
    scale = config.guidance if config.class_guidance is None else config.class_guidance
    return Velocity(led, lead_away(_given(good.class_token), _given(worse.class_token), scale))


def _predict(
    network: DiffusionNetwork, latent: Tensor, class_token: Tensor | None, t: float, labels: Tensor | None
) -> Velocity:
    # A time has more digits than bfloat16 keeps; the network's embedding of it is made in float32.
    dtype = torch.promote_types(latent.dtype, torch.float32)
    times = torch.full((len(latent),), t, dtype=dtype, device=latent.device)
    output = network(latent, times, labels, class_token=class_token)
    return Velocity(output.velocity, output.class_velocity)


def _given(class_velocity: Tensor | None) -> Tensor:
    assert class_velocity is not None, "a network that takes a class token gives its velocity"
    return class_velocity
