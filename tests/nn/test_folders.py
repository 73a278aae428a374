from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lumitok.errors import LumitokError
from lumitok.nn.folders import fetch_folder, load_strictly


@pytest.mark.parametrize("parent", ["", "runs"])
def test_a_mistyped_folder_is_told_the_nearest(
    parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    (tmp_path / parent / "vfm-vae").mkdir(parents=True)
    (tmp_path / parent / "vfm-va.txt").touch()
    with pytest.raises(LumitokError, match=r"there is no folder .*did you mean 'vfm-vae'"):
        fetch_folder(str(Path(parent, "vfm-va")), None)


def test_some_names_may_be_left_out_and_then_must_be(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    state = {f"0.{name}": torch.full_like(t, 3.0) for name, t in module[0].state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    kept = module[1].weight.clone()
    load_strictly(module, tmp_path / "a.safetensors", but=("1.",))
    assert module[0].weight.item() == 3.0
    assert torch.equal(module[1].weight, kept)
    with pytest.raises(LumitokError, match=r"missing 1\.weight; missing 1\.bias"):
        load_strictly(module, tmp_path / "a.safetensors")
    with pytest.raises(LumitokError, match=r"unexpected 0\.weight"):
        load_strictly(module, tmp_path / "a.safetensors", but=("0.", "1."))
