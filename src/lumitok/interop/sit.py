"""The checkpoints of SiT, REPA and REG: the config that the shapes of their tensors say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lumitok.config import first_fault
from lumitok.config.networks import ProjectorConfig, SiTConfig
from lumitok.errors import LumitokError
from lumitok.interop.networks import Kind, common_sizes, witnesses
from lumitok.interop.witnesses import Witnesses


def read_settings(
    state: Mapping[str, Any], heads: int | None = None, projector_block: int | None = None
) -> SiTConfig:
    """Work out the config from the shapes of the state's tensors.

    Args:
        state: by the official keys.
        heads: attention heads, which no shape says without ``qk_norm``; None: those of the named size.
        projector_block: the block that the projector reads, which no shape says; None: 8, as REPA.

    Raises:
        LumitokError: no network of ours has such sizes.
    """
    seen = witnesses(state)
    class_channels = seen.most(r"cls_projectors2\.weight", 1) or 0
    try:
        return SiTConfig(
            **common_sizes(seen, heads, tokens_before=1 if class_channels else 0),
            qk_norm=seen.count(r"blocks\.(\d+)\.attn\.[qk]_norm\.") > 0,
            class_channels=class_channels,
            projector=_projector(seen, projector_block),
        )
    except ValidationError as error:
        raise LumitokError(
            f"lumitok has no SiT of this file's sizes: {first_fault(error, SiTConfig)}"
        ) from None


def check_kind(state: Mapping[str, Any], kind: Kind, source: str) -> None:
    """Raise a LumitokError where the keys are another's: SiT's time runs the other way round than the rest's.

    SiT has neither a projector nor a class token, REPA the one, REG both.
    """
    found: Kind = "sit"
    if any(key.startswith("cls_projectors2.") for key in state):
        found = "reg"
    elif any(key.startswith("projectors.") for key in state):
        found = "repa"
    if found != kind:
        said = {"sit": "neither", "repa": "a projector and no class token", "reg": "a class token"}[found]
        raise LumitokError(
            f"{source} is laid out as '{found}': of a projector and a class token it has {said}; import it "
            f"so: `import-weights {found}`"
        )


def _projector(seen: Witnesses, block: int | None) -> ProjectorConfig | None:
    if not any(key.startswith("projectors.") for key in seen.shapes):
        return None
    usual = ProjectorConfig()
    return ProjectorConfig(
        block=usual.block if block is None else block,
        hidden=seen.most(r"projectors\.0\.[02]\.(weight|bias)", 0) or usual.hidden,
        channels=seen.most(r"projectors\.0\.4\.(weight|bias)", 0) or usual.channels,
    )
