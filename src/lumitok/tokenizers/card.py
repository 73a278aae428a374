"""A tokenizer's card: ``README.md`` in its folder, as the Hugging Face hub shows it.

It says what is known and nothing else: numbers come from the training's own record, the licence from the
registry of encoders, and no path of a machine is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lumitok.config import EncoderConfig
from lumitok.foundation.registry import TIMM_PREFIX, find_entry
from lumitok.tokenizers.provenance import Provenance

if TYPE_CHECKING:
    from lumitok.tokenizers.base import Tokenizer

CARD = "README.md"
MARK = "<!-- Written by lumitok, anew at every save; without this line the file is yours. -->"
HUB_LICENCES = ("apache-2.0", "mit", "cc-by-nc-4.0", "cc-by-4.0", "cc-by-nc-sa-4.0", "bsd-3-clause")
"""Licences that the hub knows by this name; any other is written as ``other`` with its own name."""


def write_card(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer's card into its folder, unless somebody has written their own there."""
    path = folder / CARD
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    path.write_text(model_card(tokenizer), encoding="utf-8")


def model_card(tokenizer: Tokenizer) -> str:
    """A tokenizer's card as Markdown, with the hub's YAML before it."""
    provenance = tokenizer.provenance
    encoder = getattr(tokenizer.settings, "encoder", None) if tokenizer.foundation is not None else None
    training = "It is not known what it was trained on." if provenance is None else _training(provenance)
    sections = [
        f"# {_title(tokenizer)}",
        _introduction(tokenizer),
        "## Use\n\n" + _use(tokenizer),
        "## Latent\n\n" + _latent(tokenizer),
        "## Training\n\n" + training,
        "## Numbers\n\n" + _numbers(provenance),
        "## Encoder and licence\n\n" + _encoder(tokenizer, encoder),
    ]
    front = yaml.safe_dump(_front(tokenizer, encoder), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{MARK}\n\n" + "\n\n".join(sections) + "\n"


def _title(tokenizer: Tokenizer) -> str:
    recipe = "" if tokenizer.provenance is None else tokenizer.provenance.recipe
    return f"{tokenizer.settings.type}: {recipe}" if recipe else f"{tokenizer.settings.type} tokenizer"


def _front(tokenizer: Tokenizer, encoder: EncoderConfig | None) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "lumitok"}
    front["tags"] = ["image-tokenizer", "autoencoder", "latent-diffusion", str(tokenizer.settings.type)]
    licence, repository = _licence(encoder)
    if licence in HUB_LICENCES:
        front["license"] = licence
    elif licence:
        front |= {"license": "other", "license_name": licence}
    if repository:
        front["base_model"] = repository
    return front


def _licence(encoder: EncoderConfig | None) -> tuple[str, str]:
    """Licence of an encoder's weights and their repository on the hub; empty where there is none."""
    if encoder is None or encoder.weights == "random":
        return "", ""
    entry = find_entry(encoder.name)
    licence = "" if entry.family.licence == "unknown" else entry.family.licence
    return licence, "" if entry.package else entry.hub_repository or ""


def _introduction(tokenizer: Tokenizer) -> str:
    settings = tokenizer.settings
    return (
        f"An image tokenizer of the kind `{settings.type}`, for pictures of {settings.image_size} px; others "
        "are padded to what its grid needs. Pictures are RGB in [-1, 1]."
    )


def _use(tokenizer: Tokenizer) -> str:
    lines = [
        "from lumitok import Tokenizer",
        "",
        'tokenizer = Tokenizer.from_pretrained("FOLDER_OR_HUB_ID")',
        "z = tokenizer.encode(pictures).latent_dist.sample()  # (B, 3, H, W) in [-1, 1] -> raw latents",
    ]
    if tokenizer.settings.latents_mean is not None:
        lines += [
            "white = tokenizer.latent_spec.whiten(z)  # what a diffusion network learns",
            "images = tokenizer.decode(tokenizer.latent_spec.unwhiten(white)).sample",
        ]
    else:
        lines.append("images = tokenizer.decode(z).sample")
    return "```python\n" + "\n".join(lines) + "\n```"


def _latent(tokenizer: Tokenizer) -> str:
    settings = tokenizer.settings
    side = settings.image_size // settings.downsampling
    text = (
        f"{settings.latent_channels} channels of {side} x {side} for {settings.image_size} x "
        f"{settings.image_size} px ({settings.downsampling} times smaller a side)."
    )
    if settings.latents_mean is None:
        return (
            f"{text} It carries no latent statistics, which diffusion needs: `lumitok statistics FOLDER "
            "PICTURES` measures them."
        )
    count = settings.latents_count
    over = "" if count is None else f" over {count:,} pictures"
    rows = [
        f"| {index} | {mean:.4f} | {std:.4f} |"
        for index, (mean, std) in enumerate(zip(settings.latents_mean, settings.latents_std, strict=True))
    ]
    head = ["| Channel | Mean | Standard deviation |", "|---|---|---|"]
    return f"{text} Statistics{over}, of raw latents:\n\n" + "\n".join(head + rows)


def _training(provenance: Provenance) -> str:
    began = f"the weights of `{provenance.started_from}`" if provenance.started_from else "random weights"
    lines = [
        f"- Recipe: `{provenance.recipe}`, stages {', '.join(f'`{name}`' for name in provenance.stages)}",
        f"- Began with: {began}",
        f"- Pictures: `{provenance.data}`, {provenance.pictures:,} of them",
        f"- Steps: {provenance.step:,}; images seen: {provenance.images:,}",
        f"- lumitok {provenance.lumitok}",
    ]
    lines += [f"- Left out: {count:,}, {reason}" for reason, count in provenance.left_out.items()]
    return "\n".join(lines)


def _numbers(provenance: Provenance | None) -> str:
    if provenance is None or provenance.measured is None:
        return "None were measured, as far as this folder tells."
    measured = provenance.measured
    sets = ", ".join(
        f"{count:,} held-out pictures" + (f" of `{name}`" if name else "")
        for name, count in provenance.held_out.items()
    )
    rows = [f"| {name} | {value:.4g} |" for name, value in sorted(measured.values.items())]
    return (
        "\n".join(["| | |", "|---|---|", *rows])
        + f"\n\nAt step {measured.step:,}{', on ' + sets if sets else ''}. {measured.protocol}"
    )


def _encoder(tokenizer: Tokenizer, encoder: EncoderConfig | None) -> str:
    if encoder is None:
        return "It reads no foundation model: its licence is the choice of who trained it."
    name = encoder.name.removeprefix(TIMM_PREFIX)
    kept = "trained and saved with the rest" if tokenizer.trains_encoder else "frozen"
    text = (
        f"Foundation model: `{name}`, layers {encoder.layers}, at {encoder.scale:g} times the picture's "
        f"size, {kept}."
    )
    if encoder.weights == "random":
        return f"{text} It began with random weights."
    licence, _ = _licence(encoder)
    said = f"Licence of its weights: {licence}." if licence else "The licence of its weights is not known."
    text = f"{text} {said}"
    if not tokenizer.trains_encoder:
        text += (
            " Left out of the folder unless `encoder.safetensors` is in it: the encoder's weights, which "
            "`config.json` names with a hash."
        )
    return text
