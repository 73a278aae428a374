"""A training step of LightningDiT: the official code against lumitok, in turn.

Forward, velocity and cosine loss, backward, AdamW and the moving average, at random latents (32, 16, 16).
The official part is put together as its ``train.py`` does it: its network, its transport's losses, its
``update_ema``, its optimizer's settings, accelerate's autocast. It compiles its blocks (``--eager``: it
does not); lumitok compiles its own with ``--compile``. lumitok's part is the step of ``lumitok train``,
which draws the noise of each latent from its own seed, logs gradient norms and looks for what is not finite.
With ``--auto`` it computes in what ``training.precision=auto`` chooses on this machine, whatever the official
code computes in.

The checkout needs einops and fairscale's names; the latter may be empty classes.

    python benchmarks/lightningdit_step.py [--lightningdit PATH] [--size B] [--precision bf16] [--compile]
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from alternating import in_turn, print_table
from official_lightningdit import add_options, chosen_network, official_code
from torch import Tensor
from torch.optim import AdamW

from lumitok.config import DiffusionStageConfig
from lumitok.config.diffusion import DiffusionLossConfig
from lumitok.config.networks import LightningDiTConfig
from lumitok.diffusion import build_network
from lumitok.training.diffusion_steps import DiffusionState, LatentPart, diffusion_step
from lumitok.training.ema import EMA
from lumitok.training.guards import Guard
from lumitok.training.memory import keep_freed_memory
from lumitok.training.precision import choose_precision, default_device
from lumitok.training.seeds import StepDraws

WANTED = 1.3
"""Times the official images/s that lumitok must reach."""
SEED, LR, BETAS, EMA_DECAY = 0, 2e-4, (0.9, 0.95), 0.9999


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both sides train."""

    network: LightningDiTConfig
    batch: int
    bf16: bool

    def accelerator(self) -> Accelerator:
        """Accelerate, as both loops use it."""
        return Accelerator(mixed_precision="bf16" if self.bf16 else "no")

    def batch_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Latents and labels, always the same."""
        draw = torch.Generator().manual_seed(SEED)
        side = self.network.input_size
        x = torch.randn(self.batch, self.network.in_channels, side, side, generator=draw)
        labels = torch.randint(self.network.classes, (self.batch,), generator=draw)
        return x.to(device), labels.to(device)


def official(checkout: Path, eager: bool, setting: Setting) -> Callable[[], float]:
    """Return the official step; it returns its loss."""
    torch.manual_seed(SEED)
    accelerator = setting.accelerator()
    network, transport, _ = official_code(checkout, setting.network, eager)
    update_ema = importlib.import_module("train").update_ema
    network = network.to(accelerator.device)
    average = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0, betas=BETAS)
    update_ema(average, network, decay=0)
    network.train()
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    x, labels = setting.batch_on(accelerator.device)

    def step() -> float:
        terms = transport.training_losses(wrapped, x, {"y": labels})
        error = terms["loss"].mean()
        optimizer.zero_grad()
        accelerator.backward(terms["cos_loss"].mean() + error)
        optimizer.step()
        update_ema(average, network)
        return float(error.item())

    return partial(_waited, step)


def ours(compiled: bool, setting: Setting) -> Callable[[], float]:
    """Return lumitok's step; it returns its loss."""
    keep_freed_memory()
    torch.manual_seed(SEED)
    accelerator = setting.accelerator()
    network = build_network(setting.network)
    torch.nn.Module.to(network, accelerator.device)
    network.train()
    if compiled:
        network.compile_blocks()
    parameters = [p for p in network.parameters() if p.requires_grad]
    state = DiffusionState(
        accelerator=accelerator,
        config=DiffusionStageConfig(
            name="step", images=1, batch_size=setting.batch, losses=DiffusionLossConfig(cosine=1.0)
        ),
        network=network,
        wrapped=accelerator.prepare_model(network),
        encoder=None,
        parameters=parameters,
        optimizer=AdamW(parameters, lr=LR, betas=BETAS, weight_decay=0, fused=True),
        guard=Guard(Path(tempfile.gettempdir()), rank=0, allowed=0),
    )
    names = [name for name, _ in network.named_parameters()]
    average = EMA(network, names, half_life=1, ramp=1.0, most=EMA_DECAY, ramped=False)
    x, labels = setting.batch_on(accelerator.device)

    def step() -> float:
        part = LatentPart(x, labels, None, StepDraws(SEED, 0, average.steps, 0, setting.batch))
        diffusion_step(state, [part])
        average.update(setting.batch * average.steps, setting.batch)
        return state.sums.means()["velocity"]

    return partial(_waited, step)


def _waited(step: Callable[[], float]) -> float:
    loss = step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return loss


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, batch=8, rounds=5)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--auto", action="store_true", help="lumitok chooses its own precision")
    chosen = parser.parse_args(arguments)
    network = chosen_network(chosen)
    setting = Setting(network, chosen.batch, chosen.precision == "bf16")
    ways: dict[str, Callable[[], Callable[[], Any]]] = {}
    if chosen.lightningdit is not None:
        name = "official, eager" if chosen.eager else "official, compiled"
        ways[name] = partial(official, chosen.lightningdit.resolve(), chosen.eager, setting)
    name = "lumitok, compiled" if chosen.compile else "lumitok, eager"
    if chosen.auto:
        automatic = choose_precision("auto", default_device()).dtype == torch.bfloat16
        setting, name = (
            dataclasses.replace(setting, bf16=automatic),
            name + (", bf16" if automatic else ", fp32"),
        )
    ways[name] = partial(ours, chosen.compile, setting)
    found = in_turn(ways, rounds=chosen.rounds, threads=chosen.threads)
    print(
        f"training step of LightningDiT, depth {network.depth}, width {network.width}, batch {chosen.batch}, "
        f"{chosen.precision}, {chosen.threads} thread(s), {chosen.rounds} rounds in turn after one before"
    )
    print("loss of the first step: " + ", ".join(f"{n} {r.first:.4f}" for n, r in found.items()))
    print_table(found, chosen.batch, WANTED)


if __name__ == "__main__":
    main()
