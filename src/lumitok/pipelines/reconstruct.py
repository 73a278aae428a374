"""Pictures through a tokenizer and back: what ``lumitok reconstruct`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lumitok.data import center_crop, read_picture
from lumitok.errors import LumitokError, nearest
from lumitok.evaluation.image_quality import PROTOCOL, SSIM_SIDE, psnr, ssim, to_uint8
from lumitok.evaluation.pictures import grid
from lumitok.tokenizers import Tokenizer
from lumitok.tokenizers.autoencoder import Autoencoder
from lumitok.training import find_tokenizer
from lumitok.training.precision import default_device


@dataclass(frozen=True)
class Reconstruction:
    """One picture and how close its reconstruction came."""

    source: Path
    written: Path
    """PNG: the prepared picture on the left, its reconstruction on the right."""
    psnr: float
    """dB."""
    ssim: float | None
    """None: the picture is too small for it."""


@dataclass(frozen=True)
class ReconstructionReport:
    """All pictures, and how the numbers were made."""

    rows: list[Reconstruction]
    how: str


def open_tokenizer(checkpoint: str) -> Tokenizer:
    """Open the folder of a run, a checkpoint or a tokenizer, or a model on the Hugging Face hub."""
    folder = str(find_tokenizer(checkpoint)) if Path(checkpoint).is_dir() else checkpoint
    return Tokenizer.from_pretrained(folder)


@torch.no_grad()
def reconstruct_files(
    checkpoint: str, images: Sequence[Path], out: Path, *, whole: bool = False, tile: int = 0
) -> ReconstructionReport:
    """Encode and decode picture files and write each beside its reconstruction.

    Every picture is centre-cropped to the tokenizer's ``image_size`` as ADM does, or taken whole; the
    latent is the posterior's mode, so the result does not depend on chance. It computes in float32.

    Args:
        checkpoint: folder of a run, a checkpoint or a tokenizer, or a hub id.
        images: files of any size that Pillow reads.
        out: folder for the PNG files, made if need be.
        whole: take the pictures as they are, of any height and width.
        tile: side in pixels of the tiles that whole pictures are cut into; 0: in one go.

    Raises:
        LumitokError: a file is missing, is no picture, the checkpoint does not open, or its tokenizer
            cannot have such tiles.
    """
    if tile and not whole:
        raise LumitokError("tiles are for whole pictures: give --whole with --tile, or leave --tile out")
    for path in images:  # Before the model is opened: a wrong name answers at once.
        _check_exists(path)
    tokenizer, device = open_tokenizer(checkpoint), default_device()
    prepared = _prepared_how(tokenizer, whole, tile)
    tokenizer.to(device)
    size = None if whole else int(tokenizer.config.image_size)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for path, target in zip(images, _targets(images, out), strict=True):
        picture = _open_prepared(path, size)
        if not tile:  # Else only the tiles travel.
            picture = picture.to(device)
        decoded = tokenizer.reconstruct(picture)
        shown, wanted = to_uint8(decoded), to_uint8(picture)
        grid([[wanted[0], shown[0]]], columns=["input", "reconstruction"]).save(target)
        image, reference = shown / 255.0, wanted / 255.0
        similarity = None if min(image.shape[-2:]) < SSIM_SIDE else ssim(image, reference).item()
        rows.append(Reconstruction(path, target, psnr(image, reference).item(), similarity))
    how = (
        f"Each picture was {prepared}; latent: the posterior's mode; float32 on {device.type}. "
        f"PSNR and SSIM on pixels in [0, 1]. {PROTOCOL}"
    )
    if any(row.ssim is None for row in rows):
        how += f" No SSIM of pictures with a side below {SSIM_SIDE} px: its window does not fit."
    return ReconstructionReport(rows, how)


def _prepared_how(tokenizer: Tokenizer, whole: bool, tile: int) -> str:
    """Cut the tokenizer's pictures into tiles where that is asked for, and say how they are prepared."""
    if not whole:
        size = int(tokenizer.config.image_size)
        return f"centre-cropped to {size} x {size} px (ADM's crop: box-halved, bicubic, centre)"
    if not tile:
        return "taken whole, without a crop, in one go"
    if not isinstance(tokenizer, Autoencoder):
        raise LumitokError(f"{type(tokenizer).__name__} cannot go tile by tile; leave --tile out")
    tokenizer.enable_tiling(tile)
    assert tokenizer.tiling is not None
    overlap, turns = tokenizer.tiling.overlap, tokenizer.tiling.turns
    return f"taken whole, without a crop, in tiles of {tile} px (overlap {overlap} px, {turns} turns)"


def _check_exists(path: Path) -> None:
    if path.is_dir():
        raise LumitokError(f"'{path}' is a folder; give the pictures in it, such as {path / '*.png'}")
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise LumitokError(f"there is no picture '{path}'{nearest(str(path), beside)}")


def _targets(images: Sequence[Path], out: Path) -> list[Path]:
    """Name each result after its picture; a number keeps names apart, and the pictures themselves whole."""
    taken = {path.resolve() for path in images}
    names: list[Path] = []
    for path in images:
        target, number = out / f"{path.stem}-reconstruction.png", 2
        while target.resolve() in taken:
            target, number = out / f"{path.stem}-reconstruction-{number}.png", number + 1
        taken.add(target.resolve())
        names.append(target)
    return names


def _open_prepared(path: Path, size: int | None) -> torch.Tensor:
    """Read a picture as (1, 3, size, size) in [-1, 1]; None: of its own size."""
    try:
        picture = read_picture(path)
    except Exception as error:  # Damaged files make Pillow raise nearly anything.
        raise LumitokError(f"'{path}' is not a picture that can be read: {error}") from None
    pixels = torch.from_numpy(np.array(picture if size is None else center_crop(picture, size)))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1.0
