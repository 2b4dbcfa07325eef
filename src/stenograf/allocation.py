"""How a worker's C library keeps memory: decoding leaves as much behind in glibc's arenas as it needs.

Figures in `docs/benchmarks.md` (`benchmarks/service.py memory`).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

M_ARENA_MAX = -8
"""From glibc's malloc.h."""

ARENAS = 1
"""Each thread that allocates may get an arena of its own, and what is free in one is of no use to another."""


def spare() -> None:
    """Keep few arenas; to be called before threads are started. Elsewhere than on glibc nothing happens."""
    if mallopt := _libc("mallopt"):
        mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return to the system what is held and not used."""
    if malloc_trim := _libc("malloc_trim"):
        malloc_trim(0)


def _libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None  # musl has neither
