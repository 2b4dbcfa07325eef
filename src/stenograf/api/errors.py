"""The one place that turns an error into a response.

| path | shape |
|---|---|
| `/v1/...` | OpenAI's: `{"error": {"message", "type", "param", "code"}}` |
| `/transcribe`, `/status/...`, `/result/...` | earlier services': `{"error": "..."}` |
| all others | a problem document by RFC 9457, `application/problem+json` |

An endpoint raises a `StenografError` and knows nothing of this. What nobody foresaw is logged with its traceback and
answered without a detail of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stenograf.errors import OptionInvalidError, ServiceStoppingError, StenografError
from stenograf.jobs.job import JobError

PROBLEM = "application/problem+json"

STATUS: Mapping[str, int] = {
    "internal": 500,
    # asked for something that cannot be done as asked
    "usage": 400,
    "bad_request": 400,
    "unsupported_media_type": 415,
    "request_timeout": 408,
    "setting_invalid": 500,
    "option_invalid": 422,
    "language_unknown": 422,
    "format_unknown": 422,
    "model_unknown": 422,
    "address_refused": 422,
    "nothing_to_do": 422,
    # the recording
    "input": 422,
    "file_missing": 404,
    "file_forbidden": 500,
    "file_empty": 422,
    "not_media": 422,
    "no_audio": 422,
    "audio_damaged": 422,
    "recording_too_long": 422,
    "upload_too_large": 413,
    "fetch_failed": 502,
    "fetch_refused": 422,
    # the model, the engine
    "model": 500,
    "model_not_installed": 422,
    "model_damaged": 503,
    "models_read_only": 503,
    "download_failed": 502,
    "engine": 500,
    "engine_missing": 500,
    "device_unavailable": 503,
    "out_of_memory": 503,
    "no_room": 503,
    "model_too_large": 422,
    "engine_failed": 500,
    # the result
    "output": 500,
    "disk_full": 507,
    "output_forbidden": 500,
    "output_exists": 409,
    # the service
    "service": 500,
    "unauthorized": 401,
    "forbidden": 403,
    "task_unknown": 404,
    "task_state": 409,
    "idempotency_conflict": 422,
    "request_in_flight": 409,
    "rate_limited": 429,
    "queue_full": 503,
    "service_stopping": 503,
    "key_unknown": 404,
    "database_failed": 503,
    "database_newer": 503,
    "database_unreachable": 503,
    "storage_unavailable": 503,
    "worker_lost": 500,
    "lease_lost": 409,
    "cancelled": 409,
}
"""Error code -> HTTP status; `docs/errors.md` tells what to do about each."""

_RETRY_AFTER = {
    "request_in_flight": 2,
    "rate_limited": 60,
    "queue_full": 30,
    "service_stopping": 10,
    "database_failed": 5,
    "database_unreachable": 5,
    "storage_unavailable": 10,
    "disk_full": 60,
    "download_failed": 60,
    "out_of_memory": 30,
    "no_room": 30,
}
"""Seconds that a client is asked to wait, where the error has no number of its own."""

_UNTOLD = ("Something went wrong inside the service.", "Send it again; if it fails again, tell the operator.")
_PUBLIC: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("database_failed", "database_newer", "database_unreachable"),
        ("The service cannot reach its database just now.", "Send it again in a moment."),
    ),
    "storage_unavailable": ("The service cannot reach its recordings just now.", "Send it again in a moment."),
    "disk_full": ("The disk of the service is full.", "Send it again later; the operator must free some space."),
    "model_damaged": ("The model cannot be read on this server.", "Name another one, and tell the operator."),
    "models_read_only": ("The models of this server cannot be read or written.", "Tell the operator."),
} | dict.fromkeys((code for code, status in STATUS.items() if status == 500 and code != "worker_lost"), _UNTOLD)
"""What clients read instead of an error's own words, which name folders of the server: these go to the log."""

_HTTP_CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 408: "request_timeout",
               413: "upload_too_large", 415: "unsupported_media_type", 416: "range_not_satisfiable",
               429: "rate_limited", 500: "internal", 503: "service_stopping"}  # fmt: skip
"""The codes of errors that the web framework raises; others are the status's name, such as `not_found`."""

_OPENAI_CODES = {
    "unauthorized": "invalid_api_key",
    "model_unknown": "model_not_found",
    "model_not_installed": "model_not_found",
    "rate_limited": "rate_limit_exceeded",
}
_OPENAI_STATUS = {"model_unknown": 404, "model_not_installed": 404}
_OPENAI_PARAMS = {"language_unknown": "language", "model_unknown": "model", "model_not_installed": "model",
                  "format_unknown": "response_format", "file_empty": "file", "upload_too_large": "file",
                  "not_media": "file", "no_audio": "file", "audio_damaged": "file", "recording_too_long": "file",
                  }  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong, before it has the shape of one of the interfaces."""

    status: int
    code: str
    message: str
    hint: str = ""
    param: str | None = None
    """The option or parameter that it is about."""
    errors: Sequence[Mapping[str, str]] = ()
    """Where several parameters are wrong: `{param, message}` each."""
    headers: Mapping[str, str] = field(default_factory=dict)


def install(app: FastAPI) -> None:
    """Make all errors of `app` come out in the right shape."""

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it; nginx's number, for the logs
        return respond(request, error)

    for kind in (StenografError, HTTPException, RequestValidationError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, answer)
    app.add_middleware(_LastResort)


class _LastResort:
    """Answers what nobody foresaw inside of the other middlewares: their headers are on this answer too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if begun:
                raise
            # The server's patience is over while it stops: most likely the body was still coming in.
            error = ServiceStoppingError("The service is being stopped.", "Send the request again in a moment.")
            await respond(Request(scope, receive), error)(scope, receive, send)
        except Exception as error:
            if begun:  # the connection has to break: half an answer must not look whole
                raise
            await respond(Request(scope, receive), error)(scope, receive, send)


def respond(request: Request, error: Exception) -> Response:
    """The response for an error, in the shape that the path of the request calls for."""
    fault = fault_of(error)
    if fault.status == 405:
        fault = replace(fault, headers={**fault.headers, "Allow": ", ".join(_allowed(request))})
    if fault.status >= 500:
        foreseen = isinstance(error, StenografError) and fault.status != 500
        level = logging.WARNING if foreseen else logging.ERROR
        _log.log(level, "%s %s: %s", request.method, request.url.path, error, exc_info=None if foreseen else error)
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    if path == "/v1" or path.startswith("/v1/"):
        return _openai(fault)
    if path == "/transcribe" or path.startswith(("/transcribe/", "/status/", "/result/")):
        text = f"{fault.message} {fault.hint}".strip()
        return JSONResponse({"error": text}, fault.status, fault.headers)
    return _problem(request, fault)


def fault_of(error: Exception) -> Fault:
    """What clients may know of an error."""
    if isinstance(error, StenografError):
        message, hint = _PUBLIC.get(error.code, (error.message, error.hint))
        return Fault(
            status=STATUS.get(error.code, 500),
            code=error.code,
            message=message,
            hint=hint,
            param=getattr(error, "option", None),
            headers=_headers(error),
        )
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _http(error)
    return Fault(500, "internal", *_UNTOLD)


def public(error: JobError) -> JobError:
    """What clients may know of the error that a job ended with."""
    message, hint = _PUBLIC.get(error.code, (error.message, error.hint))
    return JobError(error.code, message, hint)


def raised(error: JobError) -> StenografError:
    """The error that a job ended with, to be raised to a client who waits for the job."""
    kind = next((kind for kind in _tree(StenografError) if kind.code == error.code), StenografError)
    return kind(error.message, error.hint)


def _tree(top: type[StenografError]) -> Iterator[type[StenografError]]:
    yield top
    for child in top.__subclasses__():
        yield from _tree(child)


def _headers(error: StenografError) -> dict[str, str]:
    headers = dict(getattr(error, "headers", {}))
    if error.code == "unauthorized":
        headers.setdefault("WWW-Authenticate", 'Bearer realm="stenograf"')
    seconds = getattr(error, "retry_after", None) or _RETRY_AFTER.get(error.code)
    if seconds is not None:
        headers.setdefault("Retry-After", str(math.ceil(seconds)))
    return headers


def _invalid(error: RequestValidationError) -> Fault:
    # The place is such as ("query", "limit") or ("query", "status", 0).
    found = [{"param": str(item["loc"][:2][-1]), "message": f"{item['msg']}."} for item in error.errors()]
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return Fault(400, "bad_request", "The body of the request is no JSON.", "Check it with a JSON parser.")
    first = found[0]
    return Fault(
        status=STATUS[OptionInvalidError.code],
        code=OptionInvalidError.code,
        message=f"{first['param']}: {first['message']}",
        hint="The description of the interface at /openapi.json tells what it takes.",
        param=first["param"],
        errors=found,
    )


def _http(error: HTTPException) -> Fault:
    status = HTTPStatus(error.status_code)
    texts = {
        404: ("There is nothing at this address.", "See /docs for what there is; a slash at the end matters."),
        405: ("This address does not take this method.", "The header Allow names those that it takes."),
        416: ("The recording does not have these bytes.", "The header Content-Range tells how many it has."),
    }
    if error.detail == status.phrase and status in texts:
        message, hint = texts[status]
    else:
        message, hint = f"{str(error.detail).rstrip('.')}.", ""
    code = _HTTP_CODES.get(status, status.name.lower())
    return Fault(status, code, message, hint, headers=dict(error.headers or {}))


def _allowed(request: Request) -> list[str]:
    """The methods that the address of a request takes, over all routes: the framework names those of the first one."""
    routes = request.app.router.routes
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    asked = {method: {**request.scope, "method": method} for method in methods}
    return [method for method in methods if any(route.matches(asked[method])[0] is Match.FULL for route in routes)]


def _openai(fault: Fault) -> Response:
    # Its clients know 400 for what is wrong in a request, and have no class for 422 of their own.
    status = _OPENAI_STATUS.get(fault.code, 400 if fault.status == 422 else fault.status)
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body = {
        "message": f"{fault.message} {fault.hint}".strip(),
        "type": kind,
        "param": fault.param or _OPENAI_PARAMS.get(fault.code),
        "code": _OPENAI_CODES.get(fault.code, fault.code),
    }
    return JSONResponse({"error": body}, status, fault.headers)


def _problem(request: Request, fault: Fault) -> Response:
    body: dict[str, Any] = {
        "type": type_of(fault.code),
        "title": title_of(fault.code),
        "status": fault.status,
        "detail": fault.message,
        "code": fault.code,
        "hint": fault.hint,
        "instance": request.scope["path"],
        "request_id": getattr(request.state, "request_id", None),
    }
    if fault.errors:
        body["errors"] = list(fault.errors)
    return JSONResponse(body, fault.status, fault.headers, media_type=PROBLEM)


def type_of(code: str) -> str:
    """The `type` of a problem: where its code is explained."""
    return f"/docs/errors#{code}"


def title_of(code: str) -> str:
    """The `title` of a problem, the same for each of its kind: `Task unknown`."""
    return code.replace("_", " ").capitalize()


def kinds() -> dict[str, type[StenografError]]:
    """All errors by their codes."""
    return {kind.code: kind for kind in _tree(StenografError)}


def about_of(kind: type[StenografError]) -> str:
    """What an error means, in a sentence."""
    return (kind.__doc__ or "").split("\n", maxsplit=1)[0]


COMMON = ("unauthorized", "forbidden", "rate_limited", "internal", "database_failed")
"""Codes that every endpoint behind a key can answer with."""


def described(about: str) -> dict[str, Any]:
    """An error response of an endpoint for its OpenAPI description, where the error has no code of ours."""
    return {"description": about, "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint for its OpenAPI description: those of `codes` and the `COMMON` ones."""
    known = kinds()
    responses: dict[int | str, dict[str, Any]] = {}
    for code in sorted({*codes, *COMMON}, key=lambda code: (STATUS[code], code)):
        about = about_of(known[code])
        status = STATUS[code]
        response = responses.setdefault(
            status,
            described(HTTPStatus(status).phrase),
        )
        response["content"][PROBLEM].setdefault("examples", {})[code] = {
            "summary": about,
            "value": {
                "type": type_of(code),
                "title": title_of(code),
                "status": status,
                "detail": _PUBLIC.get(code, (about,))[0],
                "code": code,
                "hint": _PUBLIC.get(code, ("", "What to do about it."))[1],
                "instance": "/api/v1/...",
                "request_id": "0199f2ab-7c31-7d54-9a5e-3c1f0d2b4e6a",
            },
        }
    return responses
