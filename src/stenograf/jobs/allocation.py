"""Memory that was freed, given back to the system: decoding leaves about as much behind in glibc's arenas as it needs."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Have the C library return what it holds and does not use; elsewhere than on glibc nothing happens."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)
