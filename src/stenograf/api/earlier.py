"""The interface of earlier services, so that their clients keep working: `docs/api.md` has the table of it.

    POST /transcribe        waits, and answers with the text
    POST /transcribe/       answers with a task, to be asked for under /transcribe/ID, /status/ID or /result/ID

The two differ by a slash. What these clients send beside the four options that they know is passed over, as it was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from stenograf.api import limits, parameters
from stenograf.api.auth import Principal, require
from stenograf.api.errors import COMMON, STATUS, about_of, kinds, public
from stenograf.api.intake import NO_FILE, Checked, Recording, Submission, check, receiving, request_id, submit
from stenograf.api.parameters import Parameters
from stenograf.api.schemas import SPARSE, TaskId, TranscriptOut, Wire
from stenograf.api.service import Served, Service
from stenograf.api.sync import awaited
from stenograf.errors import BadRequestError
from stenograf.jobs.job import State

OPTIONS = ("model", "trim", "language", "task")
"""What a client may say of its recording, in the query or in the form."""


class Text(Wire):
    """What was said."""

    text: str = Field(examples=["Добрый день, коллеги!"])
    language: str | None = Field(examples=["ru"])
    duration: float = Field(description="Seconds of audio that were read.", examples=[12.5])


class Queued(Wire):
    """A task that was taken in."""

    task_id: TaskId
    status: Literal["queued"]
    message: Literal["Transcription is in progress"]


class Progress(Wire):
    """A task, with its result once it is there."""

    model_config = SPARSE

    task_id: TaskId
    status: State
    filename: str | None = Field(default=None, description="Once it is `done`.", examples=["Совещание 12 ноября.ogg"])
    transcription: str | None = Field(default=None, description="The text, once it is `done`.")
    result: TranscriptOut | None = Field(default=None, description="The transcript, once it is `done`.")
    error: str | None = Field(default=None, description="What went wrong, where the status is `error`.")


class Failure(Wire):
    """Why it did not work."""

    error: str = Field(examples=["No file provided"])


router = APIRouter(tags=["earlier"])

Sender = Annotated[Principal, Depends(require("transcribe"))]
Reader = Annotated[Principal, Depends(require("read"))]


def _failures(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint for its OpenAPI description."""
    about: dict[int | str, list[str]] = {}
    for code in sorted({*codes, *COMMON}):
        about.setdefault(STATUS[code], []).append(about_of(kinds()[code]))
    return {status: {"model": Failure, "description": " ".join(texts)} for status, texts in sorted(about.items())}


def _body() -> dict[str, Any]:
    """What both calls take, for OpenAPI: it is read as it streams in, so FastAPI does not see it."""
    options = {name: value for name, value in parameters.schema().items() if name in OPTIONS}
    file = {"type": "string", "format": "binary", "description": "The recording: any audio or video file."}
    schema = {"type": "object", "required": ["file"], "properties": {"file": file, **options}}
    query = [
        {"name": name, "in": "query", "description": value["description"], "schema": value}
        for name, value in options.items()
    ]
    return {
        "parameters": query,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}},
    }


SENDING = _failures(
    "bad_request", "option_invalid", "language_unknown", "model_unknown", "model_not_installed", "file_empty",
    "queue_full", "service_stopping", "upload_too_large", "unsupported_media_type", "request_timeout", "disk_full",
)  # fmt: skip


@router.post(
    "/transcribe/",
    summary="Send a recording, and ask for its text later",
    response_model=Queued,
    dependencies=[Depends(limits.uploads)],
    openapi_extra=_body(),
    responses=SENDING,
)
async def transcribe_later(request: Request, service: Served, principal: Sender) -> JSONResponse:
    """The options stand in the query or in the form."""
    async with _received(request, service) as (recording, checked):
        submission = Submission(principal.owner, recording, checked, request_id=request_id(request))
        job, _ = await submit(service, submission)
    return JSONResponse({"task_id": job.id, "status": "queued", "message": "Transcription is in progress"})


@router.post(
    "/transcribe",
    summary="Send a recording, and wait for its text",
    response_model=Text,
    dependencies=[Depends(limits.uploads)],
    openapi_extra=_body(),
    responses={**SENDING, **_failures("not_media", "cancelled")},
)
async def transcribe_now(request: Request, service: Served, principal: Sender) -> JSONResponse:
    """The options stand in the query or in the form; whoever hangs up cancels."""
    async with _received(request, service) as (recording, checked):
        submission = Submission(principal.owner, recording, checked, request_id=request_id(request))
        job = await awaited(request, service, submission)
    result = await run_in_threadpool(service.store.transcript, job.id)
    return JSONResponse({name: result[name] for name in Text.model_fields})


def progress(task_id: str, service: Served, principal: Reader) -> JSONResponse:
    """The status of a task; once it is done, its text."""
    job = service.store.get(task_id, principal.view)
    found: dict[str, Any] = {"task_id": job.id, "status": job.state}
    if job.state == "done":
        result = service.store.transcript(job.id)
        found |= {"filename": job.filename, "transcription": result["text"], "result": result}
    elif job.error is not None and job.state == "error":
        error = public(job.error)
        found["error"] = f"{error.message} {error.hint}".strip()
    return JSONResponse(found)


for _name in ("transcribe", "status", "result"):
    # Not counted by limits.py: these clients ask every second, and know no 429.
    router.add_api_route(
        f"/{_name}/{{task_id}}",
        progress,
        name=_name,
        summary="Ask for a task",
        response_model=Progress,
        responses=_failures("task_unknown"),
    )


def _options(sent: Iterable[tuple[str, str]]) -> Mapping[str, Any]:
    return parameters.read((name, value) for name, value in sent if name in OPTIONS).options


@asynccontextmanager
async def _received(request: Request, service: Service) -> AsyncIterator[tuple[Recording, Checked]]:
    """As `intake.receiving`, with the options checked, and with the words of old for a request without a file."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise BadRequestError("No file provided")
    try:
        async with receiving(request, service) as received:
            # The form's values win.
            asked = [_options(fields) for fields in (request.query_params.multi_items(), received.fields)]
            yield received.recording, await check(service, Parameters({**asked[0], **asked[1]}))
    except BadRequestError as error:
        raise BadRequestError("No file provided") if error.message == NO_FILE else error from None
