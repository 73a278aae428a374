"""One step of tokenizer and diffusion network together (REPA-E, arXiv 2504.10483).

    pictures -> tokenizer -> z --running statistics--> network, weights still -> alignment -> tokenizer's step
                             z, cut off --the step's own statistics--> network -> its losses -> its step

Times and noise are the same in both passes; labels are dropped in the second alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from lumitok.diffusion.flow import interpolate
from lumitok.errors import LumitokError
from lumitok.losses.alignment import alignment, alignment_targets
from lumitok.tokenizers import TokenizerOutput
from lumitok.training.adversaries import Terms
from lumitok.training.diffusion_steps import DiffusionState, LatentPart, diffusion_step, draw
from lumitok.training.live_normaliser import LiveNormaliser
from lumitok.training.steps import Part, StageState, train_step


@dataclass
class EndToEndState:
    """Both sides as one stage trains them."""

    tokenizer: StageState
    network: DiffusionState
    normaliser: LiveNormaliser
    weight: float
    """Of the alignment in the tokenizer's objective."""
    seen: list[LatentPart] = field(default_factory=list)
    """What the tokenizer's step leaves for the network's: raw latents, without their graph."""

    def __post_init__(self) -> None:
        self.tokenizer.beside = self.align

    def align(self, part: Part, output: TokenizerOutput) -> Terms:
        """The alignment as the tokenizer is to lower it; the network's weights get no gradient of it."""
        network, encoder = self.network.network, self.network.encoder
        assert encoder is not None
        if not output.latent.requires_grad:
            raise LumitokError(
                f"stage '{self.tokenizer.config.name}' trains nothing before the latent, so the alignment "
                "has nothing to move; train the encoding side too (trainable), or the network alone on "
                "latents that `lumitok encode` makes"
            )
        z = output.latent.float()
        labels = part.labels if network.null_label else None
        targets = alignment_targets(encoder, (part.pictures + 1) / 2)
        latent = LatentPart(self.normaliser(z), labels, None, part.draws, targets)
        drawn = draw(latent, self.network.config, network)
        with still(network):
            projected = network.project(interpolate(drawn.noise, latent.data, drawn.t), drawn.t, labels)
        self.seen.append(replace(latent, data=z.detach()))
        return {"tokenizer_alignment": (self.weight, alignment(projected, targets).mean())}


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """Let no gradient of what is computed inside reach the network's weights; it passes through to inputs."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def end_to_end_step(state: EndToEndState, parts: list[Part], images_seen: int) -> None:
    """One step on a batch that comes in parts: discriminators, tokenizer, then the network."""
    state.seen = []
    train_step(state.tokenizer, parts, images_seen)
    diffusion_step(state.network, network_parts(state))


def network_parts(state: EndToEndState) -> list[LatentPart]:
    """The step's latents for the network, normalised by their own statistics."""
    raw: list[Tensor] = [part.data.contiguous() for part in state.seen]
    whole = state.normaliser.normalise_step(raw, state.network.accelerator)
    return [replace(part, data=data) for part, data in zip(state.seen, whole, strict=True)]


def set_network_rate(state: EndToEndState, rate: float) -> None:
    """Set the network's learning rate for the coming step."""
    for group in state.network.optimizer.param_groups:
        group["lr"] = rate
