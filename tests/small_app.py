"""A small application behind the real doors: keys, limits and security as the service has them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from stenograf.api import errors, keys, limits
from stenograf.api.auth import Who, access_of, require
from stenograf.api.security import add_security
from stenograf.errors import TaskUnknownError
from stenograf.jobs.database import Database
from stenograf.keys import KeyStore
from stenograf.settings import Settings

routes = APIRouter()


@routes.get("/api/v1/who")
def who(principal: Who) -> dict[str, Any]:
    return {"owner": principal.owner, "scopes": sorted(principal.scopes), "view": principal.view}


@routes.get("/api/v1/tasks", dependencies=[Depends(require("read")), Depends(limits.requests)])
def tasks() -> dict[str, Any]:
    return {"items": []}


@routes.get("/api/v1/tasks/{task_id}", dependencies=[Depends(require("read")), Depends(limits.requests)])
def task(task_id: str) -> None:
    raise TaskUnknownError(f"There is no task {task_id}.", "Check the id.")


@routes.post("/api/v1/transcribe", dependencies=[Depends(require("transcribe")), Depends(limits.uploads)])
def transcribe() -> dict[str, Any]:
    return {"task_id": "1"}


@routes.get("/api/v1/both", dependencies=[Depends(require("read", "transcribe"))])
def both() -> None: ...


@routes.get("/v1/models", dependencies=[Depends(require("read"))])
def openai_models() -> None: ...


@routes.websocket("/api/v1/tasks/{task_id}/ws")
async def socket(websocket: WebSocket, principal: Who) -> None:
    await websocket.accept()
    await websocket.send_text(principal.owner)
    await websocket.close()


@routes.get("/docs")
@routes.get("/api/v1/page")
def page() -> Response:
    return HTMLResponse("<p>hello</p>")


@routes.get("/health")
def health(request: Request) -> dict[str, Any]:
    return {"request_id": request.state.request_id}


@routes.get("/broken")
def broken() -> None:
    raise RuntimeError("nobody foresaw this")


class SmallApp:
    """The application, the database behind it, and calls to it from any address, without a socket."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self.settings = Settings(data_dir=folder, **values)
        self.database = Database(self.settings.database)
        self.database.migrate()
        self.app = FastAPI(docs_url=None, redoc_url=None)
        self.app.state.service = SimpleNamespace(settings=self.settings, database=self.database)
        errors.install(self.app)
        self.app.include_router(routes)
        self.app.include_router(keys.router)
        add_security(self.app, self.settings)

    @property
    def keys(self) -> KeyStore:
        """The application's own store: what it is told, it knows at once."""
        return access_of(self.app).keys

    def other_process(self) -> KeyStore:
        """A store that shares nothing with the application but the database."""
        return KeyStore(self.database)

    def call(
        self, method: str, path: str, *, client: str = "127.0.0.1", base: str = "http://127.0.0.1:8000", **options: Any
    ) -> httpx2.Response:
        async def call() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.app, client=(client, 50_000), raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url=base) as http:
                return await http.request(method, path, **options)

        return asyncio.run(call())

    def get(self, path: str, key: str | None = None, **options: Any) -> httpx2.Response:
        if key is not None:
            options["headers"] = {"X-API-Key": key, **options.get("headers", {})}
        return self.call("GET", path, **options)

    def post(self, path: str, key: str | None = None, **options: Any) -> httpx2.Response:
        if key is not None:
            options["headers"] = {"X-API-Key": key, **options.get("headers", {})}
        return self.call("POST", path, **options)

    def close(self) -> None:
        self.database.close()
