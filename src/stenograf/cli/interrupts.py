"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever it happens to be. Inside a call-back from native code, such as the reading of a
file for FFmpeg, it has nowhere to go and is dropped. So it is remembered as well, and asked for between two pieces of
work.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """While it is entered, remembers that the person pressed Ctrl-C."""

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None

    def check(self) -> None:
        """Raise the KeyboardInterrupt that may have been lost."""
        if self.pressed:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as for a job in the background: let it be
        if threading.current_thread() is threading.main_thread() and not is_ignored:
            self._before = signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self.pressed = True
        raise KeyboardInterrupt
