"""Tokenizer and diffusion network as one pipeline of diffusers: labels in, pictures out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor, nn

from lumitok.config import SamplingConfig
from lumitok.data.latents import LatentOrigin
from lumitok.diffusion import DiffusionNetwork, find_network
from lumitok.diffusion.sampling import Report, evaluations, sample
from lumitok.errors import LumitokError, nearest
from lumitok.evaluation.image_quality import to_uint8
from lumitok.evaluation.pictures import to_pil
from lumitok.nn.folders import fetch_folder
from lumitok.pipelines.beside_network import (
    asked_sampling,
    changed_sampling,
    guide_beside,
    recipe_beside,
    sampling_beside,
    tokenizer_beside,
)
from lumitok.tokenizers import Tokenizer

NO_CLASS = "none"
"""A label by this name draws without a class, unless a class has the name."""
Callback = Callable[["LatentDiffusionPipeline", int, float, dict[str, Tensor]], dict[str, Tensor] | None]


class LatentDiffusionPipeline(DiffusionPipeline):
    """Draws pictures: noise to whitened latents with the network, latents to pictures with the tokenizer.

    Attributes:
        tokenizer: decodes.
        network: the diffusion network.
        guide: a weaker network that guidance leads away from (autoguidance), or None.
        origin: statistics of the latents the network learnt, and the names of its classes.
    """

    _optional_components = ["guide"]

    def __init__(
        self,
        tokenizer: Tokenizer,
        network: DiffusionNetwork,
        guide: DiffusionNetwork | None = None,
        latents: LatentOrigin | None = None,
        sampling: SamplingConfig | dict[str, Any] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            tokenizer: the one that made the network's latents.
            network: the diffusion network.
            guide: the network of autoguidance.
            latents: what the network knows of its latents; None: what the tokenizer says of them.
            sampling: solver and guidance; None: the defaults.

        Raises:
            LumitokError: the parts do not belong together, or there are no latent statistics.
        """
        super().__init__()
        self.origin = LatentOrigin(tokenizer.latent_spec) if latents is None else latents
        _check_fit(tokenizer, network, self.origin)
        given = sampling.model_dump() if isinstance(sampling, SamplingConfig) else dict(sampling or {})
        if given.get("autoguidance") and guide is None:
            raise LumitokError(
                f"open the network of autoguidance, {given['autoguidance']}, and give it as `guide`"
            )
        self.register_modules(tokenizer=tokenizer, network=network, guide=guide)
        # From here on the guide itself says whether there is one, also to a call without guidance.
        self.sampling = changed_sampling(SamplingConfig(), {**given, "autoguidance": None})

    # --------------------------------------------------------------------------------------------
    # Use

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "pt", "np", "latent"] = "pil",
        callback_on_step_end: Callback | None = None,
        return_dict: bool = True,
        batch_size: int = 1,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw one picture a label.

        Args:
            class_labels: numbers or names; None: no class, ``batch_size`` pictures.
            num_inference_steps: steps of the solver; None: as ``sampling`` says, and so below.
            guidance_scale: 1: no guidance.
            guidance_interval: times at which it guides, from 0, noise, to 1, data.
            generator: one draws a seed for each picture, a list has one a picture; None: torch's own.
            output_type: ``pil``; ``pt``: (B, 3, H, W) in [0, 1]; ``np``: (B, H, W, 3) in [0, 1];
                ``latent``: whitened latents (B, C, h, w).
            callback_on_step_end: called after each evaluation of the network with the pipeline, how many
                went before, their time, and ``{"latents": whitened latents}`` of that time, to look at.
            return_dict: an object with ``images``; False: a tuple.
            batch_size: how many, where no labels are given.

        Raises:
            LumitokError: a label that the network has not, or settings that do not fit.
        """
        if output_type not in ("pil", "pt", "np", "latent"):
            raise LumitokError(f"output_type is pil, pt, np or latent, not '{output_type}'")
        labels = None if class_labels is None else self.label_ids(class_labels)
        changes = {
            "steps": num_inference_steps,
            "guidance": guidance_scale,
            "guidance_interval": guidance_interval,
        }
        sampling = asked_sampling(self.sampling, changes)
        seeds = _draw_seeds(generator, batch_size if labels is None else len(labels))
        total = evaluations(sampling)
        with self.progress_bar(**({"iterable": ()} if total is None else {"total": total})) as bar:
            watched = _Watch(self, callback_on_step_end, len(seeds), lambda: bar.update())
            with watched:
                latents = self.draw(labels, seeds, sampling, report=watched.report)
        images = latents if output_type == "latent" else _as_type(self.decode(latents), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def draw(
        self,
        labels: Sequence[int] | None,
        seeds: Sequence[int],
        sampling: SamplingConfig | None = None,
        *,
        report: Report | None = None,
    ) -> Tensor:
        """Draw whitened latents (B, C, h, w), float32: each follows from its seed and label alone.

        Args:
            labels: one a seed; None: no class.
            seeds: one a sample.
            sampling: solver and guidance; None: the pipeline's.
            report: told how far it is, as :func:`lumitok.diffusion.sampling.sample` does.
        """
        return sample(self.network, labels, seeds, sampling or self.sampling, guide=self.guide, report=report)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Whitened latents (B, C, h, w) to pictures (B, 3, H, W) near [-1, 1], float32, not clamped."""
        weights = self.tokenizer.last_parameter()
        raw = self.origin.spec.unwhiten(latents.to(weights.device))
        decoded: Tensor = self.tokenizer.decode(raw.to(weights.dtype)).sample
        return decoded.float()

    @property
    def sampling(self) -> SamplingConfig:
        """Solver and guidance where a call does not say otherwise."""
        return SamplingConfig.model_validate(self.config.sampling)

    @sampling.setter
    def sampling(self, sampling: SamplingConfig) -> None:
        self.register_to_config(sampling=sampling.model_dump(mode="json"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the network's classes; empty where they are not known."""
        names = self.origin.classes
        return names if len(names) == self.network.null_label else ()

    def label_ids(self, labels: int | str | Sequence[int | str]) -> list[int]:
        """Labels of classes given by name, or by number; ``none`` stands for no class.

        Raises:
            LumitokError: the network has no such class.
        """
        given = [labels] if isinstance(labels, int | str) else list(labels)
        if not self.network.null_label:
            raise LumitokError("this network knows no classes; give no labels")
        count = self.network.null_label
        names = {NO_CLASS: count} | {name: label for label, name in enumerate(self.class_names)}
        found = []
        for one in given:
            if isinstance(one, str) and one in names:
                found.append(names[one])
                continue
            if isinstance(one, str) and not one.isdecimal():
                known = (
                    nearest(one, names) if self.class_names else f"; it knows numbers alone, 0 to {count - 1}"
                )
                raise LumitokError(f"this network has no class '{one}'{known}")
            if not 0 <= int(one) < count:
                raise LumitokError(
                    f"there is no class {one}: the network has {count}, 0 to {count - 1}; '{NO_CLASS}' draws "
                    "without one"
                )
            found.append(int(one))
        return found

    # --------------------------------------------------------------------------------------------
    # Files

    def save_pretrained(self, save_directory: str | Path, bundle_encoder: bool = False, **_: Any) -> None:
        """Write one folder: ``model_index.json``, ``tokenizer/``, ``network/`` and perhaps ``guide/``.

        Args:
            save_directory: folder to write to, made if need be.
            bundle_encoder: also write the weights of the tokenizer's frozen encoder, so that the folder
                needs nothing else.

        Raises:
            LumitokError: the tokenizer was converted to another type; its weights are then no longer
                those that the latents name.
        """
        folder = Path(save_directory)
        if self.tokenizer.last_parameter().dtype != torch.float32:
            raise LumitokError(
                "a tokenizer in another type than float32 is not the one that made the latents; save the "
                "pipeline before it is converted, and give torch_dtype when it is opened"
            )
        self.tokenizer.save_pretrained(folder / "tokenizer", bundle_encoder=bundle_encoder)
        self.network.save_pretrained(folder / "network")
        self.origin.save(folder / "network")
        if self.guide is not None:
            self.guide.save_pretrained(folder / "guide")
        self.save_config(folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        tokenizer: str | Path | Tokenizer | None = None,
        sampling: Mapping[str, Any] | None = None,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        **_: Any,
    ) -> Self:
        """Open a saved pipeline, or the network of a training run together with its tokenizer.

        Args:
            pretrained_model_name_or_path: a pipeline's folder, the folder of a diffusion run, of a checkpoint
                or of a network, or an id on the Hugging Face hub.
            tokenizer: run, checkpoint or folder; None: the pipeline's own, or that of the run's recipe.
            sampling: changes of what the pipeline or the run's recipe says, key by key as in
                :class:`~lumitok.config.SamplingConfig`; ``autoguidance`` names a network to open.
            torch_dtype: type to convert weights to; a frozen encoder keeps its own.
            revision: revision on the hub.

        Raises:
            LumitokError: there is no network, no tokenizer, or not the one that made the latents.
        """
        # diffusers' own would import what model_index.json names, and looks for its base class there.
        path = Path(pretrained_model_name_or_path).expanduser()
        folder = find_network(fetch_folder(str(path), revision))
        beside = folder.parent if folder.name == "network" else None
        recipe = recipe_beside(beside)
        network = DiffusionNetwork.from_pretrained(folder)
        wanted = asked_sampling(sampling_beside(beside, recipe), sampling or {})
        guide = guide_beside(beside, wanted)
        if tokenizer is None:
            tokenizer = tokenizer_beside(beside, recipe)
        elif not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.from_pretrained(Path(tokenizer).expanduser())
        pipeline = cls(tokenizer, network, guide, LatentOrigin.load(folder), wanted)
        if torch_dtype is not None:
            parts = [part for part in tokenizer.children() if part is not tokenizer.frozen]
            for module in [network, *([] if guide is None else [guide]), *parts]:
                nn.Module.to(module, torch_dtype)
        return pipeline


# ------------------------------------------------------------------------------------------------
# The parts


def _check_fit(tokenizer: Tokenizer, network: DiffusionNetwork, origin: LatentOrigin) -> None:
    spec = origin.spec
    spec.require_statistics()
    shape = (spec.channels, spec.height, spec.width)
    if network.latent_shape != shape:
        raise LumitokError(
            f"the network draws latents of {network.latent_shape} (channels, rows, columns), and these are "
            f"of {shape}; open the tokenizer that the network was trained for"
        )
    if tokenizer.settings.latent_channels != spec.channels:
        raise LumitokError(
            f"the network draws latents of {spec.channels} channels, and the tokenizer's have "
            f"{tokenizer.settings.latent_channels}; give the tokenizer that made them"
        )
    # Only the weights as they were saved have the fingerprint; what decodes may have been trained on.
    if spec.tokenizer and tokenizer.last_parameter().dtype == torch.float32:
        found = tokenizer.latent_fingerprint()
        if found != spec.tokenizer:
            raise LumitokError(
                f"the network learnt the latents of the tokenizer {spec.tokenizer[:12]}, and this one is "
                f"{found[:12]}; give the tokenizer that made them"
            )


# ------------------------------------------------------------------------------------------------
# A call


class _Watch:
    """Sees each evaluation of the network: moves the bar, and shows the callback the state."""

    def __init__(
        self,
        pipeline: LatentDiffusionPipeline,
        callback: Callback | None,
        count: int,
        moved: Callable[[], object],
    ) -> None:
        self.pipeline, self.callback, self.count, self.moved = pipeline, callback, count, moved
        self._steps = itertools.count()
        self._state: tuple[Tensor, float] | None = None

    def __enter__(self) -> None:
        self._hook = self.pipeline.network.register_forward_pre_hook(self._see)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _see(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        if self.callback is not None:
            # With guidance the batch is there twice; the second half is the same.
            self._state = given[0][: self.count], float(given[1][0])

    def report(self, done: int, total: int | None) -> None:
        """Take part after an evaluation."""
        del done, total
        self.moved()
        if self.callback is None or self._state is None:
            return
        latents, t = self._state
        answer = self.callback(self.pipeline, next(self._steps), t, {"latents": latents})
        if answer is not None and answer.get("latents", latents) is not latents:
            raise LumitokError(
                "callback_on_step_end gave other latents back; the solvers keep their own state, so a "
                "callback can look at it and not change it"
            )


def _draw_seeds(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[int]:
    """One seed a picture."""
    if isinstance(generator, list):
        if len(generator) != count:
            raise LumitokError(f"there are {len(generator)} generators for {count} pictures; give one each")
        return [seed for one in generator for seed in _draw_seeds(one, 1)]
    device = "cpu" if generator is None else generator.device
    drawn = torch.randint(2**63 - 1, (count,), generator=generator, device=device)
    return [int(seed) for seed in drawn.tolist()]


def _as_type(pictures: Tensor, output_type: str) -> Any:
    if output_type == "pil":
        return [to_pil(picture) for picture in to_uint8(pictures).cpu()]
    scaled = (pictures / 2 + 0.5).clamp(0, 1)
    return scaled if output_type == "pt" else scaled.permute(0, 2, 3, 1).cpu().numpy()
