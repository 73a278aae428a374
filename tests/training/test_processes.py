"""Two processes on the processor train as one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lumitok.config import Recipe, save_recipe
from lumitok.evaluation.curves import read_history
from tests.training.test_loop import changed


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_two_processes_take_the_steps_of_one_stage_with_and_one_without_the_pyramid_loss(
    recipe: Recipe, tmp_path: Path
) -> None:
    stage = recipe.stages[0].model_dump() | {"images": 16, "batch_size": 8}
    plain = stage | {"name": "plain", "losses": {"l1": 1.0, "gan": 0.1}}
    two = changed(recipe, stages=[stage, plain], out=str(tmp_path / "two"))
    save_recipe(two, tmp_path / "two.yaml")
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "lumitok", "train", str(tmp_path / "two.yaml")]
    started = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    records = [r for r in read_history(tmp_path / "two" / "history.jsonl") if r["kind"] == "train"]
    assert [(r["step"], r["images"], r["stage"]) for r in records] == [(2, 16, "only"), (4, 32, "plain")]
    assert all(value == pytest.approx(value) for r in records for value in r["values"].values())
