"""`/api/v1/uploads`: recordings in pieces, by tus 1.0 (https://tus.io), for large files and bad connections.

    POST   /api/v1/uploads         Upload-Length, and in Upload-Metadata the name and the options: 201, Location
    PATCH  /api/v1/uploads/{id}    bytes from Upload-Offset on: 204, Upload-Offset
    HEAD   /api/v1/uploads/{id}    how much is here: where to go on
    DELETE /api/v1/uploads/{id}    give it up

With the last byte the recording becomes a task by itself, whose id is that of the upload; `Stenograf-Task-Id` and
`Content-Location` tell so from then on. All that could be wrong with the options is said at the POST.

What is here counts, wherever the connection broke. Of two that write to the same upload the later one goes on, as the
first is most likely what is left of a connection that its client has given up. ADR 7 tells why this is our own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response

from stenograf.api import limits, parameters, tus
from stenograf.api.auth import Principal, require
from stenograf.api.connection import add_header, kept
from stenograf.api.errors import described, problems
from stenograf.api.file_threads import run_with_files, with_files
from stenograf.api.forms import BATCH_BYTES, safe_name
from stenograf.api.intake import Recording, check, check_suffix, lane_of, need_of, request_id
from stenograf.api.schemas import TASKS, Wire, moment
from stenograf.api.service import Served, Service
from stenograf.api.turns import Turn, Turns
from stenograf.errors import RequestTimeoutError, TaskStateError, UnsupportedMediaTypeError
from stenograf.jobs.files import Piece
from stenograf.jobs.job import NewJob
from stenograf.jobs.uploads import Upload, Uploads

DESCRIBING = ("filename", "name", "filetype", "type", "relativePath")
"""What clients write into Upload-Metadata of themselves, beside our options."""

PATH = "/api/v1/uploads"


class UploadOut(Wire):
    """An upload in pieces, and how much of it is here."""

    upload_id: str = Field(description="The id of the task too, once there is one.")
    filename: str
    size: int = Field(description="Bytes that it will have.")
    offset: int = Field(description="Bytes that are here.")
    expires_at: datetime = Field(description="It is removed then, unless another piece comes or it is whole.")
    task_id: str | None = Field(description="The task that it became.")
    task: str | None = Field(description="Where that is.", examples=[f"{TASKS}/0199f2ab-7c31-7d54-9a5e-3c1f0d2b4e6a"])


router = APIRouter(prefix=PATH, tags=["uploads"], dependencies=[Depends(tus.version)])

Sender = Annotated[Principal, Depends(require("transcribe"))]
UPLOADS = [Depends(limits.uploads)]
REQUESTS = [Depends(limits.requests)]
# HEAD and PATCH are not counted: a recording in pieces of some MB is hundreds of them, and who is refused in the middle
# gives up. The size of the upload bounds them.


def store_of(app: Any) -> Uploads:
    """The `Uploads` of an application."""
    found: Uploads = app.state.service.runtime.uploads
    return found


def _turns(connection: HTTPConnection) -> Turns:
    return kept(connection.app, "turns", lambda _: Turns())


def _store(connection: HTTPConnection) -> Uploads:
    return store_of(connection.app)


Store = Annotated[Uploads, Depends(_store)]
Order = Annotated[Turns, Depends(_turns)]


def _header(name: str, about: str, *, required: bool = False, example: str = "") -> dict[str, Any]:
    schema = {"type": "string", "examples": [example]} if example else {"type": "string"}
    return {"name": name, "in": "header", "required": required, "description": about, "schema": schema}


_RESUMABLE = _header("Tus-Resumable", "The version of the protocol.", required=True)
_RESUMABLE["schema"]["const"] = tus.VERSION
_OTHER_VERSION: dict[int | str, dict[str, Any]] = {412: described("Another version of the protocol.")}
_CHECKSUM = _header(
    "Upload-Checksum",
    f"{' or '.join(tus.ALGORITHMS)}, a space, and base64 of the checksum of this body; 460 if it differs.",
)
_BODY = {"content": {tus.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}


@router.options("/{upload_id}", include_in_schema=False)
@router.options("/", include_in_schema=False)
@router.options("", status_code=204, summary="What this tus server can do")
def options(service: Served) -> Response:
    """Asks for no key."""
    told = {
        "Tus-Version": tus.VERSION,
        "Tus-Extension": tus.EXTENSIONS,
        "Tus-Max-Size": str(service.files.max_bytes),
        "Tus-Checksum-Algorithm": ",".join(tus.ALGORITHMS),
    }
    return Response(status_code=204, headers=told)


@router.post("/", include_in_schema=False, status_code=201, dependencies=UPLOADS)
@router.post(
    "",
    status_code=201,
    summary="Begin an upload in pieces",
    dependencies=UPLOADS,
    response_class=Response,
    openapi_extra={
        "parameters": [
            _RESUMABLE,
            _header("Upload-Length", "Bytes of the whole recording.", required=True, example="1048576"),
            _header(
                "Upload-Metadata",
                f"`filename` and any of {', '.join(parameters.PARAMETERS)}: each a name, a space, and the value in "
                "base64, separated by commas.",
                example="filename bWVldGluZy5vZ2c=,language cnU=",
            ),
            _CHECKSUM,
        ],
        "requestBody": _BODY,
    },
    responses={
        201: {"description": "The header Location tells where to send the pieces."},
        **_OTHER_VERSION,
        **problems(
            "option_invalid", "language_unknown", "model_unknown", "model_not_installed", "address_refused",
            "file_empty", "upload_too_large", "unsupported_media_type", "bad_request", "request_timeout", "disk_full",
        ),
    },
)  # fmt: skip
async def create(request: Request, service: Served, principal: Sender, store: Store, order: Order) -> Response:
    """The options are those of `/api/v1/transcribe`; all of them are checked now. A body is the first piece."""
    size = tus.length(request, service.files.max_bytes)
    sent = tus.metadata(request.headers.get("upload-metadata", ""))
    filename = safe_name(sent.get("filename") or sent.get("name") or "")
    check_suffix(service, filename)
    options = [(name, value) for name, value in sent.items() if name not in DESCRIBING]
    checked = await check(service, parameters.read(options))
    given = checked.parameters
    new = NewJob(
        owner=principal.owner,
        options=given.options,
        filename=filename,
        size=size,
        lane=lane_of(service, Recording(filename, size=size), given.options),
        need=need_of(service, checked.model),
        priority=given.priority,
        retention=given.retention,
        webhook_url=given.webhook_url,
        webhook_secret=given.webhook_secret,
        request_id=request_id(request),
    )
    upload = await run_in_threadpool(store.create, new, tus.without_secret(request.headers.get("upload-metadata", "")))
    headers = {"Location": f"{PATH}/{upload.id}"}
    if tus.is_piece(request):
        return await _receive(request, service, store, order, upload, 0, 201, headers)
    return Response(status_code=201, headers=headers | tus.state(upload, 0) | {"Upload-Offset": "0"})


@router.patch(
    "/{upload_id}",
    status_code=204,
    summary="Send a piece",
    response_class=Response,
    openapi_extra={
        "parameters": [
            _RESUMABLE,
            _header("Upload-Offset", "Where the piece begins: what HEAD tells.", required=True, example="0"),
            _CHECKSUM,
        ],
        "requestBody": _BODY,
    },
    responses={
        204: {"description": "Upload-Offset tells how much is here now; after the last piece Stenograf-Task-Id "
                             "and Content-Location name the task."},
        **_OTHER_VERSION,
        tus.CHECKSUM_MISMATCH: {"description": "The checksum differs; nothing of the piece is kept."},
        **problems(
            "task_unknown", "task_state", "request_in_flight", "upload_too_large", "unsupported_media_type",
            "bad_request", "request_timeout", "disk_full", "queue_full",
        ),
    },
)  # fmt: skip
async def patch(
    upload_id: str, request: Request, service: Served, principal: Sender, store: Store, order: Order
) -> Response:
    """Pieces may have any size. What came of a piece is kept if the connection breaks."""
    if not tus.is_piece(request):
        raise UnsupportedMediaTypeError("This is no piece of an upload.", f"Send it as {tus.MEDIA_TYPE}.")
    upload = await run_in_threadpool(store.get, upload_id, principal.view)
    return await _receive(request, service, store, order, upload, tus.number(request, "Upload-Offset"), 204, {})


@router.head(
    "/{upload_id}",
    summary="How much of an upload is here",
    response_class=Response,
    openapi_extra={"parameters": [_RESUMABLE]},
    responses={**_OTHER_VERSION, **problems("task_unknown", "queue_full")},
)
@with_files
def head(upload_id: str, service: Served, principal: Sender, store: Store) -> Response:
    """Upload-Offset is where to go on; Stenograf-Task-Id and Content-Location name the task, once there is one."""
    upload, offset = _looked(service, store, upload_id, principal)
    headers = tus.state(upload, offset) | {"Upload-Length": str(upload.size), "Cache-Control": "no-store"}
    if upload.metadata:
        headers["Upload-Metadata"] = upload.metadata
    return Response(headers=headers)


@router.get(
    "/{upload_id}",
    summary="Look at an upload",
    dependencies=REQUESTS,
    response_model=UploadOut,
    responses=problems("task_unknown", "queue_full"),
)
@with_files
def look(upload_id: str, service: Served, principal: Sender, store: Store) -> UploadOut:
    """As HEAD, in JSON; this is not a part of tus."""
    upload, offset = _looked(service, store, upload_id, principal)
    return UploadOut(
        upload_id=upload.id,
        filename=upload.options["filename"],
        size=upload.size,
        offset=offset,
        expires_at=moment(upload.expires_at),
        task_id=upload.job_id,
        task=f"{TASKS}/{upload.job_id}" if upload.job_id else None,
    )


@router.delete(
    "/{upload_id}",
    status_code=204,
    summary="Give an upload up",
    dependencies=REQUESTS,
    openapi_extra={"parameters": [_RESUMABLE]},
    responses={**_OTHER_VERSION, **problems("task_unknown", "request_in_flight")},
)
async def remove(upload_id: str, principal: Sender, store: Store, order: Order) -> None:
    """What came is removed; a task that was made of it already stays."""
    upload = await run_in_threadpool(store.get, upload_id, principal.view)
    async with order.take(upload.id):
        await run_with_files(store.remove, upload.id, principal.view)


@router.post("/{upload_id}", include_in_schema=False)
async def instead(
    upload_id: str, request: Request, service: Served, principal: Sender, store: Store, order: Order
) -> Response:
    """For clients whose network lets no PATCH and no DELETE pass: X-HTTP-Method-Override names the method."""
    match request.headers.get("x-http-method-override", "").upper():
        case "PATCH":
            return await patch(upload_id, request, service, principal, store, order)
        case "DELETE":
            await limits.requests(request, principal)
            await remove(upload_id, principal, store, order)
            return Response(status_code=204)
        case "HEAD":
            return await head(upload_id, service, principal, store)
    raise HTTPException(405, headers={"Allow": "PATCH, HEAD, GET, DELETE, OPTIONS"})


async def _receive(
    request: Request,
    service: Service,
    store: Uploads,
    order: Turns,
    upload: Upload,
    offset: int,
    status: int,
    headers: Mapping[str, str],
) -> Response:
    """Take a piece in, and make the job if it was the last one."""
    algorithm, digest = tus.checksum(request)
    async with order.take(upload.id) as turn:
        upload, here = await run_with_files(_again, store, upload)
        if offset != here:
            add_header(request, "Upload-Offset", str(here))
            raise TaskStateError(
                f"The upload has {here} bytes, and these begin at {offset}.",
                "Ask HEAD for the offset, and go on there.",
            )
        tus.refuse_early(request, upload.size - offset)
        if offset < upload.size:
            piece = await run_with_files(service.files.piece, upload.file, offset, upload.size, algorithm)
            try:
                reached = await _fill(piece, request, turn, digest)
            finally:
                piece.close()
            if reached is None:
                return tus.mismatch(request)
            offset = reached
        if offset == upload.size:
            upload = await run_with_files(store.finish, upload)
            service.wake()
    return Response(status_code=status, headers={**headers, **tus.state(upload, offset)})


async def _fill(piece: Piece, request: Request, turn: Turn, digest: bytes | None) -> int | None:
    """Write the body of the request, a batch at a time."""
    pending = bytearray()
    try:
        async with aclosing(_stream(request, turn)) as stream:
            async for data in stream:
                pending += data
                if len(pending) >= BATCH_BYTES:
                    batch, pending = bytes(pending), bytearray()
                    await run_with_files(piece.write, batch)
    except (ClientDisconnect, RequestTimeoutError):
        await run_with_files(_break_off, piece, bytes(pending))
        raise
    return await run_with_files(_end, piece, bytes(pending), digest)


async def _stream(request: Request, turn: Turn) -> AsyncGenerator[bytes, None]:
    async with aclosing(request.stream()) as stream:
        while data := await turn.wait_for(lambda: anext(stream, b"")):
            yield data


def _break_off(piece: Piece, rest: bytes) -> None:
    piece.write(rest)
    piece.break_off()


def _end(piece: Piece, rest: bytes, digest: bytes | None) -> int | None:
    piece.write(rest)
    return piece.end(digest)


def _again(store: Uploads, upload: Upload) -> tuple[Upload, int]:
    """The upload as it is now that nobody else writes to it."""
    upload = store.extend(store.get(upload.id))
    return upload, store.offset(upload)


def _looked(service: Service, store: Uploads, upload_id: str, principal: Principal) -> tuple[Upload, int]:
    upload = store.get(upload_id, principal.view)
    offset = store.offset(upload)
    if offset == upload.size and not upload.job_id:  # the service ended between the last byte and the job
        upload = store.finish(upload)
        service.wake()
    return upload, offset
