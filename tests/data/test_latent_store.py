"""The latent store gives back what was written, and finds out when it is not what was written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from lumitok.data import latent_store, latent_writing
from lumitok.data.latent_store import (
    DTYPES,
    HEADER,
    LABELS,
    VERIFIED,
    DType,
    Header,
    Kind,
    LatentStore,
    finish_store,
    hash_values,
    open_latent_store,
    write_header,
)
from lumitok.data.latent_writing import allocate, channel_statistics, close_gaps, write_lists, write_rows
from lumitok.data.latents import LatentSpec
from lumitok.errors import LumitokError
from tests.training.stores import make_store

COUNT = 11
SPEC = LatentSpec(3, 2, 4, (0.0,) * 3, (1.0,) * 3, "a" * 64)


def header_of(kind: Kind = "samples", dtype: DType = "float32", *, flip: bool = True) -> Header:
    views = ("plain", "mirrored") if flip else ("plain",)
    return Header(SPEC, COUNT, kind, dtype, views, ("cat", "dog"), "t", "p", 32, 0, {}, {})


def random_rows(header: Header) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {view: torch.randn(header.count, *header.row, generator=draw) for view in header.views}


def write(path: Path, header: Header, rows: dict[str, torch.Tensor]) -> LatentStore:
    path.mkdir()
    allocate(path, header)
    for view, values in rows.items():
        for first in (7, 0, 4):  # In any order.
            write_rows(path, header, view, first, values[first : {0: 4, 4: 7, 7: COUNT}[first]])
    write_lists(path, [place % 2 for place in range(COUNT)], [f"{place}.png" for place in range(COUNT)])
    finish_store(path, header)
    return open_latent_store(path)


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("dtype", get_args(DType))
def test_what_was_written_is_read(tmp_path: Path, kind: Kind, dtype: DType) -> None:
    header = header_of(kind, dtype)
    rows = random_rows(header)
    store = write(tmp_path / "store", header, rows)
    kept = {view: values.to(DTYPES[dtype]).float() for view, values in rows.items()}
    assert store.header.files["plain.bin"][0] == COUNT * store.header.row_bytes
    everything = store.read(range(COUNT))
    assert everything.dtype == torch.float32
    assert torch.equal(everything, kept["plain"])
    places = [10, 3, 3, 0, 7]
    mirrored = [False, True, False, True, True]
    views = ["mirrored" if flipped else "plain" for flipped in mirrored]
    wanted = torch.stack([kept[view][place] for view, place in zip(views, places, strict=True)])
    assert torch.equal(store.read(places, mirrored), wanted)
    assert torch.equal(store.read(torch.tensor(places), torch.tensor(mirrored)), wanted)
    assert torch.equal(store.read(places, [True] * 5), kept["mirrored"][places])
    assert store.labels.tolist() == [place % 2 for place in range(COUNT)]
    assert store.names[3] == "3.png"
    assert replace(store.header, files={}) == header


def test_moments_are_drawn_by_each_rows_generator(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", kind="moments")
    values = store.read([4, 2])
    drawn = store.draw(values, [torch.Generator().manual_seed(seed) for seed in (5, 6)])
    noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(6))
    assert torch.equal(drawn[1], values[1, :4] + values[1, 4:] * noise)
    alone = store.draw(values[1:], [torch.Generator().manual_seed(6)])
    assert torch.equal(alone[0], drawn[1])


def test_what_is_read_may_be_changed_and_the_store_is_not(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    before = store.read([0, 1]).clone()
    store.read([0, 1]).zero_()
    store.read(range(store.count)).zero_()
    assert torch.equal(store.read([0, 1]), before)


def test_a_store_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    # A hole of a tebibyte: a mapping that Linux counts as memory is refused.
    header = replace(header_of(flip=False), spec=LatentSpec(16, 64, 64), count=1 << 22)
    with (tmp_path / "plain.bin").open("wb") as file:
        file.truncate(header.count * header.row_bytes)
    rows = latent_store.map_rows(tmp_path / "plain.bin", header, header.count)
    assert not rows[[0, header.count - 1]].any()


def test_it_travels_to_other_processes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    before = store.read([5])
    sent = pickle.dumps(store)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent).read([5]), before)


def test_a_view_that_is_not_there_is_said(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", flip=False)
    with pytest.raises(LumitokError, match="no mirrored view; encode with --flip"):
        store.read([0], [True])


def cut(store: Path) -> None:
    with (store / "mirrored.bin").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)


def alter(store: Path, name: str = "plain.bin", place: int = 500) -> None:
    content = bytearray((store / name).read_bytes())
    content[place] ^= 1
    (store / name).write_bytes(content)


def edit_header(store: Path, key: str, value: object) -> None:
    values = json.loads((store / HEADER).read_text())
    (store / HEADER).write_text(json.dumps(values | {key: value}))


def alter_header(store: Path, key: str, value: object) -> None:
    """As :func:`edit_header`, but with the hash that fits."""
    edit_header(store, key, value)
    values = json.loads((store / HEADER).read_text())
    values.pop("sha256")
    edit_header(store, "sha256", hash_values(values))


def edit_mean(store: Path) -> None:
    spec = json.loads((store / HEADER).read_text())["spec"]
    spec["mean"][0] += 0.1
    edit_header(store, "spec", spec)


def unlist(store: Path) -> None:
    files = json.loads((store / HEADER).read_text())["files"]
    files.pop("mirrored.bin")
    alter_header(store, "files", files)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (cut, r"mirrored.bin has 6143 bytes and should have 6144"),
    "one bit": (alter, "plain.bin was altered"),
    "labels": (lambda store: alter(store, LABELS, -8), f"{LABELS} was altered"),
    "missing": (lambda store: (store / "plain.bin").unlink(), "lacks its file plain.bin"),
    "missing labels": (lambda store: (store / LABELS).unlink(), f"lacks its file {LABELS}"),
    "no header": (lambda store: (store / HEADER).unlink(), "no latent store at"),
    "not finished": (lambda store: (store / HEADER).rename(store / f"{HEADER}.partial"), "not finished"),
    "cut header": (lambda store: (store / HEADER).write_text('{"format": 1,'), "damaged"),
    "foreign header": (lambda store: (store / HEADER).write_text('{"name": "x"}'), "format None"),
    "a list": (lambda store: (store / HEADER).write_text("[1]"), "damaged"),
    "later format": (lambda store: alter_header(store, "format", 3), "format 3, and this lumitok reads 2"),
    "edited statistics": (edit_mean, "was altered since it was made"),
    "edited classes": (
        lambda store: edit_header(store, "classes", ["cat", "zebra"]),
        "was altered since it was made",
    ),
    "another dtype": (lambda store: alter_header(store, "dtype", "float16"), "should have 3072"),
    "unknown dtype": (lambda store: alter_header(store, "dtype", "int8"), "'int8'"),
    "unknown kind": (lambda store: alter_header(store, "kind", "means"), "'means'"),
    "nothing in it": (lambda store: alter_header(store, "count", 0), "0 rows"),
    "another count": (lambda store: alter_header(store, "count", 23), "should have 5888"),
    "a file elsewhere": (
        lambda store: alter_header(store, "files", {"../labels.npy": [1, ""]}),
        "lacks its file ../labels.npy",
    ),
    "not listed": (unlist, "does not list all files"),
    "too few classes": (lambda store: alter_header(store, "classes", ["cat"]), "labels from 0 to 2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("verified", [True, False])
def test_damage_is_found_when_it_is_opened(tmp_path: Path, damage: str, verified: bool) -> None:
    store = make_store(tmp_path / "store").path
    if not verified:
        (store / VERIFIED).unlink()
    change, message = DAMAGES[damage]
    change(store)
    with pytest.raises(LumitokError, match=message):
        open_latent_store(store)


def test_no_folder_and_shards_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match=r"no latent store at .*`lumitok encode` makes one"):
        open_latent_store(tmp_path / "nowhere")
    (tmp_path / "latents_rank00_shard000.safetensors").touch()
    with pytest.raises(LumitokError, match="convert-latents"):
        open_latent_store(tmp_path)


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    hashed: list[str] = []
    real = latent_store.hash_file

    def counted(path: Path, advance: latent_store.Advance | None = None) -> str:
        hashed.append(path.name)
        return real(path, advance)

    monkeypatch.setattr(latent_store, "hash_file", counted)
    return hashed


def test_files_are_hashed_once_and_after_a_copy_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = header_of()
    store = write(tmp_path / "store", header, random_rows(header))
    hashed = count_hashes(monkeypatch)
    open_latent_store(store.path)
    assert hashed == [HEADER]  # The others were hashed when they were made.
    shutil.copytree(store.path, tmp_path / "copy")
    told: list[int] = []
    sizes: list[int] = []

    def advance(size: int) -> latent_store.Advance:
        sizes.append(size)
        return told.append

    assert open_latent_store(tmp_path / "copy", advance=advance).identity == store.identity
    assert "plain.bin" in hashed
    assert sizes == [sum(told)] == [sum(size for size, _ in store.header.files.values())]
    hashed.clear()
    open_latent_store(tmp_path / "copy")
    assert hashed == [HEADER]


def test_a_disk_that_cannot_be_written_is_hashed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "store").path
    (store / VERIFIED).unlink()
    real = Path.write_text

    def refused(path: Path, *args: object, **kwargs: object) -> int:
        if path.name == VERIFIED:
            raise PermissionError(30, "Read-only file system")
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", refused)
    hashed = count_hashes(monkeypatch)
    for _ in range(2):
        hashed.clear()
        assert open_latent_store(store).count == 24
        assert "plain.bin" in hashed
    alter(store)
    with pytest.raises(LumitokError, match=r"plain.bin was altered"):
        open_latent_store(store)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"header": "x"}'])
def test_a_damaged_note_of_the_verification_is_nothing(tmp_path: Path, text: str) -> None:
    store = make_store(tmp_path / "store").path
    (store / VERIFIED).write_text(text)
    alter(store)
    with pytest.raises(LumitokError, match="was altered"):
        open_latent_store(store)


def test_only_its_own_tokenizer_is_let_in(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", tokenizer="e" * 64)
    store.check_tokenizer("e" * 64, "this one")
    with pytest.raises(LumitokError, match=r"'made-up' \(eeeeeeeeeeee\), and that is dddd"):
        store.check_tokenizer("d" * 64, "that")
    unknown = replace(store.header, spec=replace(store.spec, tokenizer=None))
    write_header(store.path, unknown)
    store = open_latent_store(store.path)
    store.check_tokenizer("", "a network of latents whose tokenizer is not known either")
    with pytest.raises(LumitokError, match=r"\(unknown\)"):
        store.check_tokenizer("d" * 64, "that")


def test_stores_of_other_latents_have_other_identities(tmp_path: Path) -> None:
    one, same = make_store(tmp_path / "one"), make_store(tmp_path / "same")
    assert one.identity == same.identity
    assert one.identity != make_store(tmp_path / "other", count=25).identity


# ------------------------------------------------------------------------------------------------
# Writing


@pytest.mark.parametrize("gaps", [[], [0], [10], [2, 9, 10], [0, 1, 2, 3], [5, 8, 0]])
def test_gaps_are_closed_whenever_it_is_killed(
    tmp_path: Path, gaps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = header_of()
    rows = random_rows(header)
    allocate(tmp_path, header)
    for view, values in rows.items():
        write_rows(tmp_path, header, view, 0, values)
    real = os.fsync
    left = 0

    def killed(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        real(descriptor)

    monkeypatch.setattr(latent_writing.os, "fsync", killed)
    # Before and after the first view is cut, before and after the second.
    for stop in (1, 2, 1, 2) if gaps else ():
        left = stop
        with pytest.raises(KeyboardInterrupt):
            close_gaps(tmp_path, header, gaps)
    monkeypatch.undo()
    order = close_gaps(tmp_path, header, gaps)
    assert sorted(order) == [row for row in range(COUNT) if row not in gaps]
    # Those that need not move stay where they were.
    assert all(row == place for place, row in enumerate(order) if place not in gaps)
    for view, values in rows.items():
        found = latent_store.map_rows(tmp_path / f"{view}.bin", header, len(order))
        assert torch.equal(found, values[order])
        assert (tmp_path / f"{view}.bin").stat().st_size == len(order) * header.row_bytes


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    header = header_of(dtype="float16")
    allocate(tmp_path, header)
    rows = random_rows(header)["plain"]
    rows[3, 0, 0, 0] = 1e5
    with pytest.raises(LumitokError, match=r"reach 1e\+05, too much for float16; take --dtype bfloat16"):
        write_rows(tmp_path, header, "plain", 0, rows)
    rows[3, 0, 0, 0] = float("nan")
    with pytest.raises(LumitokError, match="not finite"):
        write_rows(tmp_path, header_of(), "plain", 0, rows)


def test_a_disk_that_is_too_small_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2000})()
    monkeypatch.setattr(latent_writing.shutil, "disk_usage", lambda _: usage)
    allocate(tmp_path, header_of(flip=False))
    with pytest.raises(LumitokError, match="GB free; make room"):
        allocate(tmp_path, replace(header_of(), count=1000))
    assert not (tmp_path / "mirrored.bin").exists()


@pytest.mark.parametrize("kind", get_args(Kind))
def test_statistics_of_channels(tmp_path: Path, kind: Kind) -> None:
    header = header_of(kind, flip=False)
    rows = random_rows(header)["plain"].abs() + 100
    allocate(tmp_path, header)
    write_rows(tmp_path, header, "plain", 0, rows)
    mean, std = channel_statistics(tmp_path, header)
    values = rows[:, :3].double()
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    variance = values.var((0, 2, 3))
    if kind == "moments":  # The law of total variance.
        variance += rows[:, 3:].double().square().mean((0, 2, 3)) * COUNT * 8 / (COUNT * 8 - 1)
    np.testing.assert_allclose(std, variance.sqrt(), rtol=1e-9)
