"""Tokenizer and network as one pipeline: it draws, saves, opens, and refuses what does not fit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lumitok import LatentDiffusionPipeline, LumitokError
from lumitok.config import SamplingConfig
from lumitok.data.latents import ORIGIN
from lumitok.diffusion.sampling import sample
from lumitok.tokenizers import Tokenizer
from tests.pipelines.drawing import save_run, save_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run whose recipe names the tokenizer."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    save_run(tmp_path / "run", tokenizer, str(tmp_path / "tokenizer"))
    return tmp_path / "run"


@pytest.fixture
def pipe(saved: Path) -> LatentDiffusionPipeline:
    made = LatentDiffusionPipeline.from_pretrained(saved)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_call_gives_pictures(pipe: LatentDiffusionPipeline) -> None:
    images = pipe([0, "owl", "2"], guidance_scale=2.0, generator=seeded()).images
    assert [image.size for image in images] == [(32, 32)] * 3
    assert all(isinstance(image, Image.Image) for image in images)
    (again,) = pipe([0, 2, 2], guidance_scale=2.0, generator=seeded(), output_type="np", return_dict=False)
    assert again.shape == (3, 32, 32, 3)
    assert np.abs(again * 255 - np.stack(images)).max() < 0.51
    tensor = pipe([0], output_type="pt").images
    assert tensor.shape == (1, 3, 32, 32)
    assert 0 <= tensor.min() <= tensor.max() <= 1


def test_it_is_the_samplers_latent_decoded(pipe: LatentDiffusionPipeline) -> None:
    latents = pipe.draw([1, 2], [3, 4])
    assert torch.equal(latents, sample(pipe.network, [1, 2], [3, 4], SamplingConfig(steps=3)))
    # With the statistics that the network learnt, not with the tokenizer's own.
    expected = pipe.tokenizer.decode(latents * 1.5 + 0.25).sample
    assert torch.allclose(pipe.decode(latents), expected)


def test_settings_of_a_call_go_before_the_recipes(pipe: LatentDiffusionPipeline) -> None:
    assert pipe.sampling == SamplingConfig(steps=3)
    call: dict[str, Any] = {"class_labels": [1], "output_type": "latent"}

    def drawn(**more: Any) -> torch.Tensor:
        return pipe(**call, generator=seeded(), **more).images

    plain = drawn()
    assert torch.equal(plain, drawn(num_inference_steps=3, guidance_scale=1.0))
    assert not torch.equal(plain, drawn(num_inference_steps=4))
    guided = drawn(guidance_scale=3.0)
    assert not torch.equal(plain, guided)
    assert torch.equal(plain, drawn(guidance_scale=3.0, guidance_interval=(0.9, 1.0)))
    pipe.sampling = SamplingConfig(steps=3, guidance=3.0)
    assert torch.equal(guided, drawn())


def test_a_list_of_generators_has_one_a_picture(pipe: LatentDiffusionPipeline) -> None:
    call: dict[str, Any] = {"output_type": "latent"}
    both = pipe([1, 1], generator=[seeded(5), seeded(6)], **call).images
    apart = [pipe([1], generator=[seeded(seed)], **call).images for seed in (5, 6)]
    assert torch.allclose(both, torch.cat(apart), atol=1e-6)
    assert not torch.allclose(both[0], both[1])
    with pytest.raises(LumitokError, match="1 generators for 2 pictures"):
        pipe([1, 1], generator=[seeded()])
    one = pipe([1, 1], generator=seeded(), **call).images
    assert not torch.allclose(one[0], one[1])


@pytest.mark.parametrize(("guidance", "solver"), [(1.0, "euler"), (2.0, "euler"), (2.0, "heun")])
def test_the_callback_sees_each_evaluation(
    pipe: LatentDiffusionPipeline, guidance: float, solver: str
) -> None:
    pipe.sampling = SamplingConfig(steps=3, solver=solver)  # type: ignore[arg-type]
    seen: list[tuple[int, float, torch.Tensor]] = []

    def watch(_: Any, step: int, t: float, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((step, t, given["latents"].clone()))
        return given

    pipe([0, 1], guidance_scale=guidance, generator=seeded(), callback_on_step_end=watch)
    third = 1 / 3
    times = [0, third, 2 * third] if solver == "euler" else [0, third, third, 2 * third, 2 * third]
    assert [step for step, _, _ in seen] == list(range(len(times)))
    assert [t for _, t, _ in seen] == pytest.approx(times)
    assert {tuple(latents.shape) for _, _, latents in seen} == {(2, 4, 4, 4)}
    seen.clear()
    pipe([0, 1], generator=seeded())
    assert not seen


def test_a_callback_cannot_change_the_state(pipe: LatentDiffusionPipeline) -> None:
    def change(_: Any, step: int, t: float, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del step, t
        return {"latents": given["latents"] * 2}

    with pytest.raises(LumitokError, match="look at it and not change it"):
        pipe([0], callback_on_step_end=change)


def test_the_progress_bar_counts_evaluations(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(saved, sampling={"solver": "heun"})
    pipe([0])
    assert "5/5" in capsys.readouterr().err
    pipe.sampling = SamplingConfig(solver="dopri5", rtol=0.1, atol=0.1)
    pipe([0])
    assert re.search(r"[1-9]\d*it", capsys.readouterr().err)


def test_steps_asked_of_a_solver_that_chooses_its_own_are_refused(saved: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(saved, sampling={"solver": "dopri5"})
    with pytest.raises(LumitokError, match="dopri5 chooses its own steps and does not heed steps; leave"):
        pipe(class_labels=[0], num_inference_steps=7)
    with pytest.raises(LumitokError, match="does not heed shift and steps"):
        LatentDiffusionPipeline.from_pretrained(
            saved, sampling={"solver": "dopri5", "steps": 7, "shift": 0.3, "rtol": 0.1}
        )


def test_no_class_and_no_classes(pipe: LatentDiffusionPipeline, tmp_path: Path) -> None:
    assert len(pipe(batch_size=2).images) == 2
    save_run(tmp_path / "free", pipe.tokenizer, str(tmp_path / "tokenizer"), classes=0)
    free = LatentDiffusionPipeline.from_pretrained(tmp_path / "free")
    assert len(free(batch_size=2).images) == 2
    with pytest.raises(LumitokError, match="knows no classes"):
        free([0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"class_labels": ["cow"]}, "no class 'cow'"),
        ({"class_labels": ["owls"]}, "did you mean 'owl'"),
        ({"class_labels": [7]}, "no class 7"),
        ({"class_labels": [0], "output_type": "jpg"}, "pil, pt, np or latent"),
        ({"class_labels": [0], "guidance_interval": (0.8, 0.2)}, "0 <= low < high <= 1"),
        ({"guidance_scale": 2.0}, "no labels were given"),
    ],
)
def test_what_a_call_cannot_do_is_said(
    pipe: LatentDiffusionPipeline, call: dict[str, Any], message: str
) -> None:
    with pytest.raises(LumitokError, match=message):
        pipe(**call)


def test_one_folder_opens_in_another_process(pipe: LatentDiffusionPipeline, tmp_path: Path) -> None:
    pipe.sampling = SamplingConfig(steps=4, guidance=1.5)
    pipe.save_pretrained(tmp_path / "pipe")
    drawn = pipe(["dog"], generator=seeded(), output_type="np").images
    code = (
        "import sys, numpy, torch\n"
        "torch.set_num_threads(1)\n"
        "from lumitok import LatentDiffusionPipeline\n"
        "pipe = LatentDiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "made = pipe(['dog'], generator=torch.Generator().manual_seed(0), output_type='np').images\n"
        "numpy.save(sys.argv[2], made)\n"
    )
    file = tmp_path / "made.npy"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pipe"), str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(file), drawn)


def test_a_saved_pipeline_keeps_all_its_parts(pipe: LatentDiffusionPipeline, tmp_path: Path) -> None:
    save_run(tmp_path / "weak", pipe.tokenizer, seed=1)
    guided = LatentDiffusionPipeline.from_pretrained(
        tmp_path / "run", sampling={"guidance": 2.0, "autoguidance": str(tmp_path / "weak")}
    )
    guided.save_pretrained(tmp_path / "pipe")
    again = LatentDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    assert again.guide is not None
    assert again.class_names == ("cat", "dog", "owl")
    assert again.origin == guided.origin
    assert torch.equal(guided.draw([1], [2]), again.draw([1], [2]))
    assert not torch.equal(guided.draw([1], [2]), pipe.draw([1], [2], guided.sampling))
    # Without guidance the weaker network has no part in it.
    alone = again([1], guidance_scale=1.0, generator=seeded(), output_type="latent").images
    assert torch.equal(alone, pipe([1], generator=seeded(), output_type="latent").images)
    # What stands for a run stands for a pipeline: its tokenizer opens by itself.
    assert Tokenizer.from_pretrained(tmp_path / "pipe").fingerprint() == pipe.tokenizer.fingerprint()


def test_weights_of_another_type(pipe: LatentDiffusionPipeline, saved: Path, tmp_path: Path) -> None:
    half = LatentDiffusionPipeline.from_pretrained(saved, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    drawn, exact = half.decode(half.draw([1], [2])), pipe.decode(pipe.draw([1], [2]))
    assert drawn.dtype == torch.float32
    assert torch.allclose(drawn, exact, atol=0.2)
    with pytest.raises(LumitokError, match="save the pipeline before it is converted"):
        half.save_pretrained(tmp_path / "half")


def test_another_tokenizer_is_refused(saved: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(LumitokError, match="give the tokenizer that made them"):
        LatentDiffusionPipeline.from_pretrained(saved, tokenizer=tmp_path / "other")


def test_where_the_tokenizer_comes_from(saved: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    save_run(tmp_path / "silent", tokenizer)
    with pytest.raises(LumitokError, match="--tokenizer"):
        LatentDiffusionPipeline.from_pretrained(tmp_path / "silent")
    save_run(tmp_path / "gone", tokenizer, str(tmp_path / "gone-tokenizer"))
    with pytest.raises(LumitokError, match=r"cannot be opened.*--tokenizer"):
        LatentDiffusionPipeline.from_pretrained(tmp_path / "gone")
    for given in (tmp_path / "tokenizer", tokenizer):
        assert LatentDiffusionPipeline.from_pretrained(tmp_path / "silent", tokenizer=given)
    # An imported network knows nothing of its latents: they are the tokenizer's.
    (saved / "network" / ORIGIN).unlink()
    imported = LatentDiffusionPipeline.from_pretrained(saved)
    assert imported.origin.spec == tokenizer.latent_spec
    assert imported.class_names == ()
    with pytest.raises(LumitokError, match="knows numbers alone"):
        imported(["cat"])


def test_latents_of_another_shape_are_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "network" / ORIGIN).unlink()
    save_tokenizer(tmp_path / "wide", latent_channels=8)
    with pytest.raises(LumitokError, match=r"\(4, 4, 4\).*\(8, 4, 4\)"):
        LatentDiffusionPipeline.from_pretrained(saved, tokenizer=tmp_path / "wide")


def test_the_code_in_the_docs_runs(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    saved.rename(tmp_path / "my-run")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    with Image.open(tmp_path / "owl.png") as image:
        assert image.size == (32, 32)
