"""Several processes on the processor: the same losses as one, the same bits as before a stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lumitok.config import Recipe, save_recipe
from lumitok.training import train
from lumitok.training.checkpoint import checkpoints, load_place
from tests.training.compare import assert_close, assert_same, changed, history, stopped_at

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# --multi_gpu means several processes, also where there is no GPU; --cpu would start one, or want MPI.
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--main_process_port", "0"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no"]
# Bits depend on the number of threads, and this launcher would choose another.
ACCELERATE += ["--num_cpu_threads_per_process", "1", "-m"]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def launch(launcher: list[str], recipe: Recipe, folder: Path, *options: str) -> Path:
    """Train with two processes through one of the two launchers."""
    path = folder / f"{Path(recipe.out).name}.yaml"
    save_recipe(recipe, path)
    module = ["lumitok"] if launcher is ACCELERATE else ["-m", "lumitok"]
    done = subprocess.run(
        [sys.executable, *launcher, *module, "train", str(path), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Path(recipe.out)


@pytest.fixture
def both(recipe: Recipe) -> Recipe:
    """Two stages of two accumulated steps that between them use every part of the engine."""
    first = recipe.stages[0].model_dump() | {"images": 64, "batch_size": 32, "equivariance": {}}
    first["losses"] = first["losses"] | {"ssim": 0.1}
    # Scales that fit pictures of 32 px whose decoder has blocks from 4 px on.
    first["equivariance"] = {"latent_scales": [1.0], "prior_probability": 0.0, "latent_probability": 1.0}
    second = first | {
        "name": "second",
        "trainable": ["blocks.*", "spatial.*"],
        "losses": {"l1": 0.5, "gan": 0.1, "patchgan": 0.1, "feature_matching": 1.0},
        "equivariance": None,
    }
    return changed(
        recipe,
        stages=[first, second],
        patch_discriminator={"channels": 4},
        training__accumulation=2,
        training__log_every=2,
        training__validate_every=0,
        training__checkpoint_every=1,
    )


def test_two_processes_give_what_one_gives_and_resume_to_the_bit(both: Recipe, tmp_path: Path) -> None:
    one = train(changed(both, out=str(tmp_path / "one")))
    two = launch(TORCHRUN, changed(both, out=str(tmp_path / "two")), tmp_path)
    _assert_close_history(history(one), history(two))
    for step in (1, 4):
        name = f"checkpoints/step-{step:08d}"
        assert_close(one / name, two / name, atol=2e-3 if step == 4 else 5e-4)
    before, after = (
        load_file(two / f"checkpoints/step-0000000{n}/training/discriminator.safetensors") for n in (2, 4)
    )
    moved = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert moved == {"foundation", "patch"}
    # From the middle of the first stage, over its end, by the other launcher.
    stopped = stopped_at(two, 1, tmp_path / "stopped")
    again = launch(ACCELERATE, changed(both, out=str(stopped)), tmp_path, "--resume")
    assert_same(two / "checkpoints/step-00000004", again / "checkpoints/step-00000004")
    assert history(two) == history(again)


def _assert_close_history(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [{k: v for k, v in r.items() if k != "values"} for r in ours] == [
        {k: v for k, v in r.items() if k != "values"} for r in theirs
    ]
    for a, b in zip(ours, theirs, strict=True):
        assert a["values"].keys() == b["values"].keys()
        for name, value in a["values"].items():
            assert b["values"][name] == pytest.approx(value, rel=2e-3, abs=2e-4), (a["step"], name)
        if a["kind"] == "validation":
            assert a["values"]["count"] == b["values"]["count"] == 4


def test_every_process_names_its_own_pictures(both: Recipe, tmp_path: Path) -> None:
    # A batch that breaks is written by each process, each its own share.
    broken = changed(both, out=str(tmp_path / "broken"), training__accumulation=1)
    first = broken.stages[0].model_dump() | {"batch_size": 16, "generator_lr": 1e38}
    broken, path = changed(broken, stages=[first]), tmp_path / "broken.yaml"
    save_recipe(broken, path)
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "lumitok", "train", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode != 0
    assert "the last good checkpoint is" in done.stderr, done.stderr
    (folder,) = (Path(broken.out) / "not-finite").iterdir()
    said = [json.loads((folder / f"discriminators-{rank}.json").read_text()) for rank in range(2)]
    assert [len(one["pictures"]) for one in said] == [8, 8]
    assert said[0]["term"] == said[1]["term"]
    assert said[0]["pictures"] != said[1]["pictures"]


def test_sigterm_to_a_launched_run_saves_on_all_processes(both: Recipe, tmp_path: Path) -> None:
    long = changed(both, out=str(tmp_path / "long"), training__accumulation=1, training__checkpoint_every=0)
    first = long.stages[0].model_dump() | {"batch_size": 16, "images": 16 * 5000}
    long, path = changed(long, stages=[first]), tmp_path / "long.yaml"
    save_recipe(long, path)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *TORCHRUN, "-m", "lumitok", "train", str(path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=said,
            start_new_session=True,
        )
    lines = Path(long.out) / "history.jsonl"
    deadline = time.monotonic() + 200
    while not lines.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert lines.is_file(), (tmp_path / "said").read_text()
    os.killpg(process.pid, signal.SIGTERM)  # As a scheduler does; the launcher sends it to its own once more.
    process.wait(timeout=100)
    (saved,) = checkpoints(Path(long.out))
    step = load_place(saved / "training").step
    assert 0 < step < 5000
    assert f"stopped by signal 15 after step {step}, saved" in (tmp_path / "said").read_text()
