"""LightningDiT's shards become a store, and a store becomes shards, with nothing lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumitok.data.latent_store import open_latent_store
from lumitok.errors import LumitokError
from lumitok.interop import lightningdit_latents
from lumitok.interop.lightningdit_latents import open_shards
from lumitok.pipelines.convert_latents import convert
from lumitok.tokenizers import Tokenizer
from lumitok.training.seeds import derive_seed
from tests.pipelines.kinds import save_kind
from tests.training.stores import make_store

COUNTS = {"latents_rank00_shard000": 5, "latents_rank00_shard001": 2, "latents_rank01_shard000": 4}
STATISTICS = {"mean": torch.arange(4.0).view(1, 4, 1, 1), "std": torch.full((1, 4, 1, 1), 3.0)}


def write(folder: Path, *, flip: bool = True, statistics: Any = STATISTICS) -> dict[str, Tensor]:
    """Write shards as LightningDiT does, and return their content in the order of its loader."""
    folder.mkdir()
    draw, whole = torch.Generator().manual_seed(0), []
    for number, (name, count) in enumerate(COUNTS.items()):
        shard = {"latents": torch.randn(count, 4, 2, 2, generator=draw) * 2 + 1}
        if flip:
            shard["latents_flip"] = torch.randn(count, 4, 2, 2, generator=draw)
        shard["labels"] = torch.arange(count) % 3 + number
        save_file(shard, folder / f"{name}.safetensors", metadata={"total_size": str(count)})
        whole.append(shard)
    if statistics is not None:
        torch.save(statistics, folder / "latents_stats.pt")
    return {key: torch.cat([shard[key] for shard in whole]) for key in whole[0]}


def test_shards_become_a_store_and_shards_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightningdit_latents, "_ROWS", 3)
    monkeypatch.setattr(lightningdit_latents, "SHARD", 4)
    whole = write(tmp_path / "shards")
    converted = convert(tmp_path / "shards", tmp_path / "store")
    assert "does not know which tokenizer" in converted.notes[0]
    store = open_latent_store(tmp_path / "store")
    assert torch.equal(store.read(range(11)), whole["latents"])
    assert torch.equal(store.read(range(11), [True] * 11), whole["latents_flip"])
    assert store.labels.tolist() == whole["labels"].tolist()
    assert store.classes == tuple("01234")
    assert store.spec.mean == (0.0, 1.0, 2.0, 3.0)
    assert store.spec.std == (3.0,) * 4
    assert (store.header.statistics, store.spec.tokenizer, store.names) == ("shards", None, [])
    assert convert(tmp_path / "store", tmp_path / "again").about == "11 latents in 3 shards"
    again = [load_file(path) for path in sorted((tmp_path / "again").glob("*.safetensors"))]
    assert [len(shard["labels"]) for shard in again] == [4, 4, 3]
    for key, values in whole.items():
        found = torch.cat([shard[key] for shard in again])
        assert found.dtype == values.dtype
        assert torch.equal(found, values)
    statistics = torch.load(tmp_path / "again" / "latents_stats.pt", weights_only=True)
    assert torch.equal(statistics["mean"], STATISTICS["mean"])
    assert torch.equal(statistics["std"], STATISTICS["std"])


def test_without_statistics_they_are_measured(tmp_path: Path) -> None:
    whole = write(tmp_path / "shards", statistics=None, flip=False)
    convert(tmp_path / "shards", tmp_path / "store", dtype="bfloat16")
    store = open_latent_store(tmp_path / "store")
    assert store.header.views == ("plain",)
    kept = whole["latents"].bfloat16().double()
    np.testing.assert_allclose(store.spec.mean, kept.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(store.spec.std, kept.std((0, 2, 3)), rtol=1e-9)
    with pytest.raises(LumitokError, match="no mirrored view, and LightningDiT's loader reads one"):
        convert(tmp_path / "store", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_moments_are_drawn_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", kind="moments", count=5)
    convert(tmp_path / "store", tmp_path / "shards", seed=3)
    found = load_file(tmp_path / "shards" / "latents_rank00_shard000.safetensors")
    for view, key in enumerate(("latents", "latents_flip")):
        draws = [torch.Generator().manual_seed(derive_seed(3, place, view)) for place in range(5)]
        wanted = store.draw(store.read(range(5), [view == 1] * 5), draws)
        assert torch.equal(found[key], wanted)


def test_the_tokenizer_is_noted(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = save_kind("ldm", tiny_recipe, tmp_path / "tokenizer")  # 32 px, 16 a place: (4, 2, 2)
    write(tmp_path / "shards")
    assert not convert(tmp_path / "shards", tmp_path / "store", tokenizer=checkpoint).notes
    store = open_latent_store(tmp_path / "store")
    store.check_tokenizer(Tokenizer.from_pretrained(checkpoint).latent_fingerprint(), "it")
    assert store.spec.std == (3.0,) * 4
    for path in (tmp_path / "shards").glob("*.safetensors"):
        save_file({"latents": torch.zeros(2, 8, 2, 2), "labels": torch.zeros(2).long()}, path)
    (tmp_path / "shards" / "latents_stats.pt").unlink()
    with pytest.raises(
        LumitokError, match=r"makes latents of shape \(4, 2, 2\), and the shards hold \(8, 2, 2\)"
    ):
        convert(tmp_path / "shards", tmp_path / "other", tokenizer=checkpoint)


def latents(**tensors: Tensor) -> dict[str, Tensor]:
    return {"latents": torch.zeros(2, 4, 2, 2), "labels": torch.zeros(2).long()} | tensors


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ({"weight": torch.zeros(2)}, "lacks latents and labels and holds weight"),
        (latents(latents=torch.zeros(2, 4)), r"latents F32 \[2, 4\]"),
        (latents(latents=torch.zeros(2, 4, 2, 2).int()), "latents I32"),
        (latents(labels=torch.zeros(3).long()), r"labels I64 \[3\]"),
        (latents(labels=torch.zeros(2)), "labels F32"),
        (latents(latents_flip=torch.zeros(1, 4, 2, 2)), r"latents_flip F32 \[1, 4, 2, 2\]"),
        (latents(), "do not fit together: .*shard000.safetensors has latents .* with latents_flip"),
        (latents(latents=torch.zeros(2, 8, 2, 2), latents_flip=torch.zeros(2, 8, 2, 2)), r"\(8, 2, 2\) with"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, shard: dict[str, Tensor], message: str) -> None:
    write(tmp_path / "shards")
    save_file(shard, tmp_path / "shards" / "latents_rank01_shard000.safetensors")
    with pytest.raises(LumitokError, match=message):
        convert(tmp_path / "shards", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "shards")
    path = tmp_path / "shards" / "latents_rank00_shard001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LumitokError, match=r"shard001\.safetensors is damaged"):
        convert(tmp_path / "shards", tmp_path / "store")
    with pytest.raises(LumitokError, match="neither a latent store nor LightningDiT's shards"):
        convert(tmp_path, tmp_path / "store")
    for path in (tmp_path / "shards").glob("*.safetensors"):
        save_file(latents(latents=torch.full((2, 4, 2, 2), torch.nan)), path)
    with pytest.raises(LumitokError, match="not finite"):
        convert(tmp_path / "shards", tmp_path / "store")
    assert not (tmp_path / "store").exists()


class Stranger:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (Stranger(), "is damaged, or holds no mean and std"),
        ([1, 2], "is damaged, or holds no mean and std"),
        ({"mean": torch.zeros(4)}, "is damaged, or holds no mean and std"),
        ({"mean": torch.zeros(3), "std": torch.ones(3)}, "of 3 and 3 channels, wanted finite ones of 4"),
        ({"mean": torch.zeros(4), "std": torch.zeros(4)}, "the deviations over 0"),
        ({"mean": torch.full((4,), torch.nan), "std": torch.ones(4)}, "wanted finite ones"),
    ],
)
def test_bad_statistics_are_refused_and_nothing_is_run(
    tmp_path: Path, statistics: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "shards", statistics=statistics)
    with pytest.raises(LumitokError, match=message):
        open_shards(tmp_path / "shards")
    assert "run" not in capsys.readouterr().out


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    write(tmp_path / "shards")
    make_store(tmp_path / "store")
    before = json.loads((tmp_path / "store" / "store.json").read_text())
    with pytest.raises(LumitokError, match="is there already"):
        convert(tmp_path / "shards", tmp_path / "store")
    assert json.loads((tmp_path / "store" / "store.json").read_text()) == before
