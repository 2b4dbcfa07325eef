"""`/api/v1/transcribe` and `/api/v1/tasks`: recordings in, transcripts out."""

from __future__ import annotations

import logging
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from stenograf import formats
from stenograf.api import limits, parameters
from stenograf.api.auth import Principal, require
from stenograf.api.disposition import content_disposition
from stenograf.api.errors import described, problems, public
from stenograf.api.file_threads import with_files
from stenograf.api.intake import Submission, check, idempotency_key, in_flight, receiving, request_id, submit
from stenograf.api.ranges import media_type_of, stored_file
from stenograf.api.schemas import TASKS, Task, TaskAccepted, TaskList, TranscriptOut
from stenograf.api.service import Served
from stenograf.errors import FileMissingError, StorageError, TaskStateError
from stenograf.jobs.job import Job, State
from stenograf.transcript import Transcript

PAGE = 50
"""Tasks on a page, where the caller does not say."""

MAX_PAGE = 200

MAX_RETRY_AFTER = 30
"""Seconds: nobody is asked to wait longer before looking again, whatever the estimate is."""

RECORDINGS = ("audio/*", "video/*", "application/octet-stream")
"""Media types that a recording is sent out as."""

FILES: dict[str, dict[str, Any]] = {item.media_type.split(";")[0]: {} for item in formats.FORMATS.values()}
"""Media types that a transcript is sent out as, for OpenAPI."""
FILES["application/json"] = {"schema": {"$ref": "#/components/schemas/TranscriptOut"}}

router = APIRouter(prefix="/api/v1", tags=["tasks"])

_log = logging.getLogger(__name__)

Sender = Annotated[Principal, Depends(require("transcribe"))]
Reader = Annotated[Principal, Depends(require("read"))]

UPLOADS = [Depends(limits.uploads)]
REQUESTS = [Depends(limits.requests)]


def _body() -> dict[str, Any]:
    """The body of `/transcribe` for OpenAPI: it is read as it streams in, so FastAPI does not see it."""
    options = parameters.schema()
    file = {"type": "string", "format": "binary", "description": "The recording: any audio or video file."}
    url = {"type": "string", "format": "uri", "description": "Where the service fetches the recording."}
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "maxLength": 255},
        "description": "The same key with the same file and options gives the same task, for a day.",
    }
    content = {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": file, **options},
                "additionalProperties": False,
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["url"],
                "properties": {"url": url, **options},
                "additionalProperties": False,
            },
            "example": {"url": "https://example.com/meeting.ogg", "language": "ru"},
        },
    }
    return {"parameters": [key], "requestBody": {"required": True, "content": content}}


@router.post(
    "/transcribe",
    status_code=202,
    response_model=TaskAccepted,
    summary="Send a recording to be transcribed",
    dependencies=UPLOADS,
    openapi_extra=_body(),
    responses=problems(
        "option_invalid", "language_unknown", "model_unknown", "model_not_installed", "address_refused", "file_empty",
        "idempotency_conflict", "request_in_flight", "queue_full", "service_stopping", "upload_too_large",
        "unsupported_media_type", "bad_request", "request_timeout", "disk_full",
    ),
)  # fmt: skip
async def transcribe(request: Request, service: Served, principal: Sender) -> Response:
    """Takes a form with the recording in `file`, or JSON with its address in `url`, and the options beside it."""
    for name in request.query_params:
        raise parameters.invalid(name, f"The option {name[:40]!r} stands in the address.", "Send it in the body.")
    key = idempotency_key(request)
    with in_flight(service, principal.owner, key):
        async with receiving(request, service, by_url=True) as received:
            checked = await check(service, parameters.read(received.fields))
            submission = Submission(
                principal.owner,
                received.recording,
                checked,
                idempotency_key=key,
                request_id=request_id(request),
            )
            job, is_new = await submit(service, submission)
    outlook = await run_in_threadpool(service.outlook, job)
    headers = {
        "Location": f"{TASKS}/{job.id}",
        "Retry-After": str(min(max(1, round(outlook.seconds)), MAX_RETRY_AFTER)),
    }
    if not is_new:
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse(TaskAccepted.of(job, outlook).model_dump(mode="json"), 202, headers)


@router.get(
    "/tasks",
    response_model=TaskList,
    summary="List your tasks, newest first",
    dependencies=REQUESTS,
    responses=problems("option_invalid"),
)
def tasks(
    service: Served,
    principal: Reader,
    status: Annotated[list[State], Query(description="Only those; may be repeated.")] = [],  # noqa: B006
    q: Annotated[
        str | None,
        Query(
            max_length=200,
            pattern=r"^[^\x00-\x1f]*$",
            description="Text in the name or the transcript, in any case of letters.",
        ),
    ] = None,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
) -> TaskList:
    """The tasks of the key's owner."""
    page = service.store.page(principal.view, states=status, text=q, cursor=cursor, limit=limit)
    return TaskList(items=[Task.of(job) for job in page.items], next=page.next)


@router.get(
    "/tasks/{task_id}",
    response_model=Task,
    summary="Look at a task",
    dependencies=REQUESTS,
    responses=problems("task_unknown"),
)
def task(task_id: str, service: Served, principal: Reader) -> Task:
    """How far it is, what it is read with, and its error if it has one."""
    return _shown(service, service.store.get(task_id, principal.view))


@router.delete(
    "/tasks/{task_id}",
    status_code=204,
    summary="Remove a task with its files",
    dependencies=REQUESTS,
    responses=problems("task_unknown"),
)
@with_files
def remove(task_id: str, service: Served, principal: Sender) -> None:
    """Whatever its state: a task that is worked on is stopped."""
    job = service.store.remove(task_id, principal.view)
    service.watcher.changed(job.id)
    try:
        service.files.remove(job.file)
    except StorageError as error:  # the task is gone, and its file names nobody: the sweep finds it
        _log.warning("the recording of the task %s is removed later: %s", job.id, error)


@router.post(
    "/tasks/{task_id}/cancel",
    response_model=Task,
    summary="Cancel a task",
    dependencies=REQUESTS,
    responses=problems("task_unknown", "task_state"),
)
def cancel(task_id: str, service: Served, principal: Sender) -> Task:
    """What was read so far is kept: a retry goes on from there. Cancelling again changes nothing."""
    job = service.cancel(task_id, principal.view)
    return _shown(service, job)


@router.post(
    "/tasks/{task_id}/retry",
    status_code=202,
    response_model=Task,
    summary="Try a failed or cancelled task again",
    dependencies=REQUESTS,
    responses=problems("task_unknown", "task_state"),
)
def retry(task_id: str, service: Served, principal: Sender) -> Task:
    """It goes on after the last part that was read."""
    job = service.store.retry(task_id, principal.view)
    service.watcher.changed(job.id)
    service.wake()
    return _shown(service, job)


@router.get(
    "/tasks/{task_id}/result",
    summary="The transcript as JSON",
    dependencies=REQUESTS,
    responses={200: {"model": TranscriptOut}, **problems("task_unknown", "task_state")},
)
def result(task_id: str, service: Served, principal: Reader) -> JSONResponse:
    """409 while the task is not done."""
    return JSONResponse(_transcript(service, service.store.get(task_id, principal.view)))


@router.get(
    "/tasks/{task_id}/download",
    summary="The transcript as a file",
    dependencies=REQUESTS,
    response_class=Response,
    responses={
        200: {"content": FILES},
        **problems("task_unknown", "task_state", "format_unknown"),
    },
)
def download(
    task_id: str,
    service: Served,
    principal: Reader,
    format: Annotated[str, Query(json_schema_extra={"enum": list(formats.FORMATS)})] = "txt",  # noqa: A002
) -> Response:
    """Named as the recording, with the suffix of the format."""
    kind = formats.FORMATS[formats.check(format)]
    job = service.store.get(task_id, principal.view)
    content = formats.render(Transcript.from_dict(_transcript(service, job)), kind.name)
    name = PurePath(job.filename).stem + kind.suffix
    return Response(
        content, headers={"Content-Disposition": content_disposition(name, stem=task_id)}, media_type=kind.media_type
    )


@router.head("/tasks/{task_id}/audio", include_in_schema=False, dependencies=REQUESTS)
@router.get(
    "/tasks/{task_id}/audio",
    summary="The recording",
    dependencies=REQUESTS,
    response_class=Response,
    responses={
        200: {
            "description": "All of it.",
            "content": {kind: {} for kind in RECORDINGS},
        },
        206: {"description": "The bytes that the header Range asked for."},
        307: described("It is to be had at Location for a while, where the service keeps it in an object store."),
        416: described("It does not have these bytes."),
        **problems("task_unknown", "file_missing", "storage_unavailable"),
    },
)
@with_files
def audio(request: Request, task_id: str, service: Served, principal: Reader) -> Response:
    """Takes Range and If-Range, so that a player can jump."""
    job = service.store.get(task_id, principal.view)
    shown = content_disposition(job.filename, inline=True, stem=task_id)
    kind, seconds = media_type_of(job.filename), service.settings.download_links
    try:
        if not job.file:
            raise FileMissingError("It is not here yet.")
        if seconds and request.method == "GET":  # an address that is good for GET is no good for HEAD
            service.files.look(job.file)
            if link := service.files.link(job.file, shown, kind, seconds):
                return Response(status_code=307, headers={"Location": link, "Cache-Control": "no-store"})
        headers = {
            "Content-Disposition": shown,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, no-cache",
        }
        return stored_file(request, service.files, job.file, headers=headers, media_type=kind)
    except FileMissingError:
        raise FileMissingError(f"The recording of the task {job.id} is not here.", "Its transcript may be.") from None


def _shown(service: Served, job: Job) -> Task:
    return Task.of(job, None if job.at_rest else service.outlook(job))


def _transcript(service: Served, job: Job) -> dict[str, Any]:
    if job.state == "done":
        return service.store.transcript(job.id)
    hints: dict[State, str] = {
        "error": f"It ended with: {public(job.error).message}" if job.error else "Retry it.",
        "cancelled": "Retry it to have it read after all.",
    }
    raise TaskStateError(
        f"The task {job.id} is {job.state} and has no result.",
        hints.get(job.state, f"Ask {TASKS}/{job.id} until it is done, or listen to its events."),
    )
