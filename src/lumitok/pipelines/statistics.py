"""A tokenizer's latent statistics, measured after the fact: what ``lumitok statistics`` does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lumitok.config.saved import read_config
from lumitok.data import evenly, open_pictures
from lumitok.errors import LumitokError
from lumitok.nn.precision import exact_float32
from lumitok.tokenizers import Tokenizer
from lumitok.tokenizers.base import find_tokenizer
from lumitok.tokenizers.card import write_card
from lumitok.training import measure_latents
from lumitok.training.precision import default_device


@dataclass(frozen=True)
class StatisticsReport:
    """What was measured, and where it was written."""

    folder: Path
    """Of the tokenizer."""
    mean: list[float]
    """Of each channel of the raw latents."""
    std: list[float]
    """Unbiased."""
    count: int
    """Pictures."""
    unreadable: int
    """Pictures that were chosen and could not be read."""
    how: str


def store_statistics(
    checkpoint: str,
    pictures: str | Path,
    *,
    count: int = 10_000,
    seed: int = 0,
    batch_size: int = 32,
    replace: bool = False,
) -> StatisticsReport:
    """Measure a tokenizer's latent statistics and store them in its folder.

    They are those that a training run measures at its end: of sampled latents of centre-cropped pictures, in
    float32. ``config.json`` gets them, and the card; weights stay as they are.

    Args:
        checkpoint: folder of a run, a checkpoint or a tokenizer.
        pictures: folder or zip of pictures such as it was trained on.
        count: pictures at most, spread evenly over the listing.
        seed: of the draws.
        batch_size: pictures at a time.
        replace: measure also where there are statistics.

    Raises:
        LumitokError: there is no such folder, there are statistics already, or no picture can be read.
    """
    if not Path(checkpoint).is_dir():
        raise LumitokError(
            f"there is no folder '{checkpoint}'; statistics are written into a run, a checkpoint or a "
            "tokenizer on this machine (a model of the hub: save it to a folder first)"
        )
    folder = find_tokenizer(checkpoint)
    if read_config(folder).get("latents_mean") is not None and not replace:
        raise LumitokError(
            f"'{folder}' has latent statistics, and what was made with them would no longer fit; "
            "--replace measures them anew"
        )
    found = open_pictures(pictures)
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.to(default_device())
    with exact_float32():
        mean, std, measured = measure_latents(tokenizer, found, batch_size=batch_size, limit=count, seed=seed)
    tokenizer.set_latent_statistics(mean, std, measured)
    _store(tokenizer, folder)
    return StatisticsReport(
        folder,
        mean.tolist(),
        std.tolist(),
        measured,
        len(evenly(len(found), count)) - measured,
        f"Sampled latents of {measured} pictures, ADM's centre crop to {tokenizer.settings.image_size} px, "
        f"not mirrored, seed {seed}; float32 on {tokenizer.device.type}, sums in float64.",
    )


def _store(tokenizer: Tokenizer, folder: Path) -> None:
    """Put the statistics into a folder's config, all else in it unchanged, and write its card anew."""
    config = read_config(folder)
    for name in ("latents_mean", "latents_std", "latents_count"):
        config[name] = getattr(tokenizer.settings, name)
    path = folder / "config.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
    write_card(tokenizer, folder)
