"""What ``lumitok doctor`` finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lumitok
from lumitok.foundation import encoder_names
from lumitok.losses.lpips import VGG16
from lumitok.pipelines import doctor
from lumitok.pipelines.doctor import examine
from lumitok.training.precision import Precision


def test_the_processor_and_its_precision_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "choose_precision", lambda *_: Precision(torch.bfloat16, "the processor has AMX")
    )
    machine = examine().machine
    name = next(key for key in machine if key.startswith("cpu: "))
    assert len(name) > len("cpu: ")
    assert machine[name] == "precision 'auto' is bfloat16: the processor has AMX"


def test_versions_are_those_installed() -> None:
    versions = examine().versions
    assert versions["lumitok"] == lumitok.__version__
    assert versions["torch"] == torch.__version__.split("+")[0]


def test_a_missing_extra_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.OPTIONAL_PACKAGES, "no-such-package", "nothing at all")
    assert examine().versions["no-such-package"] == "not installed (only for nothing at all)"


def test_every_encoder_and_vgg16_are_listed() -> None:
    names = [row.name for row in examine().weights]
    assert names[:-1] == encoder_names()
    assert "VGG16" in names[-1]


def test_vgg16_is_found_where_lpips_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "vgg16.pth"
    file.touch()
    monkeypatch.setenv(VGG16.environment, str(file))
    assert examine().weights[-1].path == file
    file.unlink()
    row = examine().weights[-1]
    assert not row.at_hand
    assert "there is no such file" in row.source
