"""The web application, put together from its families of endpoints.

A new family is a module with a `router` and a line in `FAMILIES`. Its endpoints get what they need by `Served`
(service.py), who asks by `require` (auth.py), and raise errors of `stenograf.errors`, which `errors.py` answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from stenograf._version import __version__
from stenograf.api import docs, earlier, errors, keys, openai, operation, tasks
from stenograf.api.measure import MetricsMiddleware
from stenograf.api.schemas import Problem
from stenograf.api.security import add_security
from stenograf.api.service import Service

FAMILIES: tuple[APIRouter, ...] = (
    tasks.router,  # /api/v1/transcribe, /api/v1/tasks
    keys.router,  # /api/v1/keys, /api/v1/token
    openai.router,  # /v1/audio, /v1/models
    earlier.router,  # /transcribe, /transcribe/, /status, /result
    operation.router,  # /, /health, /ready, /metrics
    docs.router,  # /docs, /redoc
)
"""All endpoints, one line a family."""

Hook = Callable[[], AbstractAsyncContextManager[object]]
"""Something that lives as long as the application serves."""

_ABOUT = """Speech to text on your own machines.

Send a recording to `POST /api/v1/transcribe`, look at its task until it is `done`, and take the result. Errors are
problem documents (RFC 9457); their codes are stable.
"""


def create_app(service: Service, *, hooks: Sequence[Hook] = ()) -> FastAPI:
    """The application for a service; `hooks` are entered before the first request and left after the last."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            service.watcher.start()
            stack.push_async_callback(service.watcher.stop)
            for hook in hooks:
                await stack.enter_async_context(hook())
            yield

    app = FastAPI(
        title="Stenograf",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,  # earlier services' `/transcribe` and `/transcribe/` are two calls
        docs_url=None,  # docs.py has pages that need nothing from other servers
        redoc_url=None,
    )
    app.state.service = service
    errors.install(app)
    add_security(app, service.settings)
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)  # the last one added is the outermost
    for router in FAMILIES:
        app.include_router(router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, with the problem document that error responses point at, without FastAPI's own errors."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        for path in described["paths"].values():
            for operation in path.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]  # no error here has that shape
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
        schemas |= problem.pop("$defs", {}) | {"Problem": problem}
        app.openapi_schema = described
    return app.openapi_schema
