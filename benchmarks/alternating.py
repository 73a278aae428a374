"""Time several ways to do one thing, each in a process of its own, in turn.

What else the machine does hits all of them alike.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Make = Callable[[], Callable[[], Any]]
"""Builds, in the new process, the function that is timed; it must be possible to pickle."""


@dataclass
class Rounds:
    """Seconds of each round, by the clock and of the processor, and what the first round returned."""

    first: Any
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def in_turn(ways: dict[str, Make], *, rounds: int, threads: int, report: bool = True) -> dict[str, Rounds]:
    """Run every way once to warm it up, then ``rounds`` times in turn, one at a time.

    Args:
        ways: how to build each.
        rounds: that count.
        threads: of each process.
        report: tell on stderr how far it is.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the libraries when the new process starts
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        found: dict[str, Rounds] = {}
        for name, make in ways.items():
            pipes[name], there = context.Pipe()
            processes.append(context.Process(target=_serve, args=(make, threads, there), daemon=True))
            processes[-1].start()
            there.close()
            found[name] = Rounds(_ask(name, pipes[name])[2])
        for number in range(rounds):
            for name, pipe in pipes.items():
                wall, processor, _ = _ask(name, pipe)
                found[name].wall.append(wall)
                found[name].processor.append(processor)
                if report:
                    print(f"round {number + 1} {name}: {wall:.2f} s", file=sys.stderr, flush=True)
        return found
    finally:
        for pipe in pipes.values():
            pipe.close()  # ends its process
        for process in processes:
            process.join()


def _ask(name: str, pipe: Connection) -> tuple[float, float, Any]:
    try:
        pipe.send(None)
        answer: tuple[float, float, Any] = pipe.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(f"'{name}' ended; its own message stands above")
    return answer


def _serve(make: Make, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    work = make()
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        wall, processor = time.perf_counter(), time.process_time()
        value = work()
        pipe.send((time.perf_counter() - wall, time.process_time() - processor, value))


def print_table(found: dict[str, Rounds], images: int, wanted: float) -> None:
    """Print images/s of each way, and how many times that of the first they are.

    Medians of the rounds, and the slowest and fastest of them. ``of the processor`` divides by its time in
    place of the clock's, which other programs on the machine lengthen; on a GPU it says nothing.
    """
    first = next(iter(found.values()))
    print(f"{'':>22} {'images/s':>9} {'slowest':>8} {'fastest':>8} {'ratio':>6}   {'of the processor':>16}")
    for name, rounds in found.items():
        wall, busy = statistics.median(rounds.wall), statistics.median(rounds.processor)
        ratio, other = statistics.median(first.wall) / wall, statistics.median(first.processor) / busy
        print(
            f"{name:>22} {images / wall:>9.3f} {images / max(rounds.wall):>8.3f} "
            f"{images / min(rounds.wall):>8.3f} {ratio:>6.2f}   {images / busy:>9.3f} {other:>6.2f}"
        )
    print(f"wanted: {wanted} times the official images/s")


def put_first(checkout: Path) -> None:
    """Let the modules of the official checkout be imported, before any of the same name."""
    if not (checkout / "models" / "lightningdit.py").is_file():
        sys.exit(f"'{checkout}' is no checkout of LightningDiT: it has no models/lightningdit.py")
    sys.path.insert(0, str(checkout))
