"""Latent diffusion's autoencoders to tokenizer folders: diffusers' and VA-VAE's files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from lumitok.config import LDMConfig
from lumitok.interop.diffusers_vae import DiffusersConfig, open_vae, settings_of
from lumitok.interop.ldm import compare_with, compvis_name, diffusers_name
from lumitok.interop.va_vae import DROPPED, VAVAE, open_va_vae, read_settings
from lumitok.interop.vfm_vae_file import read_latent_statistics
from lumitok.pipelines.import_discriminators import read_taming, save_discriminators
from lumitok.pipelines.import_folder import (
    ImportReport,
    Row,
    check_faults,
    check_free,
    write_folder,
    write_whole,
)
from lumitok.tokenizers import LDMVAE


@dataclass(frozen=True)
class LDMOptions:
    """What the files cannot say.

    Attributes:
        image_size: side of the pictures in pixels; None: diffusers' ``sample_size``, for VA-VAE 256.
        latents_stats: VA-VAE's file with ``mean`` and ``std`` of the latent's channels.
        latents_count: pictures that those were measured on.
        faults: file to list every wrong key in, one a line, if the weights are refused or VA-VAE's
            discriminator is left out.
    """

    image_size: int | None = None
    latents_stats: Path | None = None
    latents_count: int = 10_000
    faults: Path | None = None


def import_diffusers(path: Path, out: Path, options: LDMOptions | None = None) -> ImportReport[LDMConfig]:
    """Convert diffusers' ``AutoencoderKL`` to a tokenizer folder.

    Nothing in the files is executed. The folder appears whole or not at all. The config's scaling and
    shift become the latent's statistics, see :func:`lumitok.interop.diffusers_vae.settings_of`.

    Args:
        path: folder with ``config.json`` and weights (safetensors or ``.bin``, one file or shards), a
            pipeline's folder with that in ``vae/``, or a weights file with ``config.json`` beside it.
        out: folder to make.
        options: what the files cannot say; ``latents_stats`` is not for these.

    Raises:
        WrongFileError: keys are missing, left over, of another shape or hold no numbers; it has the list.
        LumitokError: the files cannot be read, or are of a model that lumitok does not have.
    """
    options = options or LDMOptions()
    check_free(out)
    found = open_vae(path)
    settings = settings_of(found.config, options.image_size)
    compared = compare_with(found.state, settings, diffusers_name)
    said = f"'{path}' does not hold the AutoencoderKL that its config describes"
    check_faults(said, compared.faults, options.faults)
    tokenizer = _build(settings, compared.state)
    write_folder(tokenizer, out)
    names = ", ".join(file.name for file in found.files)
    rows = [
        Row("read", len(found.state), f"AutoencoderKL in {names}"),
        _converted(tokenizer),
        Row("statistics", 2, _scaling(found.config)),
    ]
    unread = found.config.unread()
    if unread:
        rows.append(Row("not read", 0, f"the config's {', '.join(unread)}"))
    return ImportReport(rows, tokenizer.settings, out, _about("latent diffusion autoencoder", settings))


def import_va_vae(file: Path, out: Path, options: LDMOptions | None = None) -> ImportReport[LDMConfig]:
    """Convert a checkpoint of VA-VAE, or of latent diffusion's own code, to a tokenizer folder.

    Nothing in the file is executed. The folder appears whole or not at all. The file's PatchGAN is put
    beside the tokenizer; one that lumitok does not know is left out, and a row of the report says why.

    Args:
        file: ``.pt`` or ``.ckpt``, a state dict bare or under ``state_dict``; or safetensors.
        out: folder to make.
        options: what the file cannot say.

    Raises:
        WrongFileError: keys are missing, left over, of another shape or hold no numbers; it has the list.
        LumitokError: the file is no VA-VAE, or needs a pickle's code; the statistics do not fit.
    """
    options = options or LDMOptions()
    check_free(out)
    found = open_va_vae(file)
    settings = read_settings(found.state, options.image_size)
    compared = compare_with(found.state, settings, partial(compvis_name, levels=len(settings.multipliers)))
    check_faults(f"'{file}' does not hold a VA-VAE that lumitok knows", compared.faults, options.faults)
    judges, judges_rows = read_taming(found.discriminator, options.faults)
    tokenizer = _build(settings, compared.state)
    statistics = []
    if options.latents_stats is not None:
        mean, std = read_latent_statistics(options.latents_stats, settings.latent_channels)
        tokenizer.set_latent_statistics(mean, std, options.latents_count)
        about = f"the latent's statistics, over {options.latents_count} pictures"
        statistics = [Row("statistics", 2, about)]

    def save(folder: Path) -> None:
        tokenizer.save_pretrained(folder)
        if judges is not None:
            save_discriminators(judges, folder)

    write_whole(save, out)
    count = len(found.state) + len(found.discriminator) + sum(found.dropped.values())
    rows = [
        Row("read", count, f"the state dict of {file.name}"),
        _converted(tokenizer),
        *_dropped(found),
        Row("sizes", 0, _sizes(settings)),
        *judges_rows,
        *statistics,
    ]
    return ImportReport(rows, tokenizer.settings, out, _about("VA-VAE", settings))


def _build(settings: LDMConfig, state: dict[str, Tensor]) -> LDMVAE:
    tokenizer = LDMVAE(settings)
    tokenizer.load_state_dict(state)
    tokenizer.eval()
    return tokenizer


def _converted(tokenizer: LDMVAE) -> Row:
    count = sum(tokenizer.parts().values())
    return Row("converted", len(tokenizer.state_dict()), f"{count / 1e6:.2f} million parameters")


def _dropped(found: VAVAE) -> list[Row]:
    rows = [Row("dropped", count, f"{step}: {DROPPED[step]}") for step, count in found.dropped.items()]
    return [*rows, Row("not read", 0, f"the file's {', '.join(found.others)}")] if found.others else rows


def _scaling(config: DiffusersConfig) -> str:
    factor = config.scaling_factor
    if config.latents_mean is not None:
        return f"its config's latents_mean, and latents_std over scaling_factor {factor:g}; not measured here"
    shift = config.shift_factor or 0.0
    return (
        f"mean {shift:g} and deviation {1 / factor:g} for every channel, as its config has shift_factor "
        f"{shift:g} and scaling_factor {factor:g}; not measured here"
    )


def _sizes(settings: LDMConfig) -> str:
    """Say where the config is not VA-VAE's: a file cut short at a whole level shows here alone."""
    usual = LDMConfig()
    names = [n for n in LDMConfig.model_fields if n != "vf_head"]
    found = [n for n in names if getattr(settings, n) != getattr(usual, n)]
    head = "with the VF head" if settings.vf_head else "without a VF head"
    listed = ", ".join(f"{name} {getattr(settings, name)}" for name in found)
    return f"other than VA-VAE's: {listed}; {head}" if found else f"VA-VAE's; {head}"


def _about(kind: str, settings: LDMConfig) -> str:
    return f"A {kind} for {settings.image_size} px, f{settings.downsampling}d{settings.latent_channels}."
