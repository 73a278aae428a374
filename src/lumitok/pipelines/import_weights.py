"""The released VFM-VAE to a tokenizer folder: what ``lumitok import-weights vfm-vae`` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumitok.config import VFMVAEConfig
from lumitok.errors import LumitokError
from lumitok.interop.faults import Faults, compare
from lumitok.interop.vfm_vae import (
    CONSTANTS,
    ENCODER_PREFIX,
    number_blocks,
    official_to_ours,
    our_names,
    reshaped,
    wrong_constants,
)
from lumitok.interop.vfm_vae_encoder import (
    ChosenEncoder,
    Tower,
    bare_encoder,
    choose_encoder,
    open_tower,
    tower_faults,
)
from lumitok.interop.vfm_vae_file import (
    DISCRIMINATORS,
    find_discriminators,
    find_generator,
    read_file,
    read_latent_statistics,
)
from lumitok.interop.vfm_vae_settings import (
    check_is_generator,
    count_projections,
    official_keys,
    read_settings,
)
from lumitok.pipelines.import_discriminators import read_official, save_discriminators
from lumitok.pipelines.import_folder import ImportReport, Row, check_faults, check_free, write_whole
from lumitok.tokenizers import VFMVAE


@dataclass(frozen=True)
class Options:
    """What a file's shapes cannot say; the defaults are the released model's.

    Attributes:
        encoder: name of the frozen encoder.
        layers: of the encoder, that the file's projections read.
        scale: side of the encoder's input divided by the picture's; None: as the shapes say.
        image_size: side of the pictures in pixels; None: as the file says, or its blocks' default.
        encoder_weights: file of the encoder's weights under timm's names.
        timm_kwargs: further arguments for ``timm.create_model``.
        latents_stats: file with ``mean`` and ``std`` of the latent's channels.
        latents_count: pictures that those were measured on.
        faults: file to list every wrong key in, one a line, if the checkpoint is refused or its
            discriminators are left out.
    """

    encoder: str = "siglip2-large-patch16-512"
    layers: tuple[int, ...] = (0, 12, -1)
    scale: float | None = None
    image_size: int | None = None
    encoder_weights: Path | None = None
    timm_kwargs: dict[str, Any] = field(default_factory=dict)
    latents_stats: Path | None = None
    latents_count: int = 10_000
    faults: Path | None = None


def import_vfm_vae(file: Path, out: Path, options: Options | None = None) -> ImportReport[VFMVAEConfig]:
    """Convert an official VFM-VAE checkpoint to a tokenizer folder, its discriminators beside it.

    Nothing in the file is executed. The folder appears whole or not at all. Discriminators that lumitok
    does not know are left out, and a row of the report says why.

    Args:
        file: ``.pth`` with ``G_ema`` (else ``G``), or a state dict, bare or under ``state_dict``; or
            safetensors.
        out: folder to make.
        options: what the file cannot say.

    Raises:
        WrongFileError: keys are missing, left over, of another shape or hold no numbers; it has the list.
        LumitokError: the file is no generator or needs a pickle's code, the options contradict it, or the
            encoder's weights cannot be had.
    """
    options = options or Options()
    check_free(out)
    content = read_file(file)
    found, judged = find_generator(content, f"'{file}'"), find_discriminators(content)
    state, named_size = number_blocks(found.state)
    own = {key: value for key, value in state.items() if not key.startswith(ENCODER_PREFIX)}
    check_is_generator(own, f"'{file}'")
    tower = open_tower({key: value for key, value in state.items() if key not in own})
    settings = _settings(own, options, named_size)
    faults = _decoder_faults(own, settings)
    for kind, inside in tower_faults(tower, settings.encoder).items():
        faults[kind] += inside
    check_faults(f"'{file}' does not hold a VFM-VAE generator that lumitok knows", faults, options.faults)
    judges, judges_rows = read_official(judged, options.faults)
    statistics = None
    if options.latents_stats is not None:
        statistics = read_latent_statistics(options.latents_stats, settings.latent_channels)
    chosen = choose_encoder(settings.encoder, tower, options.encoder_weights)
    tokenizer = VFMVAE(settings, chosen.encoder)
    ours = {name: value.float() for name, value in official_to_ours(own).items()}
    _load(tokenizer, ours)
    if statistics is not None:
        tokenizer.set_latent_statistics(*statistics, options.latents_count)

    def save(folder: Path) -> None:
        tokenizer.save_pretrained(folder, bundle_encoder=chosen.bundle)
        if judges is not None:
            save_discriminators(judges, folder)

    write_whole(save, out)
    layout = "blocks numbered" if named_size is None else "the older layout, blocks named by their side"
    rows = [
        Row("read", len(state), f"{found.part} of {file.name}, {layout}"),
        Row("converted", len(ours), f"{sum(tokenizer.parts().values()) / 1e6:.2f} million parameters"),
        *_dropped(own, [part for part in found.others if part != DISCRIMINATORS]),
        Row("sizes", 0, _sizes(settings)),
        *_encoder_rows(tower, chosen),
        *judges_rows,
    ]
    if statistics is not None:
        rows.append(Row("statistics", 2, f"the latent's statistics, over {options.latents_count} pictures"))
    return ImportReport(rows, tokenizer.settings, out, _about(tokenizer.settings))


def _about(settings: VFMVAEConfig) -> str:
    noise = ", with the constant noise of the released weights" if settings.legacy_noise else ""
    return (
        f"A VFM-VAE for {settings.image_size} px, f{settings.downsampling}d{settings.latent_channels}, "
        f"encoder {settings.encoder.name} at layers {settings.encoder.layers} and scale "
        f"{settings.encoder.scale:g}{noise}."
    )


# ------------------------------------------------------------------------------------------------
# Its config, and whether it fits


def _settings(own: Mapping[str, Any], options: Options, named_size: int | None) -> VFMVAEConfig:
    shapes = {key: value.shape for key, value in own.items() if isinstance(value, Tensor)}
    projections = count_projections(shapes)
    if projections not in (0, len(options.layers)):
        raise LumitokError(
            f"the file projects {projections} feature maps, the encoder would be read at "
            f"{len(options.layers)} layers, {list(options.layers)}; name its {projections} layers (--layers)"
        )
    encoder = bare_encoder(options.encoder, list(options.layers), options.timm_kwargs)
    return read_settings(
        shapes, encoder, scale=options.scale, image_size=options.image_size, named_size=named_size
    )


def _decoder_faults(own: Mapping[str, Any], settings: VFMVAEConfig) -> Faults:
    """Compare the generator with the keys and shapes that its config has."""
    with torch.device("meta"):
        shapes = {
            n: t.shape for n, t in VFMVAE.from_settings(settings, load_weights=False).state_dict().items()
        }
    wanted_keys = official_keys(settings)
    names = our_names(wanted_keys)
    wanted = {key: shapes[names[key]] if key in names else None for key in wanted_keys}
    state = {
        key: reshaped(names[key], value) if key in names and isinstance(value, Tensor) else value
        for key, value in own.items()
    }
    constants = {k: v for k, v in own.items() if k in wanted and k not in names and isinstance(v, Tensor)}
    return {**compare(state, wanted), "not what lumitok builds": wrong_constants(constants)}


# ------------------------------------------------------------------------------------------------
# The folder


def _load(tokenizer: VFMVAE, state: dict[str, Tensor]) -> None:
    keys = tokenizer.load_state_dict(state, strict=False)
    left = [name for name in keys.missing_keys if not name.startswith("encoder.")]
    assert not left, "a state compared before has every key"
    assert not keys.unexpected_keys, "a state compared before has no other key"
    tokenizer.eval()


def _dropped(own: Mapping[str, Any], others: list[str]) -> list[Row]:
    counts = Counter(kind for key in own for kind in CONSTANTS if key.endswith(kind))
    named = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    about = f"{named}: constants that lumitok builds itself or never uses"
    rows = [Row("dropped", counts.total(), about)]
    if others:
        rows.append(Row("not read", 0, f"the file's {', '.join(others)}"))
    return rows


def _sizes(settings: VFMVAEConfig) -> str:
    """Say where the config is not the paper's: a file cut short at a whole layer shows here alone."""
    told = ("image_size", "downsampling", "latent_channels", "attention_heads")
    names = [
        n for n in VFMVAEConfig.model_fields if n in told or n.endswith("_channels") or n.startswith("block_")
    ]
    found = {
        n: getattr(settings, n) for n in names if getattr(settings, n) != VFMVAEConfig.model_fields[n].default
    }
    listed = ", ".join(f"{name} {value}" for name, value in found.items())
    return f"other than the paper's: {listed}" if found else "the paper's"


def _encoder_rows(tower: Tower, chosen: ChosenEncoder) -> list[Row]:
    kept = "copied into the folder" if chosen.bundle else "named by its hash, not copied"
    name, count = chosen.encoder.name, len(chosen.encoder.state_dict())
    rows = [Row("encoder", count, f"{name}: {chosen.said}; {kept}")]
    pool, other = "the attention pool (head), which is never read", "of an unknown layout, such as"
    if tower.spare:
        rows.append(Row("encoder, dropped", len(tower.spare), pool))
    if tower.unknown:
        rows.append(Row("encoder, dropped", len(tower.unknown), f"{other} {tower.unknown[0]}"))
    return rows
