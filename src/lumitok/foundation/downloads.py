"""Weights of networks that are no foundation encoders: found, checked, and fetched once.

Metrics and losses need a few networks whose published files carry the first digits of their sha256 in
their names. Each is one :class:`WeightsFile`; all of them go the same road here.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lumitok.errors import LumitokError

SECONDS_TO_ANSWER = 5.0
"""How long a server may take to answer before a machine counts as one without network."""


@dataclass(frozen=True)
class WeightsFile:
    """One published file of weights and where it may lie.

    Attributes:
        network: what the weights are of, such as ``VGG16``.
        purpose: what needs them, such as ``LPIPS``.
        file: name of the file in torch hub's cache.
        sha256: the first digits of its hash, as its authors write them into the name.
        size: bytes of the download.
        licence: of the weights.
        environment: variable that may hold the path of the file.
        origin: whose they are and where people find them, in words.
        address: gives the address to fetch it from; called only when it is fetched.
        otherwise: what to do without the file, in words; empty where there is nothing.
        aliases: names under which other packages keep the very same file in that cache.
    """

    network: str
    purpose: str
    file: str
    sha256: str
    size: int
    licence: str
    environment: str
    origin: str
    address: Callable[[], str]
    otherwise: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def cached(self) -> Path:
        """Where the file lies in torch hub's cache, or would be put."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file

    def find(self, weights: str | Path | None = None) -> Path | None:
        """Return the file where it is at hand, None where it is not.

        Args:
            weights: the user's own path; None: the path in the environment variable, then the cache.

        Raises:
            LumitokError: ``weights`` or the variable names a file that does not exist.
        """
        named = weights or os.environ.get(self.environment)
        if named:
            path = Path(named).expanduser()
            if not path.is_file():
                origin = "the argument" if weights else self.environment
                raise LumitokError(
                    f"{origin} names '{named}' as {self.network}'s weights, but there is no such file"
                )
            return path
        places = [self.cached, *(self.cached.with_name(alias) for alias in self.aliases)]
        return next((place for place in places if place.is_file()), None)

    def obtain(
        self, weights: str | Path | None = None, *, download: bool = True, verify: bool = True
    ) -> Path:
        """Return the file, fetched into the cache where it must be, its hash checked.

        Args:
            weights: as in :meth:`find`.
            download: whether the file may be fetched where it is not at hand.
            verify: whether it must have the published hash; False only for made-up weights.

        Raises:
            LumitokError: the file is missing and cannot be fetched, or is another one.
        """
        path = self.find(weights)
        if path is None and not download:
            raise self._missing("downloading is switched off")
        if path is None:
            return self._fetch()  # Its hash was compared on the way.
        if verify:
            self.verify(path)
        return path

    def verify(self, path: Path) -> str:
        """Return the file's sha256.

        Raises:
            LumitokError: it is not the published one.
        """
        digest = hash_file(path)
        if not digest.startswith(self.sha256):
            raise LumitokError(
                f"{path} is not {self.origin.split(' (')[0]} {self.file}: its sha256 starts with "
                f"{digest[: len(self.sha256)]}, not {self.sha256}; delete it and fetch it again"
            )
        return digest

    def _fetch(self) -> Path:
        """Download into the cache; fail within seconds where there is no network."""
        path = self.cached
        try:
            url = self.address()
            # torch hub waits without limit for a network that does not answer; this asks first.
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER):
                pass
            path.parent.mkdir(parents=True, exist_ok=True)
            # It writes beside the path and moves the file there when the hash fits.
            torch.hub.download_url_to_file(url, str(path), hash_prefix=self.sha256)
        except (OSError, RuntimeError) as error:
            raise self._missing(f"the download failed ({error})") from error
        return path

    def _missing(self, reason: str) -> LumitokError:
        otherwise = f". {self.otherwise}" if self.otherwise else ""
        return LumitokError(
            f"{self.purpose} needs {self.network}'s weights, {self.file} ({self.size / 1e6:.0f} MB), and "
            f"they cannot be had: {reason}. They are {self.origin}: fetch the file by hand and put it at "
            f"{self.cached}, or set {self.environment} to its path{otherwise}"
        )


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path, network: str) -> dict[str, Any]:
    """Read a torch file that holds tensors alone; nothing in it is executed.

    Raises:
        LumitokError: it cannot be read so.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # A file that is anything else makes torch raise nearly anything.
        raise LumitokError(f"{path} cannot be read as {network}'s weights: {error}") from error
