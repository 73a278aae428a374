"""The contract every tokenizer keeps: what diffusers users know, with a frozen encoder left out of the file.

pictures (B, 3, H, W) in [-1, 1]  --encode-->  posterior over z (B, C, h, w), raw
z (B, C, h, w), raw               --decode-->  pictures in [-1, 1], unbounded
"""

from __future__ import annotations

import hashlib
import logging
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from lumitok.config import TokenizerConfig, first_fault
from lumitok.config.saved import CONFIG, ENCODER_WEIGHTS, find_saved
from lumitok.data.latents import LatentSpec
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder, frozen_prefixes, trained_state
from lumitok.foundation.weights import hash_weights
from lumitok.nn.folders import WEIGHTS, contiguous, fetch_folder, load_strictly, saved_kind
from lumitok.tokenizers.card import write_card
from lumitok.tokenizers.provenance import Provenance, read_provenance, write_provenance

_log = logging.getLogger(__name__)
_said: set[str] = set()
"""Folders whose missing statistics were told of."""

Generators = torch.Generator | list[torch.Generator] | None
"""What draws a batch's noise: one generator for all, a list with one a picture (its noise is then the
same in whatever batch it stands), or None for torch's own."""


class Equivariance(Protocol):
    """The transforms of one training step, the same for all its pictures (EQ-VAE, arXiv 2502.09509)."""

    def shrink(self, pictures: Tensor) -> Tensor:
        """Resize pictures (B, 3, H, W) before they are encoded."""

    def latent(self, z: Tensor) -> Tensor:
        """Resize and turn latents (B, C, h, w) before they are decoded."""

    def picture(self, x: Tensor) -> Tensor:
        """Change shrunk pictures as the latent is: what the decoder shall give."""


@dataclass
class DecoderOutput:
    """Pictures (B, 3, H, W) near [-1, 1], not clamped."""

    sample: Tensor
    pyramid: list[Tensor]
    """The decoder's images, small to large; the last is ``sample``, for many decoders the only one."""


@dataclass
class TokenizerOutput:
    """All that the training losses need of one forward pass."""

    sample: Tensor
    """Reconstruction (B, 3, H, W); of the changed picture where an equivariance was given."""
    pyramid: list[Tensor]
    """The decoder's images, small to large; the last is ``sample``."""
    latent: Tensor
    """Sampled z (B, C, h, w), before any equivariance's change."""
    mean: Tensor
    logvar: Tensor | None
    """None where the latent is deterministic."""
    features: Tensor | None
    """The last map (B, C_f, H', W') that the foundation encoder gave, where the tokenizer has one."""
    projected: Tensor | None
    """z through the VF head (B, C_f, h, w), where there is one."""


class Tokenizer(ModelMixin, ConfigMixin):
    """Base of all tokenizers; :meth:`from_pretrained` on it opens any of them.

    A subclass sets ``Settings`` (its typed config), builds itself from it, and has ``encode``,
    ``decode`` and the other abstract methods. A frozen foundation encoder lives in ``encoder``: it is
    named in ``config.json`` with a hash of its weights and not copied into the weights file. An encoder
    that is trained is like any other part.
    """

    config_name = CONFIG
    Settings: ClassVar[type[TokenizerConfig]]
    trains_encoder: ClassVar[bool] = False
    """Whether the foundation encoder is trained and saved with the rest."""
    encoding_parts: ClassVar[tuple[str, ...]]
    """The top-level modules outside a frozen encoder that the latent depends on."""
    _kinds: ClassVar[dict[str, type[Tokenizer]]] = {}
    settings: Any
    provenance: Provenance | None = None
    """What trained it, as far as that is known; it is saved and loaded with the weights."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Settings" in cls.__dict__:  # A class between this one and those has none.
            Tokenizer._kinds[cls.__name__] = cls

    def __init__(self, settings: TokenizerConfig, encoder: FoundationEncoder | None = None) -> None:
        super().__init__()
        self.settings = settings
        if encoder is not None:
            self.encoder = encoder
        self.register_to_config(**settings.model_dump(mode="json"))

    def __getattr__(self, name: str) -> Any:
        # diffusers would look a name up in the config before the modules, and both have an `encoder`.
        return nn.Module.__getattr__(self, name)

    # --------------------------------------------------------------------------------------------
    # What a tokenizer must have

    @abstractmethod
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Pictures (B, 3, H, W) in [-1, 1] -> an object with ``latent_dist`` over raw z (B, C, h, w)."""

    @abstractmethod
    def decode(self, z: Tensor, return_dict: bool = True, generator: Generators = None) -> Any:
        """Raw z (B, C, h, w) -> an object with ``sample``, pictures (B, 3, H, W) in [-1, 1], not clamped."""

    @abstractmethod
    def reconstruct(self, x: Tensor, sample_posterior: bool = False, generator: Generators = None) -> Tensor:
        """Pictures of any size in [-1, 1] -> their reconstructions, clamped to [-1, 1]."""

    @abstractmethod
    def balance_parameter(self) -> nn.Parameter:
        """The last weight of the encoding side: where gradients are compared for a loss on the latent."""

    @abstractmethod
    def last_parameter(self) -> nn.Parameter:
        """The last weight of the decoding side: where gradients are compared for an adversarial loss."""

    # --------------------------------------------------------------------------------------------
    # What is trained

    @property
    def foundation(self) -> FoundationEncoder | None:
        """The foundation encoder, frozen or trained; None where the tokenizer has none."""
        found = self._modules.get("encoder")
        return found if isinstance(found, FoundationEncoder) else None

    @property
    def frozen(self) -> FoundationEncoder | None:
        """The foundation encoder where it is frozen: named in the config, not in the weights file."""
        return None if self.trains_encoder else self.foundation

    def trainable_names(self) -> list[str]:
        """Names of all parameters outside a frozen encoder."""
        frozen = frozen_prefixes(self)
        return [name for name, _ in self.named_parameters() if not name.startswith(frozen)]

    def parts(self) -> dict[str, int]:
        """Count the parameters outside a frozen encoder, part by part: top-level module, or block."""
        counts: dict[str, int] = {}
        parameters = dict(self.named_parameters())
        for name in self.trainable_names():
            steps = name.split(".")
            part = ".".join(steps[:2]) if steps[0] == "blocks" else steps[0]
            counts[part] = counts.get(part, 0) + parameters[name].numel()
        return counts

    # --------------------------------------------------------------------------------------------
    # The latent

    @property
    def config(self) -> FrozenDict:
        """The settings, and under diffusers' names what its pipelines ask of a VAE.

        Its pipelines know two ways to bring z to unit variance: (z - ``shift_factor``) *
        ``scaling_factor`` with two numbers, or ``latents_mean`` and ``latents_std`` by channel, and where
        a config has both, some apply both. So it has one of them: numbers where all channels share
        their statistics, as in an imported AutoencoderKL; else the channels', and the numbers change
        nothing. ``latent_spec`` has the statistics in either case.
        """
        mean, std = self.settings.latents_mean, self.settings.latents_std
        known: dict[str, Any] = {"scaling_factor": 1.0, "shift_factor": 0.0}
        if mean and std and len(set(mean)) == len(set(std)) == 1:
            known = {"scaling_factor": 1 / std[0], "shift_factor": mean[0]}
            known |= {"latents_mean": None, "latents_std": None}
        known |= {"block_out_channels": self.level_widths(), "force_upcast": True}
        return FrozenDict({**self._internal_dict, **known})

    def level_widths(self) -> list[int]:
        """One number a level of resolution: diffusers' pipelines count them to know the downsampling."""
        return [self.settings.latent_channels] * int(math.log2(self.settings.downsampling) + 1)

    @property
    def latent_spec(self) -> LatentSpec:
        """Shape and statistics of the latents of pictures of ``config.image_size``."""
        side = self.settings.image_size // self.settings.downsampling
        mean, std = self.settings.latents_mean, self.settings.latents_std
        return LatentSpec(
            channels=self.settings.latent_channels,
            height=side,
            width=side,
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
            tokenizer=self.latent_fingerprint(),
        )

    def set_latent_statistics(self, mean: Tensor, std: Tensor, count: int | None) -> None:
        """Store the latent's channel statistics; they are saved in ``config.json``.

        Args:
            mean: (C,).
            std: (C,), above 0.
            count: pictures that they were measured on; None: they were not measured here.
        """
        values = {"latents_mean": mean.tolist(), "latents_std": std.tolist(), "latents_count": count}
        self.settings = self.settings.model_copy(update=values)
        self.register_to_config(**values)

    def fingerprint(self) -> str:
        """Return a hash of the weights, trained and frozen: equal reconstructions need equal ones."""
        return self._hash_with(trained_state(self).items())

    def latent_fingerprint(self) -> str:
        """Return a hash of the weights that make the latent: equal latents need equal ones.

        Another decoder, trained on the same latents, leaves it as it is.
        """
        state = trained_state(self).items()
        return self._hash_with((name, t) for name, t in state if name.split(".")[0] in self.encoding_parts)

    def _hash_with(self, weights: Iterable[tuple[str, Tensor]]) -> str:
        frozen = "" if self.frozen is None else self.frozen.weights_hash()
        return hashlib.sha256((frozen + hash_weights(weights)).encode()).hexdigest()

    # --------------------------------------------------------------------------------------------
    # Files

    def save_pretrained(self, save_directory: str | Path, bundle_encoder: bool = False, **_: Any) -> None:
        """Write ``config.json``, the weights as safetensors, and a card (``README.md``).

        Args:
            save_directory: folder to write to, made if need be.
            bundle_encoder: also write a frozen encoder's weights, so that the folder needs nothing
                else. An encoder with random weights is always written: nobody else has them.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(contiguous(trained_state(self).items()), folder / WEIGHTS, metadata={"format": "pt"})
        (folder / ENCODER_WEIGHTS).unlink(missing_ok=True)
        if self.frozen is not None:
            # The hash found at loading holds also where the weights were converted to another type since.
            found = self.settings.encoder.sha256 or self.frozen.weights_hash()
            encoder = self.settings.encoder.model_copy(update={"sha256": found})
            self.register_to_config(encoder=encoder.model_dump(mode="json"))
            if bundle_encoder or self.settings.encoder.weights == "random":
                state = contiguous(self.frozen.state_dict().items())
                save_file(state, folder / ENCODER_WEIGHTS, metadata={"format": "pt"})
        self.save_config(folder)
        write_provenance(self.provenance, folder)
        write_card(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        encoder_weights: str | None = None,
        torch_dtype: torch.dtype | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        **_: Any,
    ) -> Self:
        """Open a saved tokenizer, in eval mode.

        Args:
            pretrained_model_name_or_path: a tokenizer's folder, the folder of a finished run or of a
                checkpoint, or a model id on the Hugging Face hub.
            encoder_weights: a local file of the frozen encoder's weights, in place of the one named
                in the config; it must have the same hash.
            torch_dtype: type to convert the weights to; the frozen encoder keeps its own.
            subfolder: folder below it that holds the tokenizer.
            revision: revision on the hub.

        Raises:
            LumitokError: the folder is not a tokenizer, a key is missing or left over, or the
                encoder's weights are not those it was trained with.
        """
        folder = fetch_folder(str(pretrained_model_name_or_path), revision)
        folder = find_tokenizer(folder / (subfolder or ""))
        found, values = saved_kind(folder, "tokenizer", cls, Tokenizer._kinds, "Tokenizer")
        chosen = cast("type[Self]", found)
        if encoder_weights is not None:
            if chosen.trains_encoder or "encoder" not in values:
                raise LumitokError(
                    f"{folder} holds a {chosen.__name__}, which has no frozen encoder; drop encoder_weights"
                )
            values["encoder"] = {**values["encoder"], "weights": encoder_weights}
        try:
            settings = chosen.Settings.model_validate(values)
        except ValidationError as error:
            raise LumitokError(f"{folder / CONFIG}: {first_fault(error, chosen.Settings)}") from None
        bundled = folder / ENCODER_WEIGHTS
        at_hand = chosen.trains_encoder or (bundled.is_file() and encoder_weights is None)
        tokenizer = chosen.from_settings(settings, load_weights=not at_hand)
        if at_hand and tokenizer.frozen is not None:
            load_strictly(tokenizer.frozen, bundled)
            tokenizer.check_encoder()
        load_strictly(tokenizer, folder / WEIGHTS, but=frozen_prefixes(tokenizer))
        tokenizer.eval()
        tokenizer.provenance = read_provenance(folder)
        _tell_of_statistics(settings, folder)
        if torch_dtype is not None:
            for part in tokenizer.children():
                if part is not tokenizer.frozen:
                    part.to(torch_dtype)
        return tokenizer

    @classmethod
    def from_settings(cls, settings: Any, *, load_weights: bool = True) -> Self:
        """Build a tokenizer, its own weights random, a foundation encoder's loaded unless told otherwise."""
        if "encoder" not in type(settings).model_fields:
            return cls(settings)
        encoder = FoundationEncoder(settings.encoder, load_weights=load_weights, trainable=cls.trains_encoder)
        tokenizer = cls(settings, encoder)
        if load_weights:
            tokenizer.check_encoder()
        return tokenizer

    def check_encoder(self) -> None:
        """Raise a LumitokError where the encoder's weights are not those named in the config."""
        if self.foundation is None:
            return
        wanted, found = self.settings.encoder.sha256, self.foundation.weights_hash()
        if wanted is not None and found != wanted:
            raise LumitokError(
                f"the weights of the encoder '{self.settings.encoder.name}' have the hash "
                f"{found[:12]}, but this tokenizer was trained with {wanted[:12]}; "
                f"give the right file as encoder_weights"
            )


def find_tokenizer(path: str | Path) -> Path:
    """Return the tokenizer folder of a run, of a checkpoint, or ``path`` itself where it is one.

    Of a run: the final tokenizer, or the newest checkpoint's while there is none.

    Raises:
        LumitokError: there is no such folder, or no tokenizer in it.
    """
    return find_saved(path, "tokenizer")


def _tell_of_statistics(settings: TokenizerConfig, folder: Path) -> None:
    """Say, once a folder, that diffusion cannot use these latents yet."""
    name = str(folder.resolve())
    if settings.latents_mean is None and name not in _said:
        _said.add(name)
        _log.warning(
            "%s carries no latent statistics, which diffusion needs; `lumitok statistics` measures them",
            folder,
        )
