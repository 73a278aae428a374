"""From seeds to whitened latents: each sample's noise follows from its own seed alone.

What a sample becomes depends on its seed, its label and the settings, not on the samples beside it: the
numbers are drawn on the CPU, one generator a sample, and adaptive steps are taken sample by sample. What is
left is the rounding of matrix products of another size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lumitok.config.sampling import SamplingConfig
from lumitok.diffusion import solvers
from lumitok.diffusion.base import DiffusionNetwork
from lumitok.diffusion.guidance import guided_velocity
from lumitok.diffusion.solvers import Field, Noise
from lumitok.errors import LumitokError

Report = Callable[[int, int | None], None]
"""Told after each evaluation of the velocity how many are done and how many it will be; None: unknown."""


@torch.no_grad()
def sample(
    network: DiffusionNetwork,
    labels: Tensor | Sequence[int] | None,
    seeds: Sequence[int],
    config: SamplingConfig,
    *,
    guide: DiffusionNetwork | None = None,
    report: Report | None = None,
) -> Tensor:
    """Draw samples.

    Args:
        network: in eval mode; it is evaluated in the dtype of its weights, the state is float64.
        labels: one label a sample, from 0 to the network's null label; None for an unconditional network.
        seeds: one a sample.
        config: solver and guidance; of ``autoguidance`` the network must be given as ``guide``.
        guide: the weaker network that guidance leads away from.
        report: told how far it is.

    Returns:
        Whitened latents (B, C, h, w), float32, on the network's device; a tokenizer's
        ``latent_spec.unwhiten`` makes them raw.

    Raises:
        LumitokError: labels, guidance and network do not belong together.
    """
    if not seeds:
        raise LumitokError("there are no seeds, so no samples; give one seed a sample")
    check_together(network, config, guide, labelled=labels is not None)
    classes = _check_labels(network, labels, len(seeds))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    # The error of adaptive steps, and with it their number, would be a mean over the batch.
    size = 1 if config.solver == "dopri5" else len(seeds)
    done = itertools.count(1)
    states = []
    for first in range(0, len(seeds), size):
        rows = slice(first, first + size)
        noise = noise_source(network, generators[rows])
        field = network_field(network, None if classes is None else classes[rows], config, guide=guide)
        if report is not None:
            field = _reported(field, done, evaluations(config), report)
        states.append(run_solver(field, noise(), config, noise))
    latent, _ = unpack(torch.cat(states), network.latent_shape)
    return latent.float()


# ------------------------------------------------------------------------------------------------
# The parts, for whoever brings noise of their own


def network_field(
    network: DiffusionNetwork,
    labels: Tensor | None,
    config: SamplingConfig,
    *,
    guide: DiffusionNetwork | None = None,
) -> Field:
    """The guided velocity of a network as a field over packed states, see :func:`pack`.

    Args:
        network: evaluated in the dtype of its weights, whatever the state's.
        labels: (B,) on the network's device, or None for an unconditional network.
        config: guidance.
        guide: the weaker network of autoguidance.
    """
    dtype = network.dtype

    def field(x: Tensor, t: Tensor, start: Tensor | None = None) -> Tensor:
        latent, token = unpack(x.to(dtype), network.latent_shape)
        begun = None if start is None else float(start)
        v = guided_velocity(network, latent, token, float(t), labels, config, guide=guide, start=begun)
        return pack(v.latent, v.class_token).to(x.dtype)

    return field


def run_solver(field: Field, x: Tensor, config: SamplingConfig, noise: Noise) -> Tensor:
    """Bring a state from noise to data with the config's solver and times."""
    if config.solver == "euler-maruyama":
        times = solvers.stochastic_time_grid(config.steps, config.shift)
        return solvers.euler_maruyama(field, x, times, noise)
    times = solvers.time_grid(config.steps, config.shift)
    if config.solver == "ddim":
        return solvers.ddim(field, x, times, noise, eta=config.eta)
    if config.solver == "dopri5":
        return solvers.dopri5(field, x, times, atol=config.atol, rtol=config.rtol)
    return (solvers.heun if config.solver == "heun" else solvers.euler)(field, x, times)


def evaluations(config: SamplingConfig) -> int | None:
    """How often the velocity is evaluated; None where the solver decides."""
    if config.solver == "dopri5":
        return None
    return 2 * config.steps - 1 if config.solver == "heun" else config.steps


def noise_source(network: DiffusionNetwork, generators: Sequence[torch.Generator]) -> Noise:
    """A source of packed noise for a network, float64 on its device; each sample from its own generator."""
    # Macs' GPUs know no float64.
    dtype = torch.float32 if network.device.type == "mps" else torch.float64
    token = network.class_channels

    def draw(generator: torch.Generator) -> Tensor:
        latent = torch.randn((1, *network.latent_shape), generator=generator)
        return pack(latent, torch.randn((1, token), generator=generator) if token else None)

    return lambda: torch.cat([draw(generator) for generator in generators]).to(network.device, dtype)


def pack(latent: Tensor, class_token: Tensor | None) -> Tensor:
    """A latent (B, C, h, w) and a class token (B, d) as one state (B, C h w + d); without one, the latent."""
    return latent if class_token is None else torch.cat([latent.flatten(1), class_token], dim=1)


def unpack(state: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor | None]:
    """Inverse of :func:`pack`; ``shape`` is the latent's (C, h, w)."""
    if state.ndim == 4:
        return state, None
    numbers = math.prod(shape)
    return state[:, :numbers].unflatten(1, shape), state[:, numbers:]


# ------------------------------------------------------------------------------------------------


def check_together(
    network: DiffusionNetwork, config: SamplingConfig, guide: DiffusionNetwork | None, *, labelled: bool
) -> None:
    """Raise a LumitokError where network, guide and settings do not belong together.

    Args:
        network: that draws.
        config: solver and guidance.
        guide: the weaker network of autoguidance, or None.
        labelled: whether samples are drawn with labels.
    """
    if config.guided and guide is None and not labelled:
        instead = "give labels, or guidance 1" if network.null_label else "it knows none, so give guidance 1"
        raise LumitokError(f"guidance leads from no class to a class, and no labels were given; {instead}")
    channels = network.latent_shape[0]
    if config.guidance_channels is not None and config.guidance_channels > channels:
        raise LumitokError(
            f"guidance_channels is {config.guidance_channels}, but the latent has {channels} channels"
        )
    if config.class_guidance is not None and not network.class_channels:
        raise LumitokError("class_guidance guides a class token, and this network has none; leave it out")
    if config.autoguidance and guide is None:
        raise LumitokError(f"open the network of autoguidance, {config.autoguidance}, and give it as `guide`")
    if guide is None:
        return
    said = {"latent_shape": "latents", "class_channels": "class tokens' channels", "null_label": "classes"}
    for name, what in said.items():
        ours, theirs = getattr(network, name), getattr(guide, name)
        if ours != theirs:
            raise LumitokError(
                f"autoguidance needs two networks of one kind of latents and classes, but their {what} are "
                f"{ours} and {theirs}"
            )


def _check_labels(
    network: DiffusionNetwork, labels: Tensor | Sequence[int] | None, count: int
) -> Tensor | None:
    """Labels (B,) on the network's device; None for an unconditional network."""
    if labels is None:
        if not network.null_label:
            return None
        return torch.full((count,), network.null_label, device=network.device)
    if not network.null_label:
        raise LumitokError("this network knows no classes; give no labels")
    given = torch.as_tensor(labels, dtype=torch.long)
    if given.shape != (count,):
        raise LumitokError(f"{count} seeds and labels of shape {tuple(given.shape)}; give one label a seed")
    network.check_labels(given)
    return given.to(network.device)


def _reported(field: Field, done: Iterator[int], total: int | None, report: Report) -> Field:
    def counted(x: Tensor, t: Tensor, start: Tensor | None = None) -> Tensor:
        v = field(x, t, start)
        report(next(done), total)
        return v

    return counted
