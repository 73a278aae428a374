"""Reading official files: what they hold is found, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lumitok.errors import LumitokError
from lumitok.interop.vfm_vae_file import find_generator, read_file, read_latent_statistics

STATE = {"mapping.x_avg": torch.zeros(2)}


class _Stranger:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("was-run",))


@pytest.mark.parametrize("zipped", [False, True])
def test_nothing_in_a_file_is_run(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"G_ema": STATE, "training_set_kwargs": _Stranger()}
    if zipped:
        torch.save(content, "code.pth")
    else:
        Path("code.pth").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(LumitokError, match="would run code out of it, which lumitok never does") as caught:
        read_file(Path("code.pth"))
    assert 'torch.save({"G_ema"' in str(caught.value)
    assert not Path("was-run").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_file(zipped: bool, share: float, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({"G_ema": {"x": torch.zeros(5000)}}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(LumitokError, match=r"half\.pth' (cannot be read as a weights file|is damaged)"):
        read_file(path)


def test_a_misspelt_file(tmp_path: Path) -> None:
    (tmp_path / "official.pth").touch()
    with pytest.raises(LumitokError, match=r"there is no file .*; did you mean '.*official\.pth'"):
        read_file(tmp_path / "oficial.pth")
    with pytest.raises(LumitokError, match="there is no file"):
        read_file(tmp_path / "nowhere" / "official.pth")


OTHER = {"mapping.x_avg": torch.ones(2)}


@pytest.mark.parametrize(
    ("content", "part", "others"),
    [
        (
            {"G": OTHER, "D": {}, "G_ema": STATE, "training_set_kwargs": {}},
            "G_ema",
            ["G", "D", "training_set_kwargs"],
        ),
        ({"G": STATE, "D": OTHER}, "G, the weights without averaging (there is no G_ema)", ["D"]),
        (STATE, "the state dict", []),
        ({"state_dict": STATE, "epoch": 3}, "the state dict", []),
        ({"state_dict": {"G_ema": STATE, "D": OTHER}}, "G_ema", ["D"]),
        ({**STATE, "synthesis.x": {}}, "the state dict", []),
    ],
)
def test_the_generator_is_found(content: dict[str, Any], part: str, others: list[str]) -> None:
    found = find_generator(content, "it")
    assert (found.part, found.others) == (part, others)
    assert found.state["mapping.x_avg"] is STATE["mapping.x_avg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": STATE, "opt": {}}, "it has no generator: neither G_ema nor G, but model, opt"),
        ({"G_ema": {0: torch.zeros(1)}}, "it is no state dict: it has the key 0"),
        ({3: torch.zeros(1)}, "it is no state dict: it has the key 3"),
    ],
)
def test_a_file_of_something_else(content: dict[Any, Any], message: str) -> None:
    with pytest.raises(LumitokError, match=message):
        find_generator(content, "it")


def statistics(tmp_path: Path, **changes: Any) -> Path:
    values = {"mean": torch.arange(8.0).view(1, 8, 1, 1), "std": torch.arange(1.0, 9.0).view(1, 8, 1, 1)}
    torch.save({**values, **changes}, tmp_path / "stats.pt")
    return tmp_path / "stats.pt"


def test_statistics_are_one_number_a_channel(tmp_path: Path) -> None:
    mean, std = read_latent_statistics(statistics(tmp_path, mean=torch.arange(8.0)), 8)
    assert mean.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert std.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": torch.ones(1, 9, 1, 1)}, r"std is \[1, 9, 1, 1\], wanted a tensor of \[1, 8, 1, 1\]"),
        ({"mean": 3}, "mean is a int"),
        ({"std": torch.zeros(1, 8, 1, 1)}, "a deviation that is not above 0"),
        ({"mean": torch.full((8,), torch.inf)}, "not finite"),
    ],
)
def test_wrong_statistics(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match=message):
        read_latent_statistics(statistics(tmp_path, **change), 8)
