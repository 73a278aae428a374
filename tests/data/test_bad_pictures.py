from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from lumitok.data import BadPicture, BadPictures, UnreadableError
from lumitok.errors import LumitokError


def bad(*numbers: int) -> list[BadPicture]:
    return [BadPicture(f"{number}.png", f"reason {number}") for number in numbers]


def test_each_picture_counts_once() -> None:
    ledger = BadPictures(100, 0.05)
    assert ledger.add(bad(1, 2, 1)) == bad(1, 2)
    assert ledger.add(bad(2, 3)) == bad(3)
    assert (len(ledger), ledger.names) == (3, ["1.png", "2.png", "3.png"])


@pytest.mark.parametrize(
    ("total", "share", "allowed"), [(100, 0.0, 0), (100, 0.29, 29), (50, 0.01, 0), (3, 1.0, 3)]
)
def test_one_more_than_the_share_ends_the_run(total: int, share: float, allowed: int) -> None:
    ledger = BadPictures(total, share)
    ledger.add(bad(*range(allowed)))
    with pytest.raises(LumitokError, match=f"{allowed + 1} of {total}.*allows {allowed}") as error:
        ledger.add(bad(allowed))
    assert "\n  '0.png': reason 0\n" in str(error.value)


def test_the_message_names_twenty_and_the_file_has_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "bad.jsonl"
    with pytest.raises(LumitokError) as error:
        BadPictures(100, 0.1, path).add(bad(*range(33)))
    text = str(error.value)
    assert "'19.png'" in text
    assert "'20.png'" not in text
    assert f"... and 13 more; all are in {path}" in text
    assert "--resume" in text
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 33


def test_a_run_that_is_taken_up_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    strange = BadPicture("\udcff\n'.png", "why")
    BadPictures(10, 0.3, path).add([strange, *bad(1)])
    again = BadPictures(10, 0.3, path)
    assert again.names == [strange.name, "1.png"]
    assert again.add([strange, *bad(2)]) == bad(2)
    with pytest.raises(LumitokError, match="4 of 10") as error:
        again.add(bad(3))
    str(error.value).encode()
    with pytest.raises(LumitokError, match="4 of 10"):  # Nothing was mended.
        BadPictures(10, 0.3, path)
    assert len(BadPictures(10, 0.4, path)) == 4


def test_one_process_writes_and_all_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    BadPictures(10, 1, path).add(bad(1))
    before = path.read_bytes()
    other = BadPictures(10, 1, path, write=False)
    assert other.add(bad(1, 2)) == bad(2)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_file_that_cannot_be_written_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.jsonl"
    ledger = BadPictures(10, 1, path)
    ledger.add(bad(1))

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LumitokError, match="No space left"):
        ledger.add(bad(2))
    assert BadPictures(10, 1, path).names == ["1.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.parametrize("content", ["no json\n", '{"name": "x"}\n', "[1]\n"])
def test_a_file_that_is_no_list_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(LumitokError, match=r"bad\.jsonl.*delete it"):
        BadPictures(10, 1, tmp_path / "bad.jsonl")


def test_the_error_travels_to_another_process() -> None:
    there = pickle.loads(pickle.dumps(UnreadableError(BadPicture("a.png", "empty"), "folder")))
    assert (there.bad, str(there)) == (
        BadPicture("a.png", "empty"),
        "cannot read the picture 'a.png' of 'folder': empty; mend or remove the file",
    )
