"""`stream=true` of OpenAI's audio API: the text as it is read, as server-sent events.

Its clients know two kinds of events and no others; an event without data makes them fail. So the signs of life between
events are comments.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stenograf.api.errors import respond
from stenograf.api.intake import Submission
from stenograf.api.openai_fields import Asked
from stenograf.api.openai_shapes import delta_event, done_event
from stenograf.api.service import Service
from stenograf.api.sync import finished, join, revived, unless_gone
from stenograf.jobs.job import FINAL, Job
from stenograf.transcript import Transcript

HEAD_SECONDS = 10.0
"""The answer begins with the first text, and after so long without any: an error until then has a status of its own.
A proxy that waits for an answer waits longer, nginx for 60 s."""

PING_SECONDS = 15.0
"""A comment goes out after so long without an event, so that nothing in between takes the connection for dead."""

_PING = b": ping\n\n"
_END = b"data: [DONE]\n\n"


async def stream(request: Request, service: Service, submission: Submission, asked: Asked) -> Response:
    """The answer to a request that asks for a stream. Raises as `sync.awaited` while it has not begun."""
    with ExitStack() as stack:
        attendance = stack.enter_context(await join(request, service, submission))
        events = _events(request, service, attendance.job, asked)
        first = await unless_gone(request, _next(events))
        return _Stream(request, first, events, stack.pop_all())


class _Stream(Response):
    """Sends events until there are no more or the client hangs up; then it leaves the job."""

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, first: bytes, events: AsyncGenerator[bytes, None], attendance: ExitStack
    ) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})  # nginx would hold events back
        del self.headers["content-length"]
        self._request = request
        self._first = first
        self._events = events
        self._attendance = attendance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._attendance:
                await unless_gone(self._request, self._send(send))
        except ClientDisconnect:
            return  # nobody reads what comes now

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            try:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:  # whatever it is: the status is sent already
                told = json.loads(bytes(respond(self._request, error).body))
                await send({"type": "http.response.body", "body": _line(told), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _next(events: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(events)


async def _events(request: Request, service: Service, job: Job, asked: Asked) -> AsyncGenerator[bytes, None]:
    """The events of a job; raises what it ends with."""
    clock = asyncio.get_running_loop().time
    quiet_since, patience = clock(), HEAD_SECONDS
    sent, last = "", -1
    signs = await service.watcher.wait(job.id)
    while not job.at_rest:
        if signs is None or signs.state in FINAL:
            job = await run_in_threadpool(service.store.get, job.id)  # it may have been retried since
            job = await revived(service, job)
        elif signs.chunks > last + 1:
            text, last = await run_in_threadpool(_read_since, service, job, last)
            if text:
                delta = f" {text}" if sent else text
                sent += delta
                yield _line(delta_event(delta))
                quiet_since, patience = clock(), PING_SECONDS
        if clock() - quiet_since >= patience:
            yield _PING
            quiet_since, patience = clock(), PING_SECONDS
        if not job.at_rest:
            signs = await service.watcher.wait(job.id, signs, timeout=max(0.0, quiet_since + patience - clock()))
    finished(request, job)
    transcript = Transcript.from_dict(await run_in_threadpool(service.store.transcript, job.id))
    # Chunks are kept as they are read, so what was sent is always the beginning of the whole.
    rest = transcript.text.removeprefix(sent)
    if rest:
        yield _line(delta_event(rest))
    yield _line(done_event(transcript, asked))
    yield _END


def _read_since(service: Service, job: Job, last: int) -> tuple[str, int]:
    """The text of the chunks after the one with the index `last`, and the index of the last one now."""
    texts = []
    for _, index, chunk in service.store.chunks(job.id, last):
        if index != last + 1:
            break  # a hole cannot be; if there were one, the end would fill it
        last = index
        texts += [segment["text"] for segment in chunk["segments"] if segment["text"]]
    return " ".join(texts), last


def _line(event: dict[str, Any]) -> bytes:
    # In ASCII, as some clients take other marks than the line feed for the end of a line too.
    return f"data: {json.dumps(event)}\n\n".encode("ascii")
