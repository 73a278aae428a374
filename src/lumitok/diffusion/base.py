"""The contract every diffusion network keeps.

whitened latent x_t (B, C, H, W), time t (B,), labels (B,)  ->  velocity (B, C, H, W)

Time runs from noise at t = 0 to data at t = 1 on the straight path x_t = t data + (1 - t) noise, so the
velocity is data - noise: in every network here, whatever the convention of its paper.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from lumitok.config import first_fault
from lumitok.config.networks import NetworkConfig
from lumitok.config.saved import CONFIG, find_saved
from lumitok.diffusion.layers import Rotation, pass_by
from lumitok.errors import LumitokError
from lumitok.nn.folders import WEIGHTS, build_filled, contiguous, fetch_folder, open_weights, saved_kind


@dataclass
class Conditioning:
    """What a conditioner makes of labels and time.

    Attributes:
        vector: (B, d), what the blocks' modulation reads.
        tokens: (B, L, d), tokens that stand before the latent's in every block, or None. Text comes in
            here; class labels have none.
    """

    vector: Tensor
    tokens: Tensor | None = None


class LabelConditioner(nn.Module):
    """The time's embedding plus that of a class; the last row of the table stands for no class.

    With no classes at all, the time's embedding alone. Another conditioner (of text, say) has the same
    ``forward``, its first argument being whatever it conditions on.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, labels: Tensor | None, time: Tensor) -> Conditioning:
        """Labels (B,), None for no class, and the time's embedding (B, d) -> the condition."""
        if self.table is None:
            return Conditioning(time)
        if labels is None:
            labels = torch.full(time.shape[:1], self.classes, device=time.device)
        return Conditioning(time + self.table(labels))


@dataclass
class NetworkOutput:
    """What one evaluation gives.

    Attributes:
        velocity: (B, C, H, W), data - noise.
        class_velocity: (B, d), the class token's, where the network diffuses one (REG).
        projected: (B, T, d_enc), the projector's output, the class token first where there is one.
        tokens: raw output (B, T, width) of each block asked for, the class token first where there is one.
    """

    velocity: Tensor
    class_velocity: Tensor | None = None
    projected: Tensor | None = None
    tokens: dict[int, Tensor] = field(default_factory=dict)


class DiffusionNetwork(ModelMixin, ConfigMixin):
    """Base of all diffusion networks; :meth:`from_pretrained` on it opens any of them.

    A subclass sets ``Settings`` (its typed config), builds itself from it, and has :meth:`predict`. Its
    blocks lie in ``blocks``, what reads the labels in ``conditioner``.
    """

    config_name = CONFIG
    Settings: ClassVar[type[NetworkConfig]]
    _kinds: ClassVar[dict[str, type[DiffusionNetwork]]] = {}
    settings: Any
    blocks: nn.ModuleList

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        DiffusionNetwork._kinds[cls.__name__] = cls

    def __init__(self, settings: NetworkConfig) -> None:
        super().__init__()
        self.settings = settings
        self.register_to_config(**settings.model_dump(mode="json"))

    def __getattr__(self, name: str) -> Any:
        # diffusers would look a name up in the config before the modules, and both have a `projector`.
        return nn.Module.__getattr__(self, name)

    # --------------------------------------------------------------------------------------------
    # What it is

    @property
    def null_label(self) -> int:
        """The label that stands for no class."""
        return int(self.settings.classes)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a latent."""
        side = self.settings.input_size
        return self.settings.in_channels, side, side

    @property
    def class_channels(self) -> int:
        """Channels of the class token that is diffused along with the latent; 0: there is none."""
        return int(getattr(self.settings, "class_channels", 0))

    def check_labels(self, labels: Tensor | Sequence[int]) -> None:
        """Raise a LumitokError for a label that the network has not; it waits for the device."""
        found = torch.as_tensor(labels)
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) <= self.null_label:
            wrong = int(found.min()) if int(found.min()) < 0 else int(found.max())
            raise LumitokError(
                f"there is no class {wrong}: the network has {self.null_label}, from 0, and "
                f"{self.null_label} stands for none of them"
            )

    # --------------------------------------------------------------------------------------------
    # Use

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        class_token: Tensor | None = None,
        blocks: Sequence[int] = (),
        project: bool | None = None,
    ) -> NetworkOutput:
        """Predict the velocity at x_t.

        Args:
            x: whitened latents (B, C, H, W) at time t.
            t: times (B,) in [0, 1], 0 noise and 1 data.
            labels: classes (B,), or whatever the conditioner reads; None: no class.
            class_token: the encoder's class token (B, d) at the same time, for a network that diffuses one.
            blocks: blocks whose raw output to return, the first being 1.
            project: whether to run the projector; None: in training mode.

        Raises:
            LumitokError: a shape is not the network's, or the class token is missing or not wanted.
        """
        self._check(x, t, class_token, blocks)
        if project is None:
            project = self.training
        settings = self.settings.projector
        at = settings.block if project and settings is not None else 0
        wanted = {*blocks, at} - {0}
        out = self.predict(x, t, labels, class_token=class_token, blocks=wanted)
        if at:
            out.projected = self.projector(out.tokens[at])
        out.tokens = {block: out.tokens[block] for block in blocks}
        return out

    def project(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The projector's output (B, T, d_enc) alone: no block after the one that it reads is run.

        Arguments as for :meth:`forward`, of a network that has a projector and diffuses no class token.
        """
        self._check(x, t, None, ())
        at = self.settings.projector.block
        tokens = self.predict(x, t, labels, class_token=None, blocks={at}, until=at).tokens[at]
        projected: Tensor = self.projector(tokens)
        return projected

    @abstractmethod
    def predict(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None,
        *,
        class_token: Tensor | None,
        blocks: set[int],
        until: int | None = None,
    ) -> NetworkOutput:
        """:meth:`forward` without checks and without the projector; ``until``: the last block to run."""

    def run_blocks(
        self,
        tokens: Tensor,
        condition: Conditioning,
        vector: Tensor,
        *rotation: Rotation | None,
        blocks: set[int],
        until: int | None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the blocks on tokens (B, T, d), those of the condition standing before them.

        Args:
            tokens: of the latent, and of whatever else is diffused.
            condition: whose tokens, where it has any, are neither rotated nor returned.
            vector: what modulates, (B, 1, d).
            rotation: of the latent's tokens, for blocks that take one.
            blocks: numbers, from 1, of the blocks whose output is kept.
            until: the last block to run; None: all.

        Returns:
            The tokens after the last block, and those after each block asked for.
        """
        before = 0
        if condition.tokens is not None:
            before = condition.tokens.shape[1]
            tokens = torch.cat([condition.tokens, tokens], dim=1)
        turned = [pass_by(one, before) for one in rotation]
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(islice(self.blocks, until), start=1):
            tokens = block(tokens, vector, *turned)
            if number in blocks:
                kept[number] = tokens[:, before:]
        return tokens[:, before:], kept

    def compile_blocks(self, **options: Any) -> None:
        """Compile each block by itself: quick, since blocks are alike, and with nothing between to break."""
        for block in self.blocks:
            block.compile(**options)

    def _check(self, x: Tensor, t: Tensor, class_token: Tensor | None, blocks: Sequence[int]) -> None:
        if x.ndim != 4 or tuple(x.shape[1:]) != self.latent_shape:
            raise LumitokError(f"latents of {tuple(x.shape)} do not fit this network's {self.latent_shape}")
        if t.shape != x.shape[:1]:
            raise LumitokError(f"times of {tuple(t.shape)} for {x.shape[0]} latents; give one a latent")
        wanted = (x.shape[0], self.class_channels) if self.class_channels else None
        got = None if class_token is None else tuple(class_token.shape)
        if got != wanted:
            raise LumitokError(f"class_token is {got}, this network takes {wanted}")
        for block in blocks:
            if not 1 <= block <= len(self.blocks):
                raise LumitokError(f"there is no block {block}: they are 1 to {len(self.blocks)}")

    # --------------------------------------------------------------------------------------------
    # Files

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write ``config.json`` and the weights as safetensors."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        state = contiguous(self.state_dict().items())
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        self.save_config(folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        **_: Any,
    ) -> Self:
        """Open a saved network, in eval mode.

        Args:
            pretrained_model_name_or_path: a network's folder, the folder of a run or of a checkpoint, or a
                model id on the Hugging Face hub.
            torch_dtype: type to convert the weights to.
            subfolder: folder below it that holds the network.
            revision: revision on the hub.

        Raises:
            LumitokError: the folder is not a network, or a key is missing or left over.
        """
        folder = fetch_folder(str(pretrained_model_name_or_path), revision)
        folder = find_network(folder / (subfolder or ""))
        kinds = DiffusionNetwork._kinds
        found, values = saved_kind(folder, "network", cls, kinds, "DiffusionNetwork")
        chosen = cast("type[Self]", found)
        try:
            settings = chosen.Settings.model_validate(values)
        except ValidationError as error:
            raise LumitokError(f"{folder / CONFIG}: {first_fault(error, chosen.Settings)}") from None
        weights = folder / WEIGHTS
        network = build_filled(lambda: chosen(settings), open_weights(weights), str(weights))
        network.eval()
        if torch_dtype is not None:
            nn.Module.to(network, torch_dtype)
        return cast("Self", network)


def build_network(config: NetworkConfig) -> DiffusionNetwork:
    """Build a network of any kind from its config, its weights drawn as its paper does.

    Under ``torch.device("meta")`` nothing is drawn, and every tensor is on that device.
    """
    for kind in DiffusionNetwork._kinds.values():
        if kind.Settings.model_fields["type"].default == config.type:
            network = kind(config)
            # Fixed tables are made on the CPU, wherever the rest is, so that no loading can lose them.
            nn.Module.to(network, next(network.parameters()).device)  # diffusers' `to` imports peft first.
            return network
    raise AssertionError(f"a config of the type {config.type} has a network")


def find_network(path: str | Path) -> Path:
    """Return the network folder of a run, of a checkpoint, or ``path`` itself where it is one.

    Raises:
        LumitokError: there is no such folder, or no network in it.
    """
    return find_saved(path, "network")
