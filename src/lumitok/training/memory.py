"""Memory of a run on the processor."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free, and say whether it does.

    glibc maps every large tensor anew and gives it back when it is freed, so that the kernel clears its
    pages over and over. A training step frees and takes the same sizes again and again; kept, they cost
    nothing. Other C libraries, and allocators put in glibc's place, are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
