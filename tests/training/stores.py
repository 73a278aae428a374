"""A small latent store of made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from lumitok.data.latent_store import (
    DTYPES,
    LABELS,
    NAMES,
    DType,
    Header,
    Kind,
    LatentStore,
    hash_file,
    map_rows,
    open_latent_store,
    write_header,
)
from lumitok.data.latents import LatentSpec


def make_store(
    path: Path,
    *,
    count: int = 24,
    channels: int = 4,
    side: int = 4,
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
    kind: Kind = "samples",
    dtype: DType = "float32",
    flip: bool = True,
    tokenizer: str = "f" * 64,
    image_size: int = 32,
    names: list[str] | None = None,
    spread: float = 2.0,
) -> LatentStore:
    """Write a store whose latents differ by class, and open it."""
    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    spec = LatentSpec(channels, side, side, (0.5,) * channels, (2.0,) * channels, tokenizer)
    views = ("plain", "mirrored") if flip else ("plain",)
    header = Header(spec, count, kind, dtype, views, classes, "made-up", "pictures", image_size, 0, {}, {})
    labels = np.arange(count, dtype=np.int64) % max(1, len(classes))
    for view in views:
        file = path / f"{view}.bin"
        file.write_bytes(bytes(count * header.row_bytes))
        rows = torch.randn(count, channels, side, side, generator=generator) * spread + 0.5
        rows += torch.from_numpy(labels).view(-1, 1, 1, 1)
        if kind == "moments":
            rows = torch.cat([rows, rows.abs() / 10], dim=1)
        map_rows(file, header, count, write=True).copy_(rows.to(DTYPES[dtype]))
    np.save(path / LABELS, labels)
    (path / NAMES).write_text(json.dumps(names or [f"{i}.png" for i in range(count)]))
    listed = [*(f"{view}.bin" for view in views), LABELS, NAMES]
    files = {name: ((path / name).stat().st_size, hash_file(path / name)) for name in listed}
    write_header(path, Header(**{**vars(header), "files": files}))
    return open_latent_store(path)
