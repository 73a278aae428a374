"""What ``lumitok evaluate layers`` does: CKNNA of each block of a diffusion network (VFM-VAE's Figure 4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from lumitok.config import EncoderConfig
from lumitok.diffusion import find_network
from lumitok.diffusion.flow import interpolate
from lumitok.errors import LumitokError
from lumitok.evaluation.cknna import NEIGHBOURS
from lumitok.evaluation.curves import Series
from lumitok.evaluation.plots import Plot
from lumitok.evaluation.points_plot import points_plot
from lumitok.evaluation.protocol import LATENTS, Latent, Protocol
from lumitok.evaluation.representations import DETERMINISTIC, Blocks, open_encoder
from lumitok.evaluation.results import Number, Results
from lumitok.foundation import FoundationEncoder
from lumitok.foundation.weights import hash_weights
from lumitok.losses.alignment import alignment_targets
from lumitok.pipelines.beside_network import recipe_beside
from lumitok.pipelines.evaluate_representation import evaluate_representation
from lumitok.pipelines.latent_diffusion import LatentDiffusionPipeline
from lumitok.pipelines.representation_plan import PAPERS_COUNT
from lumitok.pipelines.saved_step import network_step
from lumitok.tokenizers import Tokenizer
from lumitok.training.seeds import derive_seed

KIND = "layers"
TABLE = "layers"
"""Table of the results: for each reference the CKNNA of block 1, 2, ..."""

_CLASS_TOKEN = ", class token of {} noised alike"
_LATENT, _NOISE = 0, 1
"""What a picture's draws are derived with, beside the seed and its number."""


class NetworkLayers(nn.Module):
    """A diffusion network's blocks, seen on the noised latents of pictures: a ``Representation``.

    Every block's raw output at time t with the label of no class; of its tokens those that have a place in
    the picture, not REG's class token. The noise of a picture follows from the seed and its number alone.

    Args:
        pipeline: tokenizer, network, and the statistics that whiten their latents.
        time: from 0, noise, to 1, data.
        latent: ``sample`` noises one draw from the posterior, as training does; ``mean`` its mean.
        seed: of the posterior's draw and the noise.
        class_encoder: gives the class token that a network of REG sees beside the latent, noised alike.

    Raises:
        LumitokError: the network needs an encoder for its class token, or that one is not as wide.
    """

    name = "network"

    def __init__(
        self,
        pipeline: LatentDiffusionPipeline,
        *,
        time: float = 0.5,
        latent: Latent = "sample",
        seed: int = 0,
        class_encoder: FoundationEncoder | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.network = pipeline.tokenizer, pipeline.network
        self.spec = pipeline.origin.spec
        self.time, self.latent, self.seed = time, latent, seed
        self.class_encoder = class_encoder if self.network.class_channels else None
        self.latent_words = LATENTS[latent]
        self.weights = hash_weights(self.network.state_dict().items())
        self.detail = f"spatial tokens at t {time:g}, no class, noise by picture"
        if self.network.class_channels:
            self._check_class_encoder(self.class_encoder)

    def _check_class_encoder(self, encoder: FoundationEncoder | None) -> None:
        wanted = self.network.class_channels
        if encoder is None:
            raise LumitokError(
                f"this network diffuses a class token of {wanted} channels, and no recipe beside it names "
                "the encoder that gives it; name it with --class-encoder (REG's is dinov2-base)"
            )
        if encoder.channels[-1] != wanted:
            raise LumitokError(
                f"the network's class token has {wanted} channels, and the encoder '{encoder.name}' gives "
                f"{encoder.channels[-1]}; name the one that it was trained with, with --class-encoder"
            )
        self.detail += _CLASS_TOKEN.format(encoder.name)

    def blocks(self, pixels: Tensor, draws: Sequence[int]) -> Blocks:
        """Return ``block 1``, ``block 2``, ...: tokens (B, N, width) of each."""
        z = self._latents(pixels, draws)
        channels, device = self.network.class_channels, z.device
        noise, class_noise = [], []
        for draw in draws:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, draw, _NOISE))
            noise.append(torch.randn(z.shape[1:], generator=generator))
            class_noise.append(torch.randn(channels, generator=generator))
        token = None
        if self.class_encoder is not None:
            clean = alignment_targets(self.class_encoder, pixels, class_token=True)[:, 0].float()
            token = interpolate(torch.stack(class_noise).to(device), clean, self.time)
        x = interpolate(torch.stack(noise).to(device), self.spec.whiten(z), self.time)
        null = self.network.null_label
        labels = torch.full((len(x),), null, device=device) if null else None
        times = torch.full((len(x),), self.time, device=device)
        numbers = range(1, len(self.network.blocks) + 1)
        out = self.network(x, times, labels, class_token=token, blocks=numbers, project=False)
        first = int(channels > 0)  # The class token stands before the others.
        return [(_block(number), out.tokens[number][:, first:]) for number in numbers]

    def _latents(self, pixels: Tensor, draws: Sequence[int]) -> Tensor:
        posterior = self.tokenizer.encode(pixels * 2 - 1).latent_dist
        if posterior.logvar is None:
            self.latent_words = DETERMINISTIC
        if self.latent == "mean":
            z: Tensor = posterior.mode()
            return z
        seeds = [derive_seed(self.seed, draw, _LATENT) for draw in draws]
        z = posterior.sample([torch.Generator().manual_seed(seed) for seed in seeds])
        return z


def evaluate_layers(
    checkpoint: str,
    data: str | Path,
    *,
    tokenizer: str | None = None,
    references: Sequence[str | EncoderConfig] = (),
    time: float = 0.5,
    encoder_side: int | None = None,
    class_encoder: str | None = None,
    count: int = PAPERS_COUNT,
    k: int = NEIGHBOURS,
    latent: Latent = "sample",
    batch_size: int = 32,
    seed: int = 0,
    quiet: bool = False,
) -> Results:
    """Measure how far each block of a diffusion network sees pictures as an encoder does.

    Args:
        checkpoint: diffusion run, checkpoint, network folder, saved pipeline, or hub id.
        data: real pictures: a folder, a zip or an npz, centre-cropped to the tokenizer's size.
        tokenizer: run, checkpoint or folder; None: what the run's recipe or the pipeline has.
        references: encoders to compare with; none: the tokenizer's own, as it was before any training.
        time: how far the latents are from noise (0) to data (1); the papers' 0.5.
        encoder_side: pixels at which references that are named see the pictures.
        class_encoder: for a network of REG; None: what the run's recipe aligns to.
        count: at most so many pictures, evenly spread over the listing; the papers' 10,000.
        k: neighbours of CKNNA.
        latent: ``sample`` as in training, or ``mean``.
        batch_size: pictures at a time; it changes nothing but rounding.
        seed: of the posterior's draws and the noise.
        quiet: show no progress.

    Returns:
        CKNNA of each block with each reference and the mean over the blocks; ``tables["layers"]`` has the
        curves.

    Raises:
        LumitokError: parts that do not fit, no reference, a time outside 0 to 1, or what
            :func:`~lumitok.pipelines.evaluate_representation.evaluate_representation` refuses.
    """
    if not 0 <= time <= 1:
        raise LumitokError(f"time runs from 0, noise, to 1, data; got {time:g}")
    pipeline = LatentDiffusionPipeline.from_pretrained(checkpoint, tokenizer=tokenizer)
    size = int(pipeline.tokenizer.config.image_size)
    compared = list(references) or [_own_reference(pipeline.tokenizer)]
    layers = NetworkLayers(
        pipeline,
        time=time,
        latent=latent,
        seed=seed,
        class_encoder=_class_encoder(checkpoint, class_encoder, size)
        if pipeline.network.class_channels
        else None,
    )
    results = evaluate_representation(
        layers,
        data,
        references=compared,
        size=size,
        encoder_side=encoder_side,
        count=count,
        k=k,
        latent=latent,
        changes=False,
        batch_size=batch_size,
        seed=seed,
        quiet=quiet,
    )
    results.kind, results.subject, results.step = KIND, checkpoint, network_step(checkpoint)
    results.numbers = _with_means(results.numbers, layers)
    results.tables[TABLE] = _curves(results.numbers)
    results.tables["tokenizer"] = pipeline.tokenizer.fingerprint()
    return results


def layers_plot(results: Results) -> Plot:
    """CKNNA over the depth of the network, a line a reference."""
    return depth_plot(list(results.tables[TABLE].items()), "CKNNA by block")


def depth_plot(lines: Sequence[tuple[str, Sequence[float]]], title: str) -> Plot:
    """CKNNA over depth, a line (label, values of block 1, 2, ...) each.

    Over the blocks' numbers, as in VFM-VAE's Figure 4; networks of different depths over the share of their
    blocks that is passed.
    """
    depths = {len(values) for _, values in lines}
    alike = len(depths) == 1
    drawn = []
    for label, values in lines:
        whole = 1 if alike else len(values)
        drawn.append(Series(label, [place / whole for place in range(1, len(values) + 1)], values))
    return points_plot(drawn, title=title, xlabel="block" if alike else "share of the blocks")


@dataclass
class Comparison:
    """Networks whose blocks were compared with the same encoder in the same way.

    Attributes:
        reference: name of the encoder.
        lines: (network, its results, CKNNA of block 1, 2, ...) each.
        protocols: how each line's values were made: alike, but for what the networks themselves ask for.
    """

    reference: str
    lines: list[tuple[str, Results, list[float]]] = field(default_factory=list)
    protocols: list[Protocol] = field(default_factory=list)


def compare_layers(named: Sequence[tuple[str, Results]]) -> list[Comparison]:
    """Sort the curves of several networks: together what was measured alike, in the order of networks.

    Args:
        named: a network's name and what :func:`evaluate_layers` found, each.
    """
    found: list[Comparison] = []
    for name, results in named:
        protocols = {number.name: number.protocol for number in results.numbers}
        curves: dict[str, list[float]] = results.tables[TABLE]
        for reference, values in curves.items():
            protocol = protocols[_name(1, reference)]
            mine = next((one for one in found if one.reference == reference and _alike(one, protocol)), None)
            if mine is None:
                mine = Comparison(reference)
                found.append(mine)
            mine.lines.append((name, results, values))
            mine.protocols.append(protocol)
    return found


def _alike(comparison: Comparison, protocol: Protocol) -> bool:
    """Whether values made so belong there, whatever it is that the networks themselves ask for.

    That is the class token that one of REG sees, and latents that have no posterior to draw from.
    """
    mine, other = (
        replace(
            one,
            latent=LATENTS["sample"] if one.latent == DETERMINISTIC else one.latent,
            method=re.sub(_CLASS_TOKEN.format(r"\S+"), "", str(one.method)),
        )
        for one in (comparison.protocols[0], protocol)
    )
    return not mine.unlike(other)


# ------------------------------------------------------------------------------------------------


def _block(number: int) -> str:
    return f"block {number}"


def _own_reference(tokenizer: Tokenizer) -> EncoderConfig:
    """The encoder that a tokenizer is made of, as it was before any training."""
    if tokenizer.foundation is None or tokenizer.settings.encoder.weights == "random":
        raise LumitokError(
            "the tokenizer has no foundation encoder to compare with; name one with --reference, such as "
            "dinov2-large"
        )
    config: EncoderConfig = tokenizer.settings.encoder
    return config.model_copy(update={"sha256": None})


def _class_encoder(checkpoint: str, named: str | None, size: int) -> FoundationEncoder | None:
    """The encoder that is named, else the last that the recipe beside the network aligns to."""
    if named is not None:
        return open_encoder(named, size)
    folder = find_network(checkpoint) if Path(checkpoint).is_dir() else None
    recipe = None if folder is None or folder.name != "network" else recipe_beside(folder.parent)
    stages = [] if recipe is None else recipe.stages
    configs = [stage.losses.alignment_encoder for stage in stages if stage.losses.alignment_encoder]
    return FoundationEncoder(configs[-1]) if configs else None


def _with_means(numbers: Sequence[Number], layers: NetworkLayers) -> list[Number]:
    """Say which latent was noised, and put the mean over the blocks before the blocks."""
    told = []
    for number in numbers:
        # Which block it is stands in the name; so all of them are made alike, which is said once.
        method = re.sub(r"block \d+, ", "", str(number.protocol.method))
        protocol = replace(number.protocol, latent=layers.latent_words, method=method)
        told.append(replace(number, protocol=protocol))
    means = []
    for reference, values in _curves(told).items():
        first = next(number for number in told if number.name == _name(1, reference))
        means.append(replace(first, name=f"CKNNA, mean over blocks vs {reference}", value=fmean(values)))
    return [*means, *told]


def _name(number: int, reference: str) -> str:
    """How :mod:`lumitok.pipelines.evaluate_representation` calls a block's number."""
    return f"CKNNA, {_block(number)} vs {reference}"


def _curves(numbers: Sequence[Number]) -> dict[str, list[float]]:
    """For each reference the values of its blocks, from the first."""
    values = {number.name: number.value for number in numbers}
    head = _name(1, "")
    curves = {}
    for reference in [name.removeprefix(head) for name in values if name.startswith(head)]:
        depth = sum(name.startswith("CKNNA, block ") and name.endswith(f" vs {reference}") for name in values)
        curves[reference] = [values[_name(number, reference)] for number in range(1, depth + 1)]
    return curves
