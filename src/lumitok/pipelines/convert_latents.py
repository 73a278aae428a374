"""LightningDiT's shards to a latent store, and back: what ``lumitok convert-latents`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lumitok.data.latent_store import (
    HEADER,
    VIEWS,
    DType,
    Header,
    LatentStore,
    finish_store,
    open_latent_store,
)
from lumitok.data.latent_writing import allocate, channel_statistics, write_lists, write_rows
from lumitok.data.latents import LatentSpec
from lumitok.errors import LumitokError
from lumitok.evaluation.progress import show_progress
from lumitok.interop.lightningdit_latents import Rows, Shards, open_shards, write_shards
from lumitok.pipelines.encode import counted
from lumitok.pipelines.import_folder import check_free, write_whole
from lumitok.pipelines.reconstruct import open_tokenizer
from lumitok.training.seeds import derive_seed


@dataclass(frozen=True)
class Converted:
    """What was made.

    Attributes:
        about: half a sentence on it.
        notes: sentences to print.
    """

    about: str
    notes: list[str]


def convert(
    source: Path, target: Path, *, tokenizer: str = "", dtype: DType = "float32", seed: int = 0
) -> Converted:
    """Make a latent store of LightningDiT's shards, or shards of a store.

    Args:
        source: a store, or a folder of shards.
        target: folder to make; it appears once it is whole.
        tokenizer: the one that made the shards, where the store shall know it.
        dtype: of the store's numbers on disk.
        seed: of the draws, where a store that becomes shards has moments.

    Raises:
        LumitokError: ``source`` is neither, or is damaged; ``target`` is there already; a store has no
            mirrored view, which LightningDiT reads; the tokenizer does not make latents of that shape.
    """
    check_free(target)
    if (source / HEADER).exists() or (source / f"{HEADER}.partial").exists():
        return _to_shards(open_latent_store(source), target, seed)
    shards = open_shards(source)
    notes = []
    spec = _spec(shards, tokenizer)
    if spec.tokenizer is None:
        notes.append(
            "the store does not know which tokenizer made its latents, and will refuse any that should "
            "decode them; name it with --tokenizer"
        )
    write_whole(lambda folder: _write_store(shards, spec, folder, tokenizer or "unknown", dtype), target)
    return Converted(open_latent_store(target).header.summary(), notes)


def _spec(shards: Shards, tokenizer: str) -> LatentSpec:
    mean, std = shards.statistics or (None, None)
    spec = LatentSpec(*shards.shape, mean, std)
    if not tokenizer:
        return spec
    opened = open_tokenizer(tokenizer)
    own = opened.latent_spec
    if (own.channels, own.height, own.width) != shards.shape:
        raise LumitokError(
            f"{tokenizer} makes latents of shape {(own.channels, own.height, own.width)}, and the shards "
            f"hold {shards.shape}; name the tokenizer that made them"
        )
    return replace(spec, tokenizer=own.tokenizer)


def _write_store(shards: Shards, spec: LatentSpec, folder: Path, tokenizer: str, dtype: DType) -> None:
    folder.mkdir()
    header = Header(
        spec=spec,
        count=shards.count,
        kind="samples",
        dtype=dtype,
        views=VIEWS if shards.mirrored else VIEWS[:1],
        classes=(),
        tokenizer=tokenizer,
        pictures="unknown",
        image_size=0,
        seed=0,
        left_out={},
        files={},
        statistics="shards",
        precision="",
    )
    allocate(folder, header)
    labels: list[int] = []
    with show_progress("converting", shards.count, "latents") as show:
        for rows in shards.rows():
            write_rows(folder, header, "plain", len(labels), rows.plain)
            if rows.mirrored is not None:
                write_rows(folder, header, "mirrored", len(labels), rows.mirrored)
            labels += rows.labels.tolist()
            show(len(labels))
    # The shards do not name their classes; a single one tells nothing.
    classes = tuple(str(label) for label in range(max(labels) + 1)) if max(labels) > 0 else ()
    header = replace(header, classes=classes)
    if spec.mean is None:
        mean, std = channel_statistics(folder, header)
        header = replace(header, spec=replace(spec, mean=mean, std=std))
    write_lists(folder, labels, [])
    size = len(header.views) * header.count * header.row_bytes
    with show_progress("hashing", size >> 20, "MiB") as show:
        finish_store(folder, header, counted(lambda done: show(done >> 20)))


def _to_shards(store: LatentStore, target: Path, seed: int) -> Converted:
    if len(store.header.views) < len(VIEWS):
        raise LumitokError(
            f"{store.path} has no mirrored view, and LightningDiT's loader reads one; encode with --flip"
        )
    spec, shards = store.spec, 0
    statistics = None if spec.mean is None or spec.std is None else (spec.mean, spec.std)

    def save(folder: Path) -> None:
        nonlocal shards
        folder.mkdir()
        with show_progress("converting", store.count, "latents") as show:
            shards = write_shards(folder, store.count, partial(_rows, store, seed, show), statistics)

    write_whole(save, target)
    return Converted(f"{store.count:,} latents in {shards} shards", [])


def _rows(store: LatentStore, seed: int, show: Callable[[int], None], places: range) -> Rows:
    """Latents of a store, both views; moments are drawn from once."""
    drawn = []
    for view in range(len(VIEWS)):
        seeds = [derive_seed(seed, place, view) for place in places]
        generators = [torch.Generator().manual_seed(number) for number in seeds]
        values = store.read(places, [view == 1] * len(places))
        drawn.append(store.draw(values, generators))
    show(places.stop)
    return Rows(drawn[0], drawn[1], store.labels[places.start : places.stop].clone())
