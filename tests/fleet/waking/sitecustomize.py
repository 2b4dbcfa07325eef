"""For programs under libfaketime: its version 0.9.10 fails in the call that `time.sleep` makes; another one sleeps."""

import threading
import time


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


time.sleep = _sleep  # type: ignore[assignment]
