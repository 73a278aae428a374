"""A data set encoded by tiny random tokenizers: resumed, divided, and with pictures that cannot be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lumitok.data import open_pictures
from lumitok.data.latent_batches import cropped
from lumitok.data.latent_store import HEADER, open_latent_store
from lumitok.errors import LumitokError
from lumitok.pipelines import encode as module
from lumitok.pipelines.encode import encode_pictures
from lumitok.pipelines.encode_plan import PLAN
from lumitok.tokenizers import Tokenizer
from lumitok.training.measure import to_pictures
from lumitok.training.seeds import derive_seed
from tests.pipelines.kinds import save_kind

COUNT = 11
CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tiny_recipe: dict[str, Any], tmp_path: Path) -> str:
    folder = save_kind("ldm", tiny_recipe, tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.set_latent_statistics(torch.zeros(4), torch.ones(4), 10)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A zip of pictures in two classes, of several sizes."""
    rng = np.random.default_rng(0)
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(COUNT):
            noise = Image.fromarray(rng.integers(0, 256, (33 + index, 50 - index, 3), dtype=np.uint8))
            with archive.open(f"{('cat', 'dog')[index >= 6]}/{index:02d}.png", "w") as file:
                noise.save(file, "PNG")
    return path


@pytest.fixture
def encode(checkpoint: str, data: Path) -> Callable[..., module.Encoded]:
    def run(out: Path, **options: Any) -> module.Encoded:
        settings: dict[str, Any] = {"batch_size": 2, "chunk": 4, "workers": 0, "device": CPU, "flip": True}
        return encode_pictures(checkpoint, data, out, **(settings | options))

    return run


def content(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "verified.json"}


def add_unreadable(data: Path) -> None:
    with zipfile.ZipFile(data, "a") as archive:
        for name in ("cat/01b.png", "dog/99.png", "dog/06b.png"):
            archive.writestr(name, b"no picture")


def test_each_row_is_its_pictures_latent(
    encode: Callable[..., module.Encoded], checkpoint: str, data: Path, tmp_path: Path
) -> None:
    encoded = encode(tmp_path / "store", seed=3, workers=1)
    store, pictures = encoded.store, open_pictures(data)
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    assert store.names == pictures.names
    assert store.labels.tolist() == pictures.labels
    assert store.classes == ("cat", "dog")
    assert store.spec == tokenizer.latent_spec
    assert not encoded.notes
    with torch.no_grad():
        for index in range(COUNT):
            picture = to_pictures(cropped(pictures, index, 32)[None], CPU)
            for view, x in enumerate((picture, picture.flip(3))):
                draw = torch.Generator().manual_seed(derive_seed(3, index, view))
                wanted = tokenizer.encode(x).latent_dist.sample([draw])
                torch.testing.assert_close(store.read([index], [view == 1]), wanted)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "labels.npy", "mirrored.bin", "names.json", "plain.bin", HEADER, "verified.json",
    ]  # fmt: skip


def test_draws_do_not_depend_on_batch_or_count(encode: Callable[..., module.Encoded], tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole").store
    others = encode(tmp_path / "others", batch_size=3, chunk=100).store
    torch.testing.assert_close(others.read(range(COUNT)), whole.read(range(COUNT)))
    few = encode(tmp_path / "few", count=3).store
    assert few.names == [whole.names[index] for index in (0, 5, 10)]
    torch.testing.assert_close(few.read([0, 1, 2]), whole.read([0, 5, 10]))
    reseeded = encode(tmp_path / "reseeded", seed=1).store
    assert (reseeded.read([0]) - whole.read([0])).abs().max() > 1e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_moments_hold_what_is_drawn_from(
    encode: Callable[..., module.Encoded], tmp_path: Path, dtype: Any
) -> None:
    samples = encode(tmp_path / "samples").store
    moments = encode(tmp_path / "moments", moments=True).store
    for view in (0, 1):
        draws = [torch.Generator().manual_seed(derive_seed(0, index, view)) for index in range(COUNT)]
        mirrored = [view == 1] * COUNT
        assert torch.equal(
            moments.draw(moments.read(range(COUNT), mirrored), draws), samples.read(range(COUNT), mirrored)
        )
    small = encode(tmp_path / "small", moments=True, dtype=dtype, flip=False).store
    kept = moments.read(range(COUNT)).to(getattr(torch, dtype)).float()
    assert torch.equal(small.read(range(COUNT)), kept)


class Killed(BaseException):
    """What no part of the encoding catches."""


@pytest.fixture
def kill(
    encode: Callable[..., module.Encoded], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path, int], None]:
    """Encode, and die in the middle of a batch: the first only looks at the latent's shape."""

    def run(out: Path, call: int) -> None:
        real, calls = module._Encoder.rows, 0

        def rows(self: module._Encoder, pixels: Tensor, places: Any, view: int) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == call:
                raise Killed
            return real(self, pixels, places, view)

        with monkeypatch.context() as patch:
            patch.setattr(module._Encoder, "rows", rows)
            with pytest.raises(Killed):
                encode(out)

    return run


@pytest.mark.parametrize("bad", [False, True])
def test_a_killed_run_goes_on_to_the_same_bits(
    encode: Callable[..., module.Encoded],
    kill: Callable[[Path, int], None],
    data: Path,
    tmp_path: Path,
    bad: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if bad:
        add_unreadable(data)
    whole = encode(tmp_path / "whole").store
    out = tmp_path / "killed"
    # A chunk has two batches of two views.
    for call in (2, 5, 6, 8):
        kill(out, call)
        with pytest.raises(LumitokError, match="is not finished; run the same `lumitok encode` again"):
            open_latent_store(out)
        for log in out.glob("encoded-*.jsonl"):
            with log.open("ab") as file:
                file.write(b'{"chunk": 1, "ba')  # A line that the kill has cut.
    with monkeypatch.context() as patch:
        patch.setattr(module, "finish_store", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            encode(out)
    assert encode(out).store.count == COUNT
    assert content(out) == content(whole.path)


def test_what_is_done_is_not_done_again(
    encode: Callable[..., module.Encoded],
    kill: Callable[[Path, int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "store"
    kill(out, 7)
    seen: list[int] = []
    real = module._Encoder.rows

    def rows(self: module._Encoder, pixels: Tensor, places: Any, view: int) -> Tensor:
        seen.extend(places)
        return real(self, pixels, places, view)

    monkeypatch.setattr(module._Encoder, "rows", rows)
    encode(out, chunk=5)  # The chunks stay those it began with.
    assert sorted(set(seen[1:])) == list(range(4, COUNT))
    seen.clear()
    assert encode(out).store.count == COUNT  # Finished: nothing but the look at the shape.
    assert seen == [0]


def test_pictures_that_cannot_be_read_are_left_out(
    encode: Callable[..., module.Encoded], checkpoint: str, data: Path, tmp_path: Path
) -> None:
    whole = encode(tmp_path / "whole").store
    add_unreadable(data)
    encoded = encode(tmp_path / "store", moments=True)
    store = encoded.store
    assert store.count == COUNT
    assert encoded.missing == ["cat/01b.png", "dog/06b.png", "dog/99.png"]
    assert store.header.left_out == {"unreadable": 3}
    assert "3 of 14 pictures could not be read" in encoded.notes[0]
    assert sorted(store.names) == whole.names
    # Every row still stands beside its own name and label.
    pictures, labels = open_pictures(data), dict(zip(whole.names, whole.labels.tolist(), strict=True))
    assert [labels[name] for name in store.names] == store.labels.tolist()
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    for row, name in enumerate(store.names):
        picture = to_pictures(cropped(pictures, pictures.names.index(name), 32)[None], CPU)
        with torch.no_grad():
            means = [tokenizer.encode(x).latent_dist.mean for x in (picture, picture.flip(3))]
        for mirrored, mean in zip((False, True), means, strict=True):
            torch.testing.assert_close(store.read([row], [mirrored])[:, :4], mean)


def test_no_picture_at_all(encode: Callable[..., module.Encoded], data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.png", b"no picture")
    with pytest.raises(LumitokError, match=r"none of the 1 pictures can be read(.|\n)*a\.png"):
        encode(tmp_path / "store")


def test_another_encoding_is_refused(
    encode: Callable[..., module.Encoded], kill: Callable[[Path, int], None], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    kill(out, 7)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "float16"}, "begun with numbers float32, now float16"),
        ({"moments": True}, "kind samples, now moments"),
        ({"flip": False}, "views plain and mirrored, now plain"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"count": 5}, "11 pictures, now 5 or others"),
        ({"size": 64}, "size 32, now 64"),
    ]
    for change, message in changes:
        with pytest.raises(LumitokError, match=message):
            encode(out, **change)
    encode(out)
    for change, message in changes[:2]:
        with pytest.raises(LumitokError, match="finished store, made with .*" + message.split("with ")[-1]):
            encode(out, **change)
    with pytest.raises(LumitokError, match="other pictures"):
        encode(out, count=5)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letters.txt").touch()
    with pytest.raises(LumitokError, match="is there already and is no latent store"):
        encode(tmp_path / "own")


def test_other_pictures_are_not_mixed_in(
    encode: Callable[..., module.Encoded], kill: Callable[[Path, int], None], data: Path, tmp_path: Path
) -> None:
    kill(tmp_path / "store", 7)
    add_unreadable(data)
    with pytest.raises(LumitokError, match="11 pictures, now 14 or others"):
        encode(tmp_path / "store")
    (tmp_path / "store" / PLAN).write_text("{")
    with pytest.raises(LumitokError, match="is damaged"):
        encode(tmp_path / "store")


def test_a_deterministic_tokenizer(tiny_recipe: dict[str, Any], data: Path, tmp_path: Path) -> None:
    checkpoint = save_kind("rae", tiny_recipe, tmp_path / "rae")
    with pytest.raises(LumitokError, match=r"is deterministic: it has no .*encode without --moments"):
        encode_pictures(checkpoint, data, tmp_path / "moments", moments=True, workers=0, device=CPU)
    assert not (tmp_path / "moments").exists()
    encoded = encode_pictures(checkpoint, data, tmp_path / "store", workers=0, device=CPU)
    tokenizer, pictures = Tokenizer.from_pretrained(checkpoint), open_pictures(data)
    with torch.no_grad():
        wanted = tokenizer.encode(to_pictures(cropped(pictures, 7, 32)[None], CPU)).latent_dist.mode()
    torch.testing.assert_close(encoded.store.read([7]), wanted)
    # It has no statistics, so the store has its own.
    assert encoded.store.header.statistics == "store"
    assert "carries no latent statistics" in encoded.notes[0]
    values = encoded.store.spec.whiten(encoded.store.read(range(COUNT)))
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_other_sizes(encode: Callable[..., module.Encoded], tmp_path: Path) -> None:
    store = encode(tmp_path / "store", size=64, precision="bf16", count=2).store
    assert (store.spec.height, store.spec.width) == (4, 4)
    assert (store.header.image_size, store.header.precision) == (64, "bf16")
    with pytest.raises(LumitokError, match="a picture of 40 px cannot be divided"):
        encode(tmp_path / "other", size=40)
    with pytest.raises(LumitokError, match="holds 11 pictures and 12 were asked for"):
        encode(tmp_path / "other", count=12)


def test_a_full_disk_is_said_and_gone_on_after(
    encode: Callable[..., module.Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = encode(tmp_path / "whole").store, tmp_path / "store"
    real, calls = module.write_rows, 0

    def full(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(28, "No space left on device")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_rows", full)
        with pytest.raises(LumitokError, match="No space left on device; what was encoded is kept"):
            encode(out)
    encode(out)
    assert content(out) == content(whole.path)


def test_a_scheduler_may_stop_it(
    encode: Callable[..., module.Encoded],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, out = encode(tmp_path / "whole").store, tmp_path / "store"
    real = module.write_rows

    def stopped(*args: Any) -> None:
        real(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_rows", stopped)
        with pytest.raises(SystemExit) as left:
            encode(out)
    assert left.value.code == 143
    assert "the same command goes on" in capsys.readouterr().err
    encode(out)
    assert content(out) == content(whole.path)


def test_two_processes_give_what_one_gives(
    encode: Callable[..., module.Encoded],
    kill: Callable[[Path, int], None],
    checkpoint: str,
    data: Path,
    tmp_path: Path,
) -> None:
    add_unreadable(data)
    whole, out = encode(tmp_path / "whole").store, tmp_path / "store"
    # One process began.
    kill(out, 7)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from lumitok.pipelines.encode import encode_pictures\n"
        "torch.set_num_threads(1)\n"
        "checkpoint, data, out = sys.argv[1:]\n"
        "settings = {'batch_size': 2, 'chunk': 4, 'workers': 0, 'flip': True}\n"
        "print(encode_pictures(checkpoint, data, Path(out), **settings).store.count)\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), checkpoint, str(data), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Both processes write to one pipe, and a line of one may fall into the other's.
    assert "".join(done.stdout.split()) == str(COUNT) * 2
    assert content(out) == content(whole.path)
