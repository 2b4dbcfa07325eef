"""`/`, `/health`, `/ready`, `/metrics`: for people who come by, for load balancers, and for Prometheus."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import HTMLResponse, JSONResponse, Response

from stenograf._version import __version__
from stenograf.api.auth import require
from stenograf.api.connection import kept
from stenograf.api.errors import problems
from stenograf.api.readiness import Check, Readiness, shown_model
from stenograf.api.schemas import Wire
from stenograf.api.service import Served

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


class Ready(Wire):
    """Whether the service can do its work now."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, Check] = Field(
        description="`database`, `disk`, `storage` (of recordings); `broker` where there is one; where recordings are "
        "read here, `model` (the default one), `device`, `workers`.",
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
    return Health(status="ok", version=__version__, model=shown_model(service))


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


def _is_browser(request: Request) -> bool:
    """Whether a page is what the client likes best; who takes anything, as curl does, gets JSON."""
    return "text/html" in request.headers.get("accept", "")
