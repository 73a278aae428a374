from __future__ import annotations

import hashlib
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from lumitok.data import BadPicture, UnreadableError, center_crop
from lumitok.errors import LumitokError
from lumitok.evaluation import picture_sets
from lumitok.evaluation.picture_sets import (
    PictureSource,
    find_duplicates,
    fingerprints,
    holds_statistics,
    open_picture_set,
    open_reference_statistics,
)


def pictures(count: int, side: int = 6, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write(folder: Path, arrays: NDArray[np.uint8], names: list[str] | None = None) -> Path:
    for number, array in enumerate(arrays):
        path = folder / (names[number] if names else f"{number:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return folder


def read(source: PictureSource, indices: list[int] | None = None, batch_size: int = 4) -> NDArray[np.uint8]:
    batches = list(source.batches(range(len(source)) if indices is None else indices, batch_size))
    assert all(pixels.dtype == torch.uint8 for pixels, _ in batches)
    return torch.cat([pixels for pixels, _ in batches]).permute(0, 2, 3, 1).numpy()


# ------------------------------------------------------------------------------------------------
# Folders and zips


def test_a_folder_gives_its_pictures_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_sets, "AHEAD", 3)  # More pictures than are read at a time.
    arrays = pictures(11)
    source = open_picture_set(write(tmp_path / "set", arrays))
    assert (source.name, source.size, source.labels, len(source)) == ("set", 6, None, 11)
    batches = list(source.batches(range(11), 4))
    assert [indices for _, indices in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    np.testing.assert_array_equal(read(source), arrays)
    np.testing.assert_array_equal(read(source, [7, 2]), arrays[[7, 2]])


def test_a_zip_with_classes_gives_their_labels(tmp_path: Path) -> None:
    arrays = pictures(3)
    folder = write(tmp_path / "set", arrays, ["a/0.png", "b/0.png", "b/1.png"])
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    source = open_picture_set(tmp_path / "set.zip")
    assert source.labels == [0, 1, 1]
    np.testing.assert_array_equal(read(source), arrays)


def test_a_size_crops_as_adm_does(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    write(tmp_path, array[None])
    np.savez(tmp_path / "set.npz", arr_0=array[None])
    expected = np.asarray(center_crop(Image.fromarray(array), 16))
    for path in (tmp_path, tmp_path / "set.npz"):
        source = open_picture_set(path, size=16)
        assert source.size == 16
        assert source.preparation == "ADM's centre crop to 16 px"
        np.testing.assert_array_equal(read(source)[0], expected)
        with pytest.raises(LumitokError, match=r"56 x 40 px .* give a size"):
            open_picture_set(path)


def test_pictures_of_several_sizes_are_an_error_that_names_two(tmp_path: Path) -> None:
    write(tmp_path, pictures(2))
    write(tmp_path, pictures(1, side=8), ["100.png"])
    source = open_picture_set(tmp_path)
    with pytest.raises(LumitokError, match=r"'000.png' has 6 x 6 px, '100.png' 8 x 8"):
        read(source)
    assert read(open_picture_set(tmp_path, size=6)).shape == (3, 6, 6, 3)


def test_an_unreadable_picture_is_reported_or_an_error(tmp_path: Path) -> None:
    arrays = pictures(4)
    write(tmp_path, arrays)
    (tmp_path / "000.png").write_bytes(b"")  # The first one: the size comes from the next.
    (tmp_path / "002.png").write_bytes((tmp_path / "002.png").read_bytes()[:60])
    source = open_picture_set(tmp_path)
    with pytest.raises(UnreadableError, match="cannot read the picture '000"):
        read(source)
    bad: list[BadPicture] = []
    ((pixels, indices),) = source.batches(range(4), 4, report=bad.append)
    assert [picture.name for picture in bad] == ["000.png", "002.png"]
    assert indices == [1, 3]
    np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1).numpy(), arrays[[1, 3]])


def test_a_set_of_unreadable_pictures_names_them(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(LumitokError, match=r"none of the pictures .*\n  '0.png': it holds no picture"):
        open_picture_set(tmp_path)


def test_what_is_no_picture_is_counted(tmp_path: Path) -> None:
    write(tmp_path, pictures(1))
    (tmp_path / "notes.txt").touch()
    assert open_picture_set(tmp_path).left_out == {"not a picture by its extension": 1}


# ------------------------------------------------------------------------------------------------
# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_gives_its_rows(tmp_path: Path, save: Callable[..., None]) -> None:
    arrays = pictures(5)
    save(tmp_path / "set.npz", arrays)  # The positional name is arr_0, as ADM's scripts have it.
    source = open_picture_set(tmp_path / "set.npz")
    assert (source.name, source.size, source.labels, len(source)) == ("set.npz", 6, None, 5)
    np.testing.assert_array_equal(read(source, batch_size=2), arrays)
    np.testing.assert_array_equal(read(source, [4, 1, 3]), arrays[[4, 1, 3]])


def test_the_second_array_holds_the_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", pictures(3), np.array([7, 2, 7]))
    assert open_picture_set(tmp_path / "set.npz").labels == [7, 2, 7]
    np.savez(tmp_path / "set.npz", pictures(3), np.array([7, 2]))
    with pytest.raises(LumitokError, match=r"arr_1 .* shape \(2,\); wanted the class of each of the 3"):
        open_picture_set(tmp_path / "set.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_stays_flat(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "set.npz", np.zeros((400, 128, 128, 3), np.uint8))  # 20 MB
    tracemalloc.start()
    source = open_picture_set(tmp_path / "set.npz")
    seen = sum(len(indices) for _, indices in source.batches(range(400), 4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 400
    assert peak < 2e6


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_objects_in_an_npz_are_refused_and_not_made(tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "set.npz", arr_0=trap, mu=trap, sigma=trap)
    with pytest.raises(LumitokError, match=r"arr_0 of .* is object of shape \(1,\)"):
        open_picture_set(tmp_path / "set.npz")
    with pytest.raises(LumitokError, match=r"mu of .* is not a plain numpy array"):
        open_reference_statistics(tmp_path / "set.npz")
    np.savez(tmp_path / "set.npz", pictures(1), trap)
    with pytest.raises(LumitokError, match=r"arr_1 of .* is not a plain numpy array"):
        open_picture_set(tmp_path / "set.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pictures(2).astype(np.float32), r"float32 of shape \(2, 6, 6, 3\); wanted uint8"),
        (pictures(2).transpose(0, 3, 1, 2).copy(), r"uint8 of shape \(2, 3, 6, 6\); wanted"),
        (pictures(1)[0], r"shape \(6, 6, 3\)"),
        (pictures(0), r"shape \(0, 6, 6, 3\)"),
        (np.asfortranarray(pictures(2)), "Fortran's order"),
        (np.zeros((2, 4, 6, 3), np.uint8), r"has 6 x 4 px"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: NDArray[Any], message: str) -> None:
    np.savez(tmp_path / "set.npz", array)
    with pytest.raises(LumitokError, match=message):
        open_picture_set(tmp_path / "set.npz")


def test_an_npz_without_pictures_says_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=pictures(2))
    with pytest.raises(LumitokError, match="has no array arr_0, only images"):
        open_picture_set(tmp_path / "set.npz")


def test_a_damaged_npz_says_so(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, pictures(400))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    source = open_picture_set(path)
    with pytest.raises(LumitokError, match="is damaged at picture"):
        read(source)
    path.write_bytes(content[:1000])
    with pytest.raises(LumitokError, match="cannot be read as an npz"):
        open_picture_set(path)


def test_an_array_that_ends_early_says_so(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.save(tmp_path / "arr_0.npy", pictures(3))
    whole = (tmp_path / "arr_0.npy").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", whole[:-50])
    with pytest.raises(LumitokError, match="ends within picture 2 of 3"):
        read(open_picture_set(path))


def test_a_missing_npz_names_the_nearest(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", pictures(1))
    with pytest.raises(LumitokError, match=r"there is no file .*did you mean '.*/samples.npz'"):
        open_picture_set(tmp_path / "sample.npz")


# ------------------------------------------------------------------------------------------------
# What is said of a set


def test_the_protocol_names_what_was_measured(tmp_path: Path) -> None:
    source = open_picture_set(write(tmp_path / "set", pictures(4)))
    lines = [f"{path.name}\t{path.stat().st_size}\n" for path in sorted((tmp_path / "set").iterdir())]
    listed = hashlib.sha256((lines[1] + lines[3]).encode()).hexdigest()
    found = source.protocol_set([3, 1])
    assert (found.name, found.count, found.files) == ("set", 2, listed)
    assert source.protocol_set(4) == source.protocol_set()
    assert source.protocol_set(2).files == hashlib.sha256("".join(lines[:2]).encode()).hexdigest()


def test_other_pictures_of_the_same_names_are_another_set(tmp_path: Path) -> None:
    def sets_of(kind: str) -> list[str]:
        return [open_picture_set(tmp_path / f"{n}{kind}").protocol_set(2).files for n in ("a", "b", "c")]

    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        arrays = pictures(2, seed=seed)
        folder = tmp_path / name
        folder.mkdir()
        for number, array in enumerate(arrays):
            Image.fromarray(array).resize((6 + seed,) * 2).save(folder / f"{number}.bmp")
        np.savez(tmp_path / f"{name}.npz", arrays)
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for number, array in enumerate(arrays):  # Bitmaps of one size: only the CRC tells them apart.
                Image.fromarray(array).save(tmp_path / "one.bmp")
                archive.write(tmp_path / "one.bmp", f"val/{number}.bmp")
    for kind in ("", ".npz", ".zip"):
        a, b, c = sets_of(kind)
        assert a == c
        assert a != b


def test_a_source_that_was_pickled_or_lost_a_file_still_says_what_it_is(tmp_path: Path) -> None:
    source = open_picture_set(write(tmp_path / "set", pictures(3)))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in (tmp_path / "set").iterdir():
            archive.write(path, path.name)
    np.savez(tmp_path / "set.npz", pictures(3))
    for kept in (source, *(open_picture_set(tmp_path / f"set.{kind}") for kind in ("zip", "npz"))):
        assert pickle.loads(pickle.dumps(kept)).protocol_set() == kept.protocol_set()
    (tmp_path / "set" / "001.png").unlink()
    assert source.protocol_set().count == 3


def test_copies_are_found_by_their_pixels(tmp_path: Path) -> None:
    arrays = pictures(4)
    arrays[3] = arrays[1]
    write(tmp_path, arrays[:3])
    Image.fromarray(arrays[3]).save(tmp_path / "003.bmp")  # The same pixels in other bytes.
    source = open_picture_set(tmp_path)
    prints = [digest for pixels, _ in source.batches(range(4), 3) for digest in fingerprints(pixels)]
    assert find_duplicates(source.names, prints) == [("003.bmp", "001.png")]


# ------------------------------------------------------------------------------------------------
# Reference statistics


def statistics(dim: int = 2048) -> dict[str, NDArray[np.float64]]:
    return {"mu": np.arange(dim) / dim, "sigma": np.diag(np.linspace(1, 2, dim))}


def test_reference_statistics_are_read_with_their_pictures(tmp_path: Path) -> None:
    spatial = statistics(2023)
    arrays = statistics() | {"mu_s": spatial["mu"], "sigma_s": spatial["sigma"], "arr_0": pictures(2)}
    np.savez(tmp_path / "reference.npz", **arrays)
    assert holds_statistics(tmp_path / "reference.npz")
    found = open_reference_statistics(tmp_path / "reference.npz")
    assert found.name == "reference.npz"
    assert found.pooled.count is None
    np.testing.assert_array_equal(found.pooled.mean.numpy(), arrays["mu"])
    assert found.pooled.variance() == pytest.approx(1.5 * 2048)
    assert found.spatial is not None
    assert found.spatial.dim == 2023
    assert found.pictures is not None
    np.testing.assert_array_equal(read(found.pictures), arrays["arr_0"])
    order = ("mu", "sigma", "mu_s", "sigma_s")
    assert found.sha256 == hashlib.sha256(b"".join(arrays[key].tobytes() for key in order)).hexdigest()


def test_statistics_alone_will_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", **{key: v.astype(np.float32) for key, v in statistics().items()})
    found = open_reference_statistics(tmp_path / "reference.npz")
    assert found.spatial is None
    assert found.pictures is None
    assert found.pooled.mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (statistics(512), r"mu .* shape \(512,\), wanted \(2048,\)"),
        (statistics() | {"mu_s": np.zeros(2023)}, "has no array sigma_s, only mu, mu_s, sigma"),
        (statistics() | {"sigma": np.full((2048, 2048), np.nan)}, "NaN"),
    ],
)
def test_other_statistics_are_refused(
    tmp_path: Path, arrays: dict[str, NDArray[np.float64]], message: str
) -> None:
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(LumitokError, match=message):
        open_reference_statistics(tmp_path / "reference.npz")


def test_pictures_are_no_statistics(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", pictures(1))
    assert not holds_statistics(tmp_path / "set.npz")
    assert not holds_statistics(tmp_path)
