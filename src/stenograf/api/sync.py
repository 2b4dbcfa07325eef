"""Calls that wait for their transcript: jobs like all others, but that a client waits with an open connection.

So such a call survives a restart of the service, and is paid for once however often it is sent: clients send a request
again after a timeout or a 503, and are then given the job that their first one made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from stenograf.api.connection import add_header, kept
from stenograf.api.errors import raised
from stenograf.api.intake import Submission, submit
from stenograf.api.service import Service
from stenograf.errors import CancelledError, DatabaseError, TaskStateError, TaskUnknownError
from stenograf.jobs.job import UNATTENDED, Job

GRACE_SECONDS = 2.0
"""A job is cancelled so long after the last of its clients hung up: one that sends it again finds it still running."""

REVIVAL_SECONDS = 600.0
"""A cancelled job goes on where it was if the same request comes within this time; later it begins anew."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


async def awaited(request: Request, service: Service, submission: Submission) -> Job:
    """The job of a request, once it is done; its priority is the one of `SYNC_PRIORITY`.

    Where the same owner's same recording with the same options is waited for already, or was until its client hung up
    a short while ago, that job is taken, and the file of this request removed at once.

    Raises what `submit` raises, the error that the job ended with, `CancelledError`, `TaskUnknownError` where it was
    removed, `ServiceStoppingError` (the job is kept), and Starlette's `ClientDisconnect`: then nobody waits any more.
    """
    with await join(request, service, submission) as attendance:
        return await unless_gone(request, at_rest(request, service, attendance.job))


async def join(connection: HTTPConnection, service: Service, submission: Submission) -> Attendance:
    """Take the job of a request in, or find it, and count the request among those that wait for it.

    What it gives has to be entered by `with` at once. Raises what `submit` raises.
    """
    desk: _Desk = kept(connection.app, "desk", _Desk)
    return await desk.join(replace(submission, sync=True))


async def at_rest(connection: HTTPConnection, service: Service, job: Job) -> Job:
    """The job once it is done. Raises as `awaited`."""
    while not job.at_rest:  # somebody may have retried it meanwhile
        await service.watcher.until_rest(job.id)
        job = await run_in_threadpool(service.store.get, job.id)
        job = await revived(service, job)
    return finished(connection, job)


async def revived(service: Service, job: Job) -> Job:
    """The job, going on again if it was cancelled for a client of another process, which knows nothing of ours."""
    if job.stage != UNATTENDED:
        return job
    with suppress(TaskStateError):
        await run_in_threadpool(service.store.retry, job.id)
    service.wake()
    return await run_in_threadpool(service.store.get, job.id)


def finished(connection: HTTPConnection, job: Job) -> Job:
    """A job at rest, if it is done; raises the error that it ended with, `CancelledError` where it was cancelled."""
    if job.state == "done":
        return job
    # It was tried as often as makes sense. OpenAI's clients send everything from 500 on again, unless told not to.
    add_header(connection, "X-Should-Retry", "false")
    if job.error is not None and job.state == "error":
        raise raised(job.error)
    raise CancelledError(f"The task {job.id} was cancelled.", "Send the recording again if you want it read.")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, or `ClientDisconnect` if the client hangs up before; then the work is cancelled.

    The body of the request must have been read to its end.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


class Attendance:
    """One request that waits for a job, until the end of the `with`."""

    def __init__(self, desk: _Desk, job: Job, key: tuple[str, str]) -> None:
        self._desk = desk
        self._key = key
        self.job = job
        """As it was at the beginning."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._desk.leave(self.job.id, self._key, hung_up=isinstance(error, ClientDisconnect))


async def leave_all(app: Any) -> None:
    """The service stops: jobs whose clients have hung up are cancelled now, and not after the grace.

    A client who sends the same again after the restart finds the job and goes on with it.
    """
    desk: _Desk = kept(app, "desk", _Desk)
    await desk.close()


class _Desk:
    """Knows how many requests of this process wait for each job; for the event loop's thread only."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._waiting: Counter[str] = Counter()
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._partings: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    async def close(self) -> None:
        """Part at once from those who are being parted from."""
        self._closing.set()
        await asyncio.gather(*self._partings, return_exceptions=True)

    async def join(self, submission: Submission) -> Attendance:
        key = (submission.owner, submission.fingerprint)
        async with self._lock(key):  # two of the same at once are to become one job
            job = await run_in_threadpool(self._attached, submission, key)
            if job is None:
                job, _ = await submit(self._service, submission)
            self._waiting[job.id] += 1
            return Attendance(self, job, key)

    def leave(self, job_id: str, key: tuple[str, str], *, hung_up: bool) -> None:
        self._waiting[job_id] -= 1
        if self._waiting[job_id]:
            return
        del self._waiting[job_id]
        if hung_up:
            parting = asyncio.ensure_future(self._part(job_id, key))
            self._partings.add(parting)  # the loop itself would let it be collected
            parting.add_done_callback(self._partings.discard)

    async def _part(self, job_id: str, key: tuple[str, str]) -> None:
        """Cancel a job after the grace, unless somebody waits for it again."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), GRACE_SECONDS)
        async with self._lock(key):
            if job_id in self._waiting:
                return
            try:
                await run_in_threadpool(partial(self._service.cancel, job_id, stage=UNATTENDED))
            except (TaskStateError, TaskUnknownError):  # it came to its end in the grace
                return
            except DatabaseError as error:
                _log.warning("the task %s, which nobody waits for, cannot be cancelled: %s", job_id, error)
                return
        _log.info("cancelled: the client hung up", extra={"task": job_id})

    def _lock(self, key: tuple[str, str]) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    def _attached(self, submission: Submission, key: tuple[str, str]) -> Job | None:
        """The job that the same request made before, running again if it was cancelled; in a thread."""
        service = self._service
        job = service.store.same_request(*key)
        if job is not None and job.state == "cancelled":
            if time.time() - (job.finished_at or 0.0) > REVIVAL_SECONDS:
                return None
            try:
                job = service.store.retry(job.id)
            except (TaskStateError, TaskUnknownError):  # another process was faster
                job = service.store.same_request(*key)
            else:
                service.watcher.changed(job.id)
                service.wake()
        if job is None or job.at_rest:
            return None
        if submission.recording.incoming is not None:
            submission.recording.incoming.abort()
        _log.info("the same request is under way already", extra={"task": job.id})
        return job


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
