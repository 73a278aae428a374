from __future__ import annotations

import importlib.util
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError, features

from lumitok.data import read, read_picture, reason_of

Encoded = Callable[..., bytes]


def pixels(content: bytes) -> list[list[int]]:
    return np.asarray(read_picture(io.BytesIO(content))).reshape(-1, 3).tolist()


def deep_png(values: NDArray[np.uint16], key: tuple[int, ...] = ()) -> bytes:
    """(H, W, 1 to 4) of 16 bits as PNG, which Pillow writes for grey alone; ``key`` is transparent."""
    height, width, channels = values.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
        + (chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def deep_tiff(content: bytes, width: int, bits: list[int], photometric: int) -> bytes:
    """One row of pixels as an uncompressed TIFF, lowest byte first."""
    tags = [(256, [width]), (257, [1]), (258, bits), (259, [1]), (262, [photometric])]
    tags += [(273, [8]), (277, [len(bits)]), (278, [1]), (279, [len(content)])]
    start = 8 + len(content)
    entries, more = b"", b""
    for tag, values in tags:
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            more, packed = packed, struct.pack("<I", start + 2 + 12 * len(tags) + 4)
        entries += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", start) + content + directory + more


DEEP = np.array([[[0, 257 * 77, 65535], [257 * 10, 257 * 20, 257 * 30]]], np.uint16)
SHALLOW = [[0, 77, 255], [10, 20, 30]]


def test_colours_of_16_bits() -> None:
    assert pixels(deep_png(DEEP)) == SHALLOW
    assert pixels(deep_tiff(DEEP.astype("<u2").tobytes(), 2, [16] * 3, 2)) == SHALLOW
    clear = np.concatenate([DEEP, np.array([[[65535], [0]]], np.uint16)], axis=2)
    assert pixels(deep_png(clear)) == [SHALLOW[0], [255] * 3]


def test_grey_of_12_and_16_bits() -> None:
    grey = np.array([[0, 257 * 77, 65535]], np.uint16)
    assert pixels(deep_png(grey[..., None])) == [[0] * 3, [77] * 3, [255] * 3]
    assert pixels(deep_png(np.stack([grey, grey[:, ::-1]], 2)))[2] == [255] * 3
    stored = grey.astype("<u2").tobytes()
    assert pixels(deep_tiff(stored, 3, [16], 1)) == [[0] * 3, [77] * 3, [255] * 3]
    assert pixels(deep_tiff(stored, 3, [16], 0)) == [[255] * 3, [178] * 3, [0] * 3]  # 0 is white.
    assert pixels(deep_tiff(b"\xff\xf8\x00", 2, [12], 1)) == [[255] * 3, [128] * 3]


def test_a_transparent_colour_of_16_bits() -> None:
    assert pixels(deep_png(DEEP, (257 * 10, 257 * 20, 257 * 30))) == [SHALLOW[0], [255] * 3]
    assert pixels(deep_png(DEEP[..., :1], (257 * 10,))) == [[0] * 3, [255] * 3]
    # Cut to the lower 8 bits instead, 0x8000 would make black transparent.
    assert pixels(deep_png(np.array([[[0, 0, 0]]], np.uint16), (0x8000, 0x8000, 0x8000))) == [[0] * 3]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=50, **options)
    with Image.open(stream) as opened:
        assert getattr(opened, "n_frames", 1) == 3
    assert pixels(stream.getvalue()) == [[255, 0, 0]] * 64


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_picture_is_an_error_even_if_a_library_allowed_it(
    encoded: Encoded, monkeypatch: pytest.MonkeyPatch, kind: str, share: float
) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    whole = encoded(3, (64, 64), kind)
    assert len(pixels(whole)) == 64 * 64
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(Exception, match=r".") as error:
        read_picture(io.BytesIO(whole[: int(share * len(whole))]))
    reason = reason_of(error.value)
    assert "0x" not in reason
    assert "\n" not in reason
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("as_path", [False, True])
def test_what_is_no_picture_is_told_from_what_is_empty(tmp_path: Path, as_path: bool) -> None:
    for content, message in {b"": "empty", b"<html>": "holds no picture"}.items():
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(UnidentifiedImageError, match=message):
            read_picture(tmp_path / "x.png" if as_path else io.BytesIO(content))


def test_formats_that_run_other_programs_stay_shut(encoded: Encoded) -> None:
    postscript = encoded(kind="EPS")
    with Image.open(io.BytesIO(postscript)) as opened:
        assert opened.format == "EPS"
    with pytest.raises(UnidentifiedImageError, match="wanted one of"):
        read_picture(io.BytesIO(postscript))


def test_the_content_decides_and_not_the_name(tmp_path: Path, encoded: Encoded) -> None:
    content = encoded(4, kind="BMP")
    (tmp_path / "x.jpg").write_bytes(content)
    assert np.array_equal(read_picture(tmp_path / "x.jpg"), read_picture(io.BytesIO(encoded(4))))


def test_a_picture_between_pillows_two_limits_is_read_without_a_word(
    encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("fresh", read.__file__)
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    # The tests' own filter stands before the one that is set at import.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        spec.loader.exec_module(fresh)
        assert fresh.read_picture(io.BytesIO(encoded(size=(20, 10)))).size == (20, 10)
    assert said == []
    for function in (read.read_picture, read.read_size):
        with pytest.raises(Image.DecompressionBombError):
            function(io.BytesIO(encoded(size=(67, 3))))


def test_reasons_are_one_line_and_alike_everywhere() -> None:
    assert reason_of(PermissionError(13, "Permission denied", "/a/b.png")) == "Permission denied"
    assert reason_of(KeyError("x")) == "KeyError: 'x'"
    assert reason_of(ValueError("two\n  lines")) == "two lines"
    assert reason_of(EOFError()) == "EOFError"
