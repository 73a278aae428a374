"""Where an evaluation's results go: a file that is named, or the folder of what was measured."""

from __future__ import annotations

from pathlib import Path

from lumitok.evaluation.processes import is_main
from lumitok.evaluation.results import FOLDER, Results, check_target, default_path

__all__ = ["Results", "check_target", "is_main", "keep_results", "results_folder"]


def results_folder(checkpoint: str) -> Path | None:
    """``evaluation/`` of a checkpoint's folder; None for an id on the hub or the name of an encoder."""
    return Path(checkpoint) / FOLDER if Path(checkpoint).is_dir() else None


def keep_results(results: Results, path: Path | None, beside: str = "") -> Path | None:
    """Write results to ``path``, or beside the checkpoint they are of; returns where they lie.

    None where they have no place, and on every process but the main one.
    """
    if path is None and beside and Path(beside).is_dir():
        path = default_path(Path(beside), results)
    return None if path is None or not is_main() else results.save(path)
