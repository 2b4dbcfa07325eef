"""What keeps a claim while its job is worked on: heartbeats, checkpoints, and the eye on a cancel.

It has a thread of its own, so that the model need not wait for the disk, nor the lease for the model.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from stenograf.chunk import ChunkResult
from stenograf.errors import DatabaseError, LeaseLostError
from stenograf.jobs.job import Claim
from stenograf.jobs.lease import Leases

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often is asked whether the job was cancelled: well within the 2 s that a cancel may take."""

GATHER_SECONDS = 0.02
"""A chunk waits so long before it is written down: the last one goes with the result, in one transaction."""


class Keeping:
    """Keeps a claim within a `with`; what the worker learns is told to it and written down soon after."""

    def __init__(
        self, leases: Leases, claim: Claim, *, stall: float, on_stall: Callable[[], None], notify: Callable[[], None]
    ) -> None:
        """`on_stall` is called when nothing moved for `stall` seconds, `notify` after something was written."""
        self._leases = leases
        self._claim = claim
        self._stall = stall
        self._on_stall = on_stall
        self._notify = notify
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._ended = threading.Event()
        self._read: list[ChunkResult] = []
        self._learnt: dict[str, Any] = {}
        self._moved = self._renewed = time.monotonic()
        self._aside = False
        self._failure = ""
        self._thread = threading.Thread(target=self._keep, name=f"keep-{claim.id[:8]}", daemon=True)
        self.lost = False
        """Whether the job is another's by now, or at rest: stop, and write nothing more."""

    def headway(self) -> None:
        """Something moved: the worker is not hung."""
        self._moved = time.monotonic()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Nothing of this job moves within it, on purpose: the worker is not hung."""
        self._aside = True
        try:
            yield
        finally:
            self.headway()
            self._aside = False

    def learn(self, *, now: bool = False, **columns: Any) -> None:
        """Write this down with the next heartbeat, or, if `now`, as soon as may be; see `lease.Described`."""
        with self._lock:
            self._learnt.update(columns)
        self.headway()
        if now:
            self._news.set()

    def keep(self, chunk: ChunkResult, **columns: Any) -> None:
        """A chunk was read: a checkpoint."""
        with self._lock:
            self._read.append(chunk)
            self._learnt.update(columns)
        self.headway()
        self._news.set()

    def rest(self) -> tuple[list[ChunkResult], dict[str, Any]]:
        """End the keeping; what was not written down yet is for the caller to write with its last word."""
        self._ended.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join()
        read, self._read = self._read, []
        learnt, self._learnt = self._learnt, {}
        return read, learnt

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()

    def _keep(self) -> None:
        while not self._ended.is_set():
            self._news.wait(LOOK_SECONDS)
            if self._news.is_set() and self._ended.wait(GATHER_SECONDS):
                return
            self._news.clear()
            if not self.lost:
                self._keep_on()
            if not self._aside and time.monotonic() - self._moved > self._stall:
                self._on_stall()

    def _keep_on(self) -> None:
        try:
            self._write_down()
        except LeaseLostError:
            self.lost = True
        except DatabaseError as error:
            if self._failure != str(error):  # once, however long it lasts
                log.warning("a heartbeat could not be written: %s", error)
            # However long it lasts it is read on: if the job is another's by then, the next word is refused.
            self._failure = str(error)
        except Exception:
            log.exception("the claim cannot be kept")
            self.lost = True  # as if frozen: the lease runs out

    def _write_down(self) -> None:
        if self._failure:
            # The lease first: it may have run out meanwhile, and a full disk may take it where it takes no chunk.
            self._leases.append(self._claim, [])
            self._renewed = time.monotonic()
        due = time.monotonic() - self._renewed >= self._leases.seconds / 3
        with self._lock:
            read, learnt = list(self._read), dict(self._learnt)
        if read:
            self._leases.append(self._claim, read, **learnt)
        elif learnt or due:
            self._leases.renew(self._claim, **learnt)
        elif self._claim.id not in self._leases.still_mine([self._claim]):
            raise LeaseLostError("The task was cancelled, removed or taken over.")
        else:
            self._failure = ""
            return
        self._failure = ""
        self._renewed = time.monotonic()
        with self._lock:
            del self._read[: len(read)]
            self._learnt = {name: value for name, value in self._learnt.items() if learnt.get(name) != value}
        self._notify()
