"""One measurement in a process of its own: its seconds and its peak memory, and nothing of the others'.

A measurement that lacks memory, takes too long or dies is a :class:`Measurement` that says so.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from lumitok.errors import LumitokError

Status = Literal["measured", "over the limit", "out of memory", "failed"]
Ready = Callable[[], None]
"""A job calls it when all is built: the time limit runs from then on."""

WARM_UP = {"cpu": 1}
"""Runs before those that are counted: the first chooses kernels; accelerators also raise their clocks."""
WARM_UP_ELSEWHERE = 3
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
"""What errors of too little memory say, which torch raises as plain RuntimeErrors on a processor."""


@dataclass(frozen=True)
class Setting:
    """How all measurements of a call are made."""

    device: str
    """Kind of device: ``cpu``, ``cuda`` or ``mps``."""
    precision: Literal["fp32", "bf16"]
    """``bf16``: autocast; the weights are float32 in both."""
    threads: int
    """Of the processor, for torch."""
    repeats: int
    """Runs that are counted, at most; fewer where the limit comes first."""
    limit: float
    """Seconds that the runs of a measurement may take together, warm-up among them."""


@dataclass(frozen=True)
class Measurement:
    """What came of a measurement; numbers are None where there are none."""

    status: Status
    seconds: float | None = None
    """Median of the repeats."""
    fastest: float | None = None
    slowest: float | None = None
    repeats: int = 0
    peak_bytes: int | None = None
    """Most memory at one time, weights included: what the allocator gave out on CUDA, resident memory above
    the level before anything was built on a processor."""
    note: str = ""
    """Why there are no numbers."""


def measure(limit: float, job: Callable[..., Measurement], *arguments: Any) -> Measurement:
    """Run ``job(*arguments, ready)`` in a fresh process and return what it measured.

    Args:
        limit: seconds after ``ready`` is called; then the process is ended.
        job: a function that can be pickled; it may raise.
        arguments: likewise.
    """
    context: Any = multiprocessing.get_context(_start_method())  # Its type knows no Process.
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, job, arguments), daemon=True)
    process.start()
    sender.close()  # So that the end of the child is the end of the pipe.
    try:
        found = receiver.recv()
        if found is None:  # It is ready.
            found = receiver.recv() if receiver.poll(limit) else Measurement("over the limit")
    except EOFError:
        process.join()
        found = _died(process.exitcode or 0)
    finally:
        process.kill()
        process.join()
        receiver.close()
    assert isinstance(found, Measurement)
    return found


def _start_method() -> str:
    """Forks of a process that has imported torch once start in no time; elsewhere forks are not safe."""
    if not sys.platform.startswith("linux"):
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lumitok.pipelines.cost_networks"])
    return "forkserver"


def _died(code: int) -> Measurement:
    if code == -signal.SIGKILL:  # Nobody else kills it so.
        return Measurement("out of memory", note="ended by the system")
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Measurement("failed", note=f"the process ended with {name}")


def _child(sender: Connection, job: Callable[..., Measurement], arguments: tuple[Any, ...]) -> None:
    os.dup2(2, 1)  # What libraries print must not stand in the middle of JSON.
    _be_the_first_to_go()
    try:
        found = job(*arguments, lambda: sender.send(None))
    except LumitokError as error:
        found = Measurement("failed", note=str(error))
    except Exception as error:
        text = " ".join(str(error).split())
        short = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if short or any(sign in text.lower() for sign in NO_MEMORY):
            found = Measurement("out of memory")
        else:
            found = Measurement("failed", note=f"{type(error).__name__}: {text}")
    sender.send(found)


def _be_the_first_to_go() -> None:
    """Where memory runs out, Linux shall end this process and no other."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000", encoding="ascii")


# ------------------------------------------------------------------------------------------------
# Inside the process


class PeakMemory:
    """Most memory that this process held at one time since :meth:`begin`.

    On Linux without an accelerator it is memory of its own alone: pages of libraries, which any process
    maps as it comes to need them, are left out.
    """

    def __init__(self, device: torch.device) -> None:
        """Take the level that a processor's memory is counted from."""
        self.device = device
        self.level: int | None = None
        if device.type == "cpu":
            _limit_memory()
            _give_back_freed()
            self.level = _status().get("RssAnon", _most_ever())

    def begin(self) -> None:
        """Forget what building has taken for a moment."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu" and sys.platform.startswith("linux"):
            _give_back_freed()
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def bytes(self) -> int | None:
        """None: nobody counts it on this system or device."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.level is None:
            return None
        status = _status()
        if "RssAnon" in status:
            # There is no peak of this part alone; that of the libraries' pages only ever grows.
            return max(0, status["VmHWM"] - status["RssFile"] - status["RssShmem"] - self.level)
        highest = _most_ever()
        return None if highest is None else highest - self.level


def timed(run: Callable[[], object], setting: Setting, memory: PeakMemory, ready: Ready) -> Measurement:
    """Warm up and repeat within the limit."""
    memory.begin()
    ready()
    seconds: list[float] = []
    warm_up, last = WARM_UP.get(setting.device, WARM_UP_ELSEWHERE), 0.0
    begun = time.perf_counter()
    for number in range(warm_up + setting.repeats):
        if time.perf_counter() - begun + last > setting.limit:  # The next would end beyond it.
            break
        start = time.perf_counter()
        run()
        synchronise(memory.device)
        last = time.perf_counter() - start
        if number >= warm_up:
            seconds.append(last)
    if not seconds:
        return Measurement("over the limit")
    median = statistics.median(seconds)
    return Measurement("measured", median, min(seconds), max(seconds), len(seconds), memory.bytes())


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _give_back_freed() -> None:
    """Let go of freed memory: what is kept would be used again, unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _limit_memory() -> None:
    """Ask for no more than is free: a request then fails here, and nothing of others' is pushed out."""
    free, status = _kilobytes(Path("/proc/meminfo")).get("MemAvailable"), _status()
    if free is None or "VmData" not in status:
        return
    import resource  # Not on every system.

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = status["VmData"] + free
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def _status() -> dict[str, int]:
    """Sizes in bytes that Linux tells of this process; elsewhere nothing."""
    return _kilobytes(Path("/proc/self/status"))


def _kilobytes(listing: Path) -> dict[str, int]:
    if not listing.is_file():
        return {}
    lines = [line.split() for line in listing.read_text(encoding="ascii", errors="replace").splitlines()]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def _most_ever() -> int | None:
    """Peak of the whole life of the process, where the system tells no other; None: nor this."""
    if sys.platform == "win32":
        return None
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
