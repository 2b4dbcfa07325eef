"""Hints between the service and its workers: "there may be work", "this job changed". Losing one changes nothing.

Each embedded worker has a pipe to its parent. A hint down it is an empty message; up it come events as JSON. When the
other end is gone, its reader learns at once: that is how workers notice that their service was killed.
"""

from __future__ import annotations

import contextlib
import json
import select
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

Event = Mapping[str, Any]
"""What others want to know at once: `{"event": "job", "job": id}`, and what `metrics.Metrics.observe` takes."""


class Uplink:
    """A worker's end of the pipe."""

    def __init__(self, pipe: Connection, *, on_hint: Callable[[], None], on_gone: Callable[[], None]) -> None:
        """`on_hint` is called when there may be work, `on_gone` once the parent is gone."""
        self._pipe = pipe
        self._on_hint = on_hint
        self._on_gone = on_gone
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, name="hints", daemon=True).start()

    def tell(self, event: Event) -> None:
        """Send an event to the parent; a parent that is gone is no error."""
        with self._sending, contextlib.suppress(OSError, ValueError):
            self._pipe.send_bytes(json.dumps(event).encode())

    def _listen(self) -> None:
        try:
            while True:
                self._pipe.recv_bytes()
                self._on_hint()
        except (EOFError, OSError):
            self._on_gone()


def hint(pipe: Connection) -> None:
    """Tell a worker that there may be work; one that is gone is no error, and one that is frozen is not waited for."""
    with contextlib.suppress(OSError, ValueError):
        if _has_room(pipe):
            pipe.send_bytes(b"")


def _has_room(pipe: Connection) -> bool:
    """Whether a short message can be sent without waiting for the reader."""
    if not hasattr(select, "poll"):  # Windows: there no process is stopped for long
        return True
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLOUT)
    return bool(poll.poll(0))


def events(pipe: Connection) -> list[Event]:
    """What a worker has told; raises EOFError once it is gone and everything was read."""
    found: list[Event] = []
    try:
        while pipe.poll():
            found.append(json.loads(pipe.recv_bytes()))
    except (EOFError, OSError):
        if not found:
            raise EOFError from None
    return found
