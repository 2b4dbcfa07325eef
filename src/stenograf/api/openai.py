"""`/v1`: OpenAI's audio API, so that its clients work as they are.

What the fields mean is told in `openai_fields.py`, what comes back in `openai_shapes.py`; errors have OpenAI's shape by
`errors.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from stenograf.api import limits
from stenograf.api.auth import Principal, require
from stenograf.api.intake import Submission, check, receiving, request_id
from stenograf.api.openai_fields import FORMATS, MODELS, Asked, is_alias, read
from stenograf.api.openai_shapes import (
    OpenAIErrorAnswer,
    OpenAIModel,
    OpenAIModelList,
    Transcription,
    VerboseTranscription,
    answer,
)
from stenograf.api.openai_stream import stream
from stenograf.api.parameters import invalid, schema
from stenograf.api.service import Served, Service
from stenograf.api.sync import awaited
from stenograf.errors import OptionInvalidError, StenografError
from stenograf.jobs.job import Job
from stenograf.options import Task
from stenograf.transcript import Transcript

OWNER = "stenograf"
"""Of the models that go by OpenAI's names."""

STREAM = 'data: {"type": "transcript.text.delta", "delta": "Добрый день!"}\n\n'
"""A line of a stream, for the description."""

router = APIRouter(prefix="/v1", tags=["openai"])

Sender = Annotated[Principal, Depends(require("transcribe"))]

UPLOADS = [Depends(limits.uploads)]
READS = [Depends(require("read")), Depends(limits.requests)]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": OpenAIErrorAnswer} for status in (401, 403, 429, 500, *statuses)}


def _described(*, translation: bool) -> dict[str, Any]:
    """The form for OpenAPI: it is read as it streams in, so FastAPI does not see it."""
    options = schema()
    listed = {"type": "array", "items": {"type": "string"}}
    fields = {
        "file": {"type": "string", "format": "binary", "description": "The recording: any audio or video file."},
        "model": {"type": "string", "description": "OpenAI's names stand for the default model.", "example": MODELS[0]},
        "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
        **{name: options[name] for name in ("prompt", "temperature", "hotwords", "beam_size", "trim", "retention")},
        "vad_filter": options["vad"],
        "timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": ["segment", "word"]}},
        "stream": {"type": "boolean", "default": False, "description": "Send the text as server-sent events."},
    }
    if not translation:
        fields |= {"language": options["language"], "languages[]": listed, "keywords[]": listed}
    form = {"type": "object", "required": ["file"], "properties": fields}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Transcription | VerboseTranscription,
        "content": {"text/plain": {"schema": {"type": "string"}}, "text/event-stream": {"example": STREAM}},
    },
    **_errors(400, 404, 408, 409, 413, 415, 503, 507),
}


@router.post(
    "/audio/transcriptions",
    summary="Transcribe a recording, and wait for it",
    response_class=Response,
    dependencies=UPLOADS,
    openapi_extra=_described(translation=False),
    responses=_ANSWERS,
)
async def transcriptions(request: Request, service: Served, principal: Sender) -> Response:
    """As OpenAI's; the fields `hotwords`, `vad_filter`, `beam_size`, `trim` and `retention` are ours."""
    return await _answered(request, service, principal, "transcribe")


@router.post(
    "/audio/translations",
    summary="Translate a recording into English, and wait for it",
    response_class=Response,
    dependencies=UPLOADS,
    openapi_extra=_described(translation=True),
    responses=_ANSWERS,
)
async def translations(request: Request, service: Served, principal: Sender) -> Response:
    """As OpenAI's; 400 for a model that cannot translate."""
    return await _answered(request, service, principal, "translate")


@router.get("/models", summary="List the models", dependencies=READS, responses=_errors())
def models(service: Served) -> OpenAIModelList:
    """Those that are on this server, and OpenAI's names for the default one."""
    here = {item.name: OpenAIModel(id=item.name, created=_created(item.path), owned_by=item.engine or OWNER)
            for item in service.models.installed() if not item.problem}  # fmt: skip
    aliases = {name: _alias(service, name) for name in MODELS}
    return OpenAIModelList(data=list((here | aliases).values()))


@router.get("/models/{model:path}", summary="Look at a model", dependencies=READS, responses=_errors(404))
def model(model: str, service: Served) -> OpenAIModel:
    """404 for one that is not on this server."""
    if is_alias(model):
        return _alias(service, model)
    files = service.models.resolve(model, allow_path=False)
    return OpenAIModel(id=files.name, created=_created(files.path), owned_by=files.engine)


async def _answered(request: Request, service: Service, principal: Principal, task: Task) -> Response:
    async with receiving(request, service) as received:
        asked = read(received.fields, task)
        with _about_the_model(task):
            checked = await check(service, asked.parameters)
            submission = Submission(principal.owner, received.recording, checked, request_id=request_id(request))
            if asked.stream:
                return await stream(request, service, submission, asked)
            job = await awaited(request, service, submission)
    return await run_in_threadpool(_written, service, job, asked)


def _written(service: Service, job: Job, asked: Asked) -> Response:
    return answer(Transcript.from_dict(service.store.transcript(job.id)), asked)


@contextmanager
def _about_the_model(task: Task) -> Iterator[None]:
    """Who wants a translation has named no task: what does not suit is the model."""
    try:
        yield
    except OptionInvalidError as error:
        if task == "translate":
            raise invalid("model", error.message, error.hint) from error
        raise


def _alias(service: Service, name: str) -> OpenAIModel:
    created = 0
    with suppress(StenografError):  # it may have to be downloaded first
        created = _created(service.models.resolve(service.settings.default_model, allow_path=True).path)
    return OpenAIModel(id=name, created=created, owned_by=OWNER)


def _created(folder: Path) -> int:
    with suppress(OSError):
        return int(folder.stat().st_mtime)
    return 0
