"""`/`, `/health`, `/ready`, `/metrics`: for people who come by, for load balancers, and for Prometheus."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, JSONResponse, Response

from stenograf._version import __version__
from stenograf.api.auth import require
from stenograf.api.connection import kept
from stenograf.api.errors import problems
from stenograf.api.schemas import Wire
from stenograf.api.service import Served, Service
from stenograf.engines import cuda
from stenograf.errors import ModelNotInstalledError, StenografError
from stenograf.jobs.files import RESERVE
from stenograf.jobs.post import on_gpu
from stenograf.languages import language_name
from stenograf.models import catalog
from stenograf.models.choice import is_auto

CACHE_SECONDS = 1.0
"""How long an answer of `/ready` is good: however many ask, the service looks at itself once a second."""

LINKS = {
    "docs": "docs",
    "redoc": "redoc",
    "errors": "docs/errors",
    "openapi": "openapi.json",
    "tasks": "api/v1/tasks",
    "models": "api/v1/models",
    "openai": "v1",
    "health": "health",
    "ready": "ready",
    "metrics": "metrics",
}
"""Name -> path below the address of the service."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Stenograf</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }}
code {{ font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
</style>
</head>
<body>
<h1>Stenograf {version}</h1>
<p>Speech to text on your own machines. This is its service; programs talk to it.</p>
<ul>
<li><a href="docs">Try the API</a> in the browser</li>
<li><a href="redoc">Read about the API</a></li>
<li><a href="docs/errors">What each error means</a></li>
<li><a href="openapi.json">OpenAPI description</a></li>
<li><a href="ready">Is it ready?</a></li>
</ul>
<p>A first try: <code>curl -F file=@recording.ogg {address}api/v1/transcribe</code></p>
</body>
</html>
"""

_log = logging.getLogger(__name__)


class Welcome(Wire):
    """What runs here, and where to go."""

    name: Literal["stenograf"]
    version: str = Field(examples=[__version__])
    links: dict[str, str] = Field(description="Name to path.", examples=[{"docs": "/docs"}])


class Health(Wire):
    """The service answers."""

    status: Literal["ok"]
    version: str = Field(examples=[__version__])
    model: str = Field(description="The model that reads where none is named.", examples=["small"])


class Check(Wire):
    """One thing that the service needs."""

    ok: bool
    detail: str = Field(examples=["2 processes"])


class Ready(Wire):
    """Whether the service can do its work now."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, Check] = Field(
        description="`database`, `disk`, `model` (the default one), `device`, and `workers` where they run here.",
        examples=[{"database": {"ok": True, "detail": "It answers."}}],
    )


router = APIRouter(tags=["operation"])


@router.head("/", include_in_schema=False)
@router.get(
    "/",
    summary="What runs here",
    response_model=Welcome,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def root(request: Request) -> Response:
    """Name, version and links; for a browser a page."""
    base = request.scope.get("root_path", "").rstrip("/") + "/"
    headers = {"Vary": "Accept"}
    if _is_browser(request):
        return HTMLResponse(_PAGE.format(version=__version__, address=request.base_url), headers=headers)
    welcome = Welcome(name="stenograf", version=__version__, links={name: base + to for name, to in LINKS.items()})
    return JSONResponse(welcome.model_dump(), headers=headers)


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Does it answer?")
async def health(service: Served) -> Health:
    """Says that the process lives; asks nobody else, so that it answers at once."""
    return Health(status="ok", version=__version__, model=_shown_model(service))


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    summary="Can it work?",
    response_model=Ready,
    responses={503: {"model": Ready, "description": "Something that it needs is missing; `checks` tells what."}},
)
async def ready(request: Request) -> JSONResponse:
    """For load balancers: 503 while a recording that is sent now could not be read. The answer may be a second old."""
    checks = await kept(request.app, "readiness", Readiness).checks()
    fine = all(check.ok for check in checks.values())
    body = Ready(status="ready" if fine else "not_ready", checks=dict(checks))
    return JSONResponse(body.model_dump(), 200 if fine else 503, {"Cache-Control": "no-store"})


# Not counted by limits.py: whoever watches the service must not be shut out when it matters.
@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    dependencies=[Depends(require("metrics"))],
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(),
    },
)
def metrics(service: Served) -> Response:
    """Needs a key with the scope `metrics`, where keys are asked for."""
    content, media_type = service.metrics.render()
    return Response(content, headers={"Content-Type": media_type})


class Readiness:
    """Looks at what the service needs; one for an application, to be used in its event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asking = asyncio.Lock()
        self._checks: Mapping[str, Check] = {}
        self._good_until = 0.0

    async def checks(self) -> Mapping[str, Check]:
        """Each thing and how it is, at most `CACHE_SECONDS` old."""
        async with self._asking:  # one thread at a time, however slow the database is
            if time.monotonic() >= self._good_until:
                checks = await run_in_threadpool(examine, self._service)
                for name, check in checks.items():
                    before = self._checks.get(name)
                    if not check.ok and (before is None or before.ok):
                        _log.warning("not ready: %s: %s", name, check.detail)
                self._checks, self._good_until = checks, time.monotonic() + CACHE_SECONDS
            return self._checks


def examine(service: Service) -> dict[str, Check]:
    """Look at everything, now. Anyone may read the details: no folder of the server is named in them."""
    checks = {"database": _database, "disk": _disk, "model": _model, "device": _device}
    if service.workers is not None:
        checks["workers"] = _workers
    return {name: _looked(check, service) for name, check in checks.items()}


def _looked(check: Callable[[Service], Check], service: Service) -> Check:
    try:
        return check(service)
    except (StenografError, OSError) as error:
        _log.debug("not ready: %s", error)
        return Check(ok=False, detail="It cannot be used; the log tells why.")


def _database(service: Service) -> Check:
    with service.database.read() as connection:
        connection.exec_driver_sql("SELECT id FROM jobs LIMIT 1").all()
    return Check(ok=True, detail="It answers.")


def _disk(service: Service) -> Check:
    folders = [service.files.folder, Path(service.database.url.database or "").parent]
    free = min(shutil.disk_usage(folder).free for folder in folders)
    return Check(ok=free >= RESERVE, detail=f"{free / 1e9:.1f} GB are free.")


def _workers(service: Service) -> Check:
    count = len(service.workers()) if service.workers else 0
    return Check(ok=count > 0, detail="1 process" if count == 1 else f"{count} processes")


def _model(service: Service) -> Check:
    name, shown = service.settings.default_model, _shown_model(service)
    needed = {PurePath(name).name for name in service.reader.available.needed_by_default()}
    for model, code in dict(service.load_errors).items():
        if model not in needed:  # one that was to be loaded first and is not needed, such as one misspelt
            continue
        return Check(ok=False, detail=f"{model} could not be loaded ({code}).")
    if is_auto(name):
        return _auto(service)
    try:
        service.models.resolve(name, allow_path=True)
    except ModelNotInstalledError:
        if catalog.find(name) is None or service.settings.offline:
            return Check(ok=False, detail=f"{shown} is not here, and nothing is downloaded.")
        return Check(ok=True, detail=f"{shown} is downloaded at its first use.")
    except StenografError as error:
        return Check(ok=False, detail=f"{shown} cannot be used ({error.code}).")
    return Check(ok=True, detail=f"{shown} is here.")


def _auto(service: Service) -> Check:
    language = service.settings.default_language or "ru"
    choice = service.reader.available.choose(language)
    where = "is here" if service.reader.is_here(choice.name) else "is downloaded at its first use"
    return Check(ok=True, detail=f"auto: {choice.name} for {language_name(language)} {where}.")


def _device(service: Service) -> Check:
    """Models on the processor of a machine whose GPU should read them would go unnoticed for long."""
    used = sorted(set(service.devices.values()))
    if service.settings.device.startswith("cuda") and not cuda.present():
        return Check(ok=False, detail=f"{service.settings.device} is asked for, and there is no GPU that can be used.")
    if "cpu" in used and on_gpu(service.settings):
        return Check(ok=False, detail="There is a GPU, but models run on the processor: see stenograf doctor.")
    shown = ", ".join(used) if used else f"{service.settings.device}; no model is loaded yet"
    return Check(ok=True, detail=shown)


def _shown_model(service: Service) -> str:
    """The default model, without the folder that it lies in."""
    return PurePath(service.settings.default_model).name


def _is_browser(request: Request) -> bool:
    """Whether a page is what the client likes best; who takes anything, as curl does, gets JSON."""
    return "text/html" in request.headers.get("accept", "")
