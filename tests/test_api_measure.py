"""Requests are counted by what they were, over a real application, and where it matters over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from websockets.sync.client import connect

from stenograf.api.measure import MetricsMiddleware
from stenograf.metrics import Metrics


def number(metrics: Metrics, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(metrics.render()[0].decode()):
        for sample in family.samples:
            if sample.name == f"stenograf_{name}" and sample.labels == labels:
                return float(sample.value)
    return None


def requests(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    """Method, route and status -> how many."""
    return {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(metrics.render()[0].decode())
        for sample in family.samples
        if sample.name == "stenograf_http_requests_total"
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(dict)


def application(folder: Path) -> FastAPI:
    """Routes in all the ways in which the service may have them."""
    tasks = APIRouter(prefix="/tasks")

    @tasks.get("/{task_id}")
    def one(task_id: str) -> dict[str, str]:
        return {"id": task_id}

    @tasks.post("/{task_id}/broken")
    def broken(task_id: str) -> None:
        raise RuntimeError(task_id)

    api = APIRouter(prefix="/api/v1")
    api.include_router(tasks)
    app = FastAPI(redirect_slashes=False)
    app.include_router(api)
    app.include_router(tasks, prefix="/again")

    @app.get("/models/{name:path}")
    def model(name: str) -> dict[str, str]:
        return {"name": name}

    @app.post("/upload")
    async def upload(request: Request) -> dict[str, int]:
        return {"size": sum([len(part) async for part in request.stream()])}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"part"
                await asyncio.sleep(0.02)

        return StreamingResponse(parts())

    @app.get("/stream-broken")
    async def stream_broken() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"part"
            raise RuntimeError

        return StreamingResponse(parts())

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    inner = FastAPI()
    inner.include_router(tasks)
    app.mount("/inner", inner)
    (folder / "page.html").write_text("page")
    app.mount("/static", StaticFiles(directory=folder))
    return app


@pytest.fixture
def ask(metrics: Metrics, tmp_path: Path) -> Callable[..., httpx2.Response]:
    """Sends one request to the measured application."""

    def send(method: str, path: str, app: ASGIApp | None = None, root_path: str = "", **more: Any) -> httpx2.Response:
        measured = MetricsMiddleware(app or application(tmp_path), metrics)

        async def main() -> httpx2.Response:
            transport = httpx2.ASGITransport(measured, raise_app_exceptions=False, root_path=root_path)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **more)

        return asyncio.run(main())

    return send


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/api/v1/tasks/17", "/api/v1/tasks/{task_id}", 200),
        ("GET", "/again/tasks/17", "/again/tasks/{task_id}", 200),
        ("GET", "/models/org/name", "/models/{name}", 200),
        ("POST", "/api/v1/tasks/17", "/api/v1/tasks/{task_id}", 405),
        ("POST", "/api/v1/tasks/17/broken", "/api/v1/tasks/{task_id}/broken", 500),
        ("GET", "/inner/tasks/17", "/inner/tasks/{task_id}", 200),
        ("GET", "/inner/nothing", "/inner/{path}", 404),
        ("GET", "/static/page.html", "/static/{path}", 200),
        ("GET", "/static/nothing.html", "/static/{path}", 404),
        ("GET", "/openapi.json", "/openapi.json", 200),
        ("GET", "/nothing/17", "unmatched", 404),
        ("GET", "/api/v1/tasks/17/", "unmatched", 404),
        ("HEAD", "/nothing", "unmatched", 404),
    ],
)
def test_a_request_is_counted_under_its_template(
    ask: Callable[..., httpx2.Response], metrics: Metrics, method: str, path: str, route: str, status: int
) -> None:
    assert ask(method, path).status_code == status
    assert requests(metrics) == {(method, route, str(status)): 1}
    assert number(metrics, "http_request_duration_seconds_count", method=method, route=route) == 1
    assert number(metrics, "http_requests_in_flight") == 0


def test_a_proxys_prefix_is_no_part_of_the_route(ask: Callable[..., httpx2.Response], metrics: Metrics) -> None:
    assert ask("GET", "/behind/api/v1/tasks/17", root_path="/behind").status_code == 200
    assert ask("GET", "/behind/inner/tasks/17", root_path="/behind").status_code == 200
    assert {route for _, route, _ in requests(metrics)} == {"/api/v1/tasks/{task_id}", "/inner/tasks/{task_id}"}


def test_starlettes_own_routes(ask: Callable[..., httpx2.Response], metrics: Metrics) -> None:
    async def hello(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/a/{b}", hello), Mount("/in", routes=[Route("/c/{d}", hello)])])
    for path in ("/a/1", "/in/c/2", "/in/x"):
        ask("GET", path, app)
    assert {route for _, route, _ in requests(metrics)} == {"/a/{b}", "/in/c/{d}", "/in/{path}"}


def test_paths_and_methods_of_clients_make_no_series(ask: Callable[..., httpx2.Response], metrics: Metrics) -> None:
    for count in range(20):
        ask("GET", f"/nothing/{count}")
        ask(f"BREW{count}", f"/api/v1/tasks/{count}")
    assert requests(metrics) == {
        ("GET", "unmatched", "404"): 20,
        ("other", "/api/v1/tasks/{task_id}", "405"): 20,
    }


def test_an_exception_is_handed_on_and_counts_as_500(metrics: Metrics, tmp_path: Path) -> None:
    app = application(tmp_path)
    app.add_middleware(MetricsMiddleware, metrics=metrics)  # inside of what turns exceptions into answers

    async def main() -> None:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
            with pytest.raises(RuntimeError, match="17"):
                await client.post("/api/v1/tasks/17/broken")

    asyncio.run(main())
    assert requests(metrics) == {("POST", "/api/v1/tasks/{task_id}/broken", "500"): 1}
    assert number(metrics, "http_requests_in_flight") == 0


def test_a_stream_is_measured_to_its_end(ask: Callable[..., httpx2.Response], metrics: Metrics) -> None:
    assert ask("GET", "/stream").content == b"part" * 3
    assert requests(metrics) == {("GET", "/stream", "200"): 1}
    taken = number(metrics, "http_request_duration_seconds_sum", method="GET", route="/stream")
    assert taken is not None
    assert taken >= 0.05


def test_a_stream_that_breaks_off_counts_as_500(ask: Callable[..., httpx2.Response], metrics: Metrics) -> None:
    ask("GET", "/stream-broken")
    assert requests(metrics) == {("GET", "/stream-broken", "500"): 1}


def test_bytes_of_bodies_are_counted_as_they_come(ask: Callable[..., httpx2.Response], metrics: Metrics) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x" * 1000

    assert ask("POST", "/upload", content=parts()).json() == {"size": 4000}
    assert ask("POST", "/upload", content=b"y" * 5).json() == {"size": 5}
    assert number(metrics, "upload_bytes_total") == 4005


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """A real server on a free port, for as long as the block lasts."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", ws="websockets-sansio", timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until(lambda: server.started)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


def until(told: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not told():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_websockets_work_and_are_not_counted(metrics: Metrics, tmp_path: Path) -> None:
    with serving(MetricsMiddleware(application(tmp_path), metrics)) as port:
        with connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as websocket:
            websocket.send("hello")
            assert websocket.recv(timeout=10) == "hello"
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert client.get("/stream").status_code == 200
        until(lambda: bool(requests(metrics)))
    assert requests(metrics) == {("GET", "/stream", "200"): 1}
    assert number(metrics, "http_requests_in_flight") == 0


@pytest.mark.parametrize("outside", [True, False])
def test_a_client_that_goes_away_is_no_fault_of_ours(metrics: Metrics, tmp_path: Path, outside: bool) -> None:
    app = application(tmp_path)
    measured: ASGIApp = app
    if outside:
        measured = MetricsMiddleware(app, metrics)
    else:
        app.add_middleware(MetricsMiddleware, metrics=metrics)
    with serving(measured) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10)
            until(lambda: number(metrics, "upload_bytes_total") == 10)
            assert number(metrics, "http_requests_in_flight") == 1
        until(lambda: bool(requests(metrics)))
    assert requests(metrics) == {("POST", "/upload", "499"): 1}
    assert number(metrics, "http_requests_in_flight") == 0


def test_an_answer_to_nobody_counts_as_499(metrics: Metrics) -> None:
    """As when an endpoint that waits for a transcript notices that nobody waits for its answer."""
    app = FastAPI()

    @app.get("/wait")
    async def wait(request: Request) -> JSONResponse:
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        return JSONResponse({"state": "cancelled"}, status_code=503)

    with serving(MetricsMiddleware(app, metrics)) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
            until(lambda: number(metrics, "http_requests_in_flight") == 1)
        until(lambda: bool(requests(metrics)))
    assert requests(metrics) == {("GET", "/wait", "499"): 1}
