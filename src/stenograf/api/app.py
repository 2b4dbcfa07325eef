"""The web application, put together from its families of endpoints.

A new family is a module with a `router` and a line in `FAMILIES`. Its endpoints get what they need by `Served`
(service.py), who asks by `require` (auth.py), and raise errors of `stenograf.errors`, which `errors.py` answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, FastAPI

from stenograf._version import __version__
from stenograf.api import docs, earlier, errors, events, keys, models, openai, operation, sync, tasks, uploads
from stenograf.api.auth import access_of
from stenograf.api.description import describe, operation_id
from stenograf.api.measure import MetricsMiddleware
from stenograf.api.security import add_security
from stenograf.api.service import Service

FAMILIES: tuple[APIRouter, ...] = (
    tasks.router,  # /api/v1/transcribe, /api/v1/tasks
    events.router,  # /api/v1/tasks/{id}/events, /api/v1/tasks/{id}/ws
    uploads.router,  # /api/v1/uploads
    models.router,  # /api/v1/models
    keys.router,  # /api/v1/keys, /api/v1/token
    openai.router,  # /v1/audio, /v1/models
    earlier.router,  # /transcribe, /transcribe/, /status, /result
    operation.router,  # /, /health, /ready, /metrics
    docs.router,  # /docs, /redoc
)
"""All endpoints, one line a family."""

Hook = Callable[[], AbstractAsyncContextManager[object]]
"""Something that lives as long as the application serves."""


def create_app(service: Service, *, hooks: Sequence[Hook] = ()) -> FastAPI:
    """The application for a service; `hooks` are entered before the first request and left after the last."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            service.watcher.start()
            stack.push_async_callback(service.watcher.stop)
            stack.push_async_callback(sync.leave_all, app)
            for hook in hooks:
                await stack.enter_async_context(hook())
            yield

    app = FastAPI(
        title="Stenograf",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,  # earlier services' `/transcribe` and `/transcribe/` are two calls
        docs_url=None,  # docs.py has pages that need nothing from other servers
        redoc_url=None,
        generate_unique_id_function=operation_id,
    )
    app.state.service = service
    access_of(app)  # a secret that is too short ends the start, and not the first request
    errors.install(app)
    add_security(app, service.settings)
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)  # the last one added is the outermost
    for router in FAMILIES:
        app.include_router(router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app
