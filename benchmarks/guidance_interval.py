"""Sampling with a guidance interval: LightningDiT's sampler against lumitok's, at equal steps, in turn.

Both take the same weights (the official network's, brought over as ``lumitok import-weights`` does), noise
and labels, and equal Euler steps in float32; the table comes with how far their latents lie apart. The
official ``forward_with_cfg`` evaluates both classes at each step and drops one of them before the interval;
lumitok does not evaluate it there. Without a checkout lumitok is compared with itself, guided at all steps.

    python benchmarks/guidance_interval.py [--lightningdit PATH] [--low 0.125] [--steps 12] [--batch 2]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from alternating import in_turn, print_table
from official_lightningdit import add_options, chosen_network, official_code
from torch import Tensor, nn

from lumitok.config.networks import LightningDiTConfig
from lumitok.config.sampling import SamplingConfig
from lumitok.diffusion import build_network
from lumitok.diffusion.sampling import sample
from lumitok.diffusion.solvers import time_grid
from lumitok.interop.lightningdit import read_settings
from lumitok.interop.network_file import open_network
from lumitok.interop.networks import compare_network
from lumitok.training.precision import default_device

WANTED = 1.15
"""Times the official images/s that lumitok must reach."""
SEED, SPREAD = 0, 0.02


@dataclass(frozen=True)
class Setting:
    """What both sides draw."""

    network: LightningDiTConfig
    batch: int
    config: SamplingConfig
    weights: Path
    """Where the official side leaves its weights."""

    @property
    def labels(self) -> list[int]:
        """One class a sample."""
        return [index * self.network.classes // self.batch for index in range(self.batch)]

    def noise(self) -> Tensor:
        """The noise that lumitok draws from the seeds 0, 1, 2 ..."""
        side = self.network.input_size
        shape = (1, self.network.in_channels, side, side)
        draws = [torch.Generator().manual_seed(seed) for seed in range(self.batch)]
        return torch.cat([torch.randn(shape, generator=draw) for draw in draws])


def official(checkout: Path, eager: bool, setting: Setting) -> Callable[[], Tensor]:
    """Return the official sampler, as ``inference.py`` calls it."""
    config, device = setting.config, default_device()
    network, transport, transport_code = official_code(checkout, setting.network, eager)
    draw_all(network)
    torch.save({"ema": network.state_dict()}, setting.weights)
    network = network.to(device).eval()
    run = transport_code.Sampler(transport).sample_ode(
        sampling_method="euler", num_steps=config.steps + 1, timestep_shift=config.shift
    )
    classes = torch.tensor(setting.labels + [setting.network.classes] * setting.batch, device=device)
    noise = setting.noise().to(device)
    low, _ = config.guidance_interval

    @torch.no_grad()
    def draw() -> Tensor:
        drawn = run(
            torch.cat([noise, noise]),
            network.forward_with_cfg,
            y=classes,
            cfg_scale=config.guidance,
            cfg_interval=True,
            cfg_interval_start=low,
        )
        latents: Tensor = drawn[-1].chunk(2)[0].cpu()
        return latents

    return draw


def ours(compiled: bool, guided_always: bool, setting: Setting) -> Callable[[], Tensor]:
    """Return lumitok's sampler."""
    config = setting.config
    if guided_always:
        config = config.model_copy(update={"guidance_interval": (0.0, 1.0)})
    if setting.weights.is_file():
        state = open_network(setting.weights).state
        settings = read_settings(state, heads=setting.network.heads)
        compared = compare_network(state, settings, "lightningdit")
        assert not any(compared.faults.values()), compared.faults
        network = build_network(settings)
        network.load_state_dict(compared.state)
    else:
        network = build_network(setting.network)
        draw_all(network)
    nn.Module.to(network, default_device())
    network.eval()
    if compiled:
        network.compile_blocks()

    def draw() -> Tensor:
        return sample(network, setting.labels, list(range(setting.batch)), config).cpu()

    return draw


def draw_all(network: nn.Module) -> None:
    """Draw all weights: a new network predicts zero, whatever is done in it."""
    generator = torch.Generator().manual_seed(SEED)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data += SPREAD * torch.randn(parameter.shape, generator=generator)


def allowed(config: SamplingConfig) -> float:
    """How many times faster it becomes by the evaluations that the interval leaves out."""
    low, high = config.guidance_interval
    starts = time_grid(config.steps, config.shift)[:-1]
    guided = int(((starts >= low) & (starts <= high)).sum())
    return 2 * config.steps / (config.steps + guided)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, batch=2, rounds=3)
    parser.add_argument("--low", type=float, default=0.125, help="time from which it is guided")
    parser.add_argument("--steps", type=int, default=12)
    chosen = parser.parse_args(arguments)
    network = chosen_network(chosen)
    config = SamplingConfig(
        steps=chosen.steps,
        shift=0.3,
        guidance=10.0,
        guidance_interval=(chosen.low, 1.0),
        guidance_channels=3,
    )
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(network, chosen.batch, config, Path(folder) / "official.pt")
        ways: dict[str, Callable[[], Callable[[], Any]]] = {}
        if chosen.lightningdit is not None:
            name = "official, eager" if chosen.eager else "official, compiled"
            ways[name] = partial(official, chosen.lightningdit.resolve(), chosen.eager, setting)
        else:
            ways["lumitok, all guided"] = partial(ours, chosen.compile, True, setting)
        name = "lumitok, compiled" if chosen.compile else "lumitok, eager"
        ways[name] = partial(ours, chosen.compile, False, setting)
        found = in_turn(ways, rounds=chosen.rounds, threads=chosen.threads)
    print(
        f"sampling, LightningDiT of depth {network.depth} and width {network.width}, batch {chosen.batch}, "
        f"{chosen.steps} Euler steps, guided from {chosen.low} on, float32, {chosen.threads} thread(s), "
        f"{chosen.rounds} rounds in turn after one before"
    )
    first, last = (rounds.first for rounds in found.values())
    if chosen.lightningdit is not None:
        apart, largest = float((first - last).abs().max()), float(first.abs().max())
        print(f"the latents differ by {apart:.1e} at most; the largest number in them is {largest:.2f}")
        if apart > 1e-3 * largest:
            raise SystemExit("the two do not draw the same latents")
    print(f"the interval alone allows {allowed(config):.2f}")
    print_table(found, chosen.batch, WANTED)


if __name__ == "__main__":
    main()
