"""Waiting for a job to change, for any number of clients at the price of one small question to the database.

Workers in other processes cannot call a coroutine, so one task a process asks for the signs of all jobs that somebody
waits for: twice a second, at once after a nudge, and not at all while nobody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from stenograf.errors import ServiceStoppingError
from stenograf.jobs.job import FINAL
from stenograf.jobs.store import JobStore, Signs

POLL_SECONDS = 0.5
"""Between two looks while somebody waits."""

BREATH_SECONDS = 0.002
"""Between two looks, however many nudges come."""

MOST_MISSED = 10_000
"""So many nudges that nobody waited for are remembered, until nobody waits at all."""

PATIENCE_SECONDS = 5.0
"""How long the database may fail until those who wait are told."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Waiter:
    seen: Signs | None
    changed: asyncio.Future[Signs | None]


class Watcher:
    """Lets coroutines wait for jobs. All but `changed` and `stopping` is for the thread of the event loop."""

    def __init__(self, store: JobStore, *, seconds: float = POLL_SECONDS) -> None:
        self._store = store
        self._seconds = seconds
        self._waiters: dict[str, list[_Waiter]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._missed: set[str] = set()
        self._stopping = False

    def start(self) -> None:
        """Begin to look, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    async def stop(self) -> None:
        """Stop looking; who waits gets `ServiceStoppingError`."""
        self._refuse()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def changed(self, job_id: str) -> None:
        """Something happened to a job: look now, if somebody waits for it. From any thread, at any time."""
        self._call(self._nudge, job_id)

    def stopping(self) -> None:
        """The service is about to stop: who waits now or later gets `ServiceStoppingError`. From any thread.

        To be called before the server waits for its connections to end: some would never end by themselves.
        """
        self._call(self._refuse)

    async def wait(self, job_id: str, seen: Signs | None = None, timeout: float | None = None) -> Signs | None:
        """The signs of a job as soon as they are others than `seen`; None where the job is gone.

        With `seen=None` what is there now, at once. After `timeout` seconds without news, `seen`. Raises
        `ServiceStoppingError`, and `DatabaseError` where the database has failed for a while.
        """
        if self._stopping:
            raise _stopped()
        waiter = _Waiter(seen, asyncio.get_running_loop().create_future())
        self._waiters.setdefault(job_id, []).append(waiter)
        if seen is None or job_id in self._missed or len(self._waiters) == 1:  # else somebody is looked for already
            self._look.set()
        self._missed.discard(job_id)
        try:
            async with asyncio.timeout(None if seen is None else timeout):
                return await waiter.changed
        except TimeoutError:
            return seen
        finally:
            waiters = self._waiters[job_id]
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[job_id]

    async def until_rest(self, job_id: str) -> Signs | None:
        """The signs of a job once it is done, in error or cancelled; None where it is gone. Raises as `wait` does."""
        signs = await self.wait(job_id)
        while signs is not None and signs.state not in FINAL:
            signs = await self.wait(job_id, signs)
        return signs

    async def _run(self) -> None:
        failing_since: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds if self._waiters else None):
                    if not self._waiters:
                        self._missed.clear()
                    await self._look.wait()
            self._look.clear()
            # Those who come while the question is under way may know more than its answer: they wait for the next.
            asked = {job_id: list(waiters) for job_id, waiters in self._waiters.items()}
            if not asked:
                continue
            try:
                found = await asyncio.to_thread(self._store.signs, asked)
            except Exception as error:  # whatever it is: nobody would look any more
                failing_since = failing_since or time.monotonic()
                _log.warning("The signs of %d jobs cannot be read: %s", len(asked), error)
                if time.monotonic() - failing_since > PATIENCE_SECONDS:
                    self._fail(asked, error)
                await asyncio.sleep(self._seconds)
                continue
            failing_since = None
            for job_id, waiters in asked.items():
                signs = found.get(job_id)
                for waiter in waiters:
                    if not waiter.changed.done() and (signs is None or signs != waiter.seen):
                        waiter.changed.set_result(signs)
            await asyncio.sleep(BREATH_SECONDS)

    def _fail(self, asked: dict[str, list[_Waiter]], error: Exception) -> None:
        for waiters in asked.values():
            for waiter in waiters:
                if not waiter.changed.done():
                    waiter.changed.set_exception(error)

    def _nudge(self, job_id: str) -> None:
        if job_id in self._waiters:
            self._look.set()
        elif len(self._missed) < MOST_MISSED:  # who waits for it may be between two waits
            self._missed.add(job_id)

    def _refuse(self) -> None:
        self._stopping = True
        self._fail(dict(self._waiters), _stopped())

    def _call(self, function: Callable[..., None], *arguments: str) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(function, *arguments)


def _stopped() -> ServiceStoppingError:
    return ServiceStoppingError("The service is being stopped.", "Ask again in a moment: the task is kept.")
