"""What happens to a task, as it happens: `/api/v1/tasks/{id}/events` (server-sent events) and `.../ws` (a WebSocket).

| event | data | when |
|---|---|---|
| `progress` | status, stage, progress, attempt, position, estimated_seconds, ... | something of it changed |
| `segment` | a segment of the transcript, as in the result | it was read |
| `done` | status, language, duration, links | last |
| `error` | code, message, hint | last, also where the task was removed |
| `cancelled` | status, links | last |

The id of a segment's event is `attempt.index`: the attempt that read it, and its place in the transcript, which is the
`id` in its data too. Segments do not change once they are read. So whoever comes back with the id of the last one that
it saw, in the header Last-Event-ID or in `last_event_id`, gets all later ones, and none twice. Events without an id say
how things are now: the latest of them is sent again.

A stream that ends without one of the last three events was broken off, such as by a restart of the service: come back.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, WebSocket
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.websockets import WebSocketDisconnect, WebSocketState

from stenograf.api import limits
from stenograf.api.auth import Principal, principal, require
from stenograf.api.errors import problems, public, respond
from stenograf.api.schemas import Task, links_of
from stenograf.api.service import Served, Service
from stenograf.errors import DatabaseError, ForbiddenError, ServiceStoppingError, StenografError, TaskUnknownError
from stenograf.jobs.job import Job, JobError
from stenograf.transcript import TIME_DIGITS, Segment

PING_SECONDS = 15.0
"""A comment goes out after so long without an event, so that nothing in between takes the connection for dead."""

RETRY_MILLISECONDS = 2000
"""After so long a browser comes back when a stream was broken off."""

SERVICE_RESTART, TRY_AGAIN_LATER = 1012, 1013
"""Close codes of a WebSocket, by IANA's registry."""

_PROGRESS = {"status", "stage", "progress", "attempt", "position", "estimated_seconds", "model", "device", "language",
             "audio_seconds"}  # fmt: skip
"""What `progress` tells of a `Task`."""

EXAMPLE = 'event: segment\nid: 1.0\ndata: {"id": 0, "start": 0.0, "end": 2.4, "text": "Добрый день!"}\n\n'

_ID = re.compile(r"[0-9]{1,9}\.([0-9]{1,9})")

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"])


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    name: str
    data: dict[str, Any]
    id: str | None = None

    def line(self) -> bytes:
        """As a server-sent event."""
        head = f"event: {self.name}\n" + (f"id: {self.id}\n" if self.id else "")
        return f"{head}data: {json.dumps(self.data, ensure_ascii=False)}\n\n".encode()

    def message(self) -> str:
        """As a message of a WebSocket."""
        return json.dumps({"event": self.name, "id": self.id, "data": self.data}, ensure_ascii=False)


@router.get(
    "/{task_id}/events",
    summary="Listen to a task",
    dependencies=[Depends(limits.requests)],
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "`progress`, `segment`, and at the end `done`, `error` or `cancelled`. A segment has the id "
            "`attempt.index`; with the last one that was seen, the stream goes on after it.",
            "content": {"text/event-stream": {"example": EXAMPLE}},
        },
        **problems("task_unknown"),
    },
)
async def events(
    task_id: str,
    service: Served,
    who: Annotated[Principal, Depends(require("read"))],
    last_event_id: Annotated[str | None, Header(description="The id of the last segment that was seen.")] = None,
    after: Annotated[
        str | None, Query(alias="last_event_id", description="The same, for clients that can set no headers.")
    ] = None,
) -> StreamingResponse:
    """Server-sent events. Browsers, which can set no headers here, send a token as `access_token`."""
    job = await run_in_threadpool(service.store.get, task_id, who.view)
    return StreamingResponse(
        _lines(service, job, last_event_id or after),  # a browser that comes back sets the header
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # nginx would hold events back
    )


@router.websocket("/{task_id}/ws")
async def socket(websocket: WebSocket, task_id: str, service: Served) -> None:
    """The same events as messages `{event, id, data}`; the last one is followed by a close.

    Who may not listen gets the problem as the answer to the handshake.
    """
    try:
        job = await run_in_threadpool(_wanted, websocket, service, task_id)
    except StenografError as error:
        handshake = Request({**websocket.scope, "type": "http", "method": "GET"})
        await websocket.send_denial_response(respond(handshake, error))
        return
    await websocket.accept()
    seen = websocket.headers.get("last-event-id") or websocket.query_params.get("last_event_id")
    sending = asyncio.create_task(_send(websocket, service, job, seen))
    hearing = asyncio.create_task(_until_gone(websocket))
    try:
        await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, hearing):
            task.cancel()
        await asyncio.gather(sending, hearing, return_exceptions=True)
    if not sending.cancelled():
        sending.result()  # raises what went wrong, for the log


def _wanted(websocket: WebSocket, service: Service, task_id: str) -> Job:
    """The task, if whoever asks may see it."""
    who = principal(websocket)
    if not who.may("read"):
        raise ForbiddenError("This key may not do that: it lacks the scope read.", "Use a key that has it.")
    limits.limits_of(websocket.app).take(websocket, "requests", who)
    return service.store.get(task_id, who.view)


async def _lines(service: Service, job: Job, seen: str | None) -> AsyncGenerator[bytes, None]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
    with suppress(ServiceStoppingError, DatabaseError):  # the stream is broken off, and the client comes back
        async with aclosing(follow(service, job, seen)) as happening:
            async for event in happening:
                yield event.line() if event else b": ping\n\n"


async def _send(websocket: WebSocket, service: Service, job: Job, seen: str | None) -> None:
    code = 1000
    with suppress(WebSocketDisconnect):
        try:
            async with aclosing(follow(service, job, seen)) as happening:
                async for event in happening:
                    if event:  # the server itself sends pings
                        await websocket.send_text(event.message())
        except ServiceStoppingError:
            code = SERVICE_RESTART
        except DatabaseError:
            code = TRY_AGAIN_LATER
        await websocket.close(code)


async def _until_gone(websocket: WebSocket) -> None:
    """Pass over what the client says, until it is gone."""
    while websocket.client_state is WebSocketState.CONNECTED:
        await websocket.receive()


async def follow(service: Service, job: Job, seen: str | None = None) -> AsyncGenerator[Event | None, None]:
    """The events of a job up to its end; None after `PING_SECONDS` without one.

    `seen` is the id of the last segment that the client has. Raises `ServiceStoppingError`, and `DatabaseError` where
    the database has failed for a while.
    """
    reader = _Reader(service, job.id, seen)
    told: dict[str, Any] = {}
    signs = await service.watcher.wait(job.id)
    while signs is not None:
        try:
            job, progress, segments = await run_in_threadpool(reader.look)
        except TaskUnknownError:
            break
        for segment in segments:
            yield segment
        if job.at_rest:
            yield _last(job)
            return
        if progress != told:
            yield Event("progress", progress)
            told = progress
        while (now := await service.watcher.wait(job.id, signs, timeout=PING_SECONDS)) == signs:
            yield None
            if job.state == "queued":
                break  # its place in the queue changes without a sign
        signs = now
    gone = TaskUnknownError(f"The task {job.id} was removed.", "Send the recording again if it is still wanted.")
    yield Event("error", {"code": gone.code, "message": gone.message, "hint": gone.hint})


class _Reader:
    """Reads what is new of a job; in threads, one at a time."""

    def __init__(self, service: Service, job_id: str, seen: str | None) -> None:
        match = _ID.fullmatch(seen or "")
        self._service = service
        self._id = job_id
        self._seen = int(match[1]) if match else -1
        self._chunk = -1
        self._count = 0

    def look(self) -> tuple[Job, dict[str, Any], list[Event]]:
        """The job as it is now, the data of its `progress`, and the segments that are new."""
        store = self._service.store
        job = store.get(self._id)  # before its segments: once it is done, they are all there
        is_first = self._count == 0
        found = list(self._segments(job))
        if is_first and self._seen >= self._count:
            self._seen = -1  # no such segment was ever sent: the id is of another task
        new = [event for number, event in found if number > self._seen]
        task = Task.of(job, None if job.at_rest else self._service.outlook(job))
        return job, task.model_dump(mode="json", include=_PROGRESS), new

    def _segments(self, job: Job) -> Iterator[tuple[int, Event]]:
        asked = job.options.get("word_timestamps")
        for attempt, index, chunk in self._service.store.chunks(job.id, self._chunk):
            if index != self._chunk + 1 and not job.at_rest:
                return  # the one before it comes first: the numbers are the places in the transcript
            self._chunk = index
            for item in chunk["segments"]:
                number = self._count
                self._count += 1
                data = Segment.from_dict(item).to_dict(number)
                if not asked:
                    data.pop("words", None)
                yield number, Event("segment", data, f"{attempt}.{number}")


def _last(job: Job) -> Event:
    links = links_of(job).model_dump()
    if job.state == "done":
        duration = round(job.audio_seconds or 0.0, TIME_DIGITS)
        told = {"status": "done", "language": job.language, "duration": duration, "links": links}
        return Event("done", told)
    if job.state == "cancelled":
        return Event("cancelled", {"status": "cancelled", "links": links})
    error = job.error or JobError("internal", "It failed, and nobody wrote down why.")
    return Event("error", public(error).to_dict())
