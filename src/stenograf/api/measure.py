"""Measures every HTTP request for `stenograf.metrics`."""

from __future__ import annotations

import time

from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stenograf.metrics import Metrics

UNMATCHED = "unmatched"
"""The route of a request that no route took: raw paths would make a series each."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

OTHER_METHOD = "other"
"""The method of a request whose own is none of `METHODS`: a client may invent them."""

CLIENT_GONE = 499
"""The status of a request whose client went away before the answer began, as nginx has it: no fault of the service."""


class MetricsMiddleware:
    """Counts and times requests, from the head of each to the end of its answer, and the bytes of their bodies.

    It belongs outside of all other middleware. An exception counts as a 500, also in the middle of a stream;
    WebSockets are not counted. Mounted applications must not have parameters in the path they are mounted at.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500  # what the server answers for an application that did not
        started = gone = False

        async def receive_measured() -> Message:
            nonlocal gone
            message = await receive()
            if message["type"] == "http.request":
                self.metrics.uploaded(len(message.get("body", b"")))
            elif message["type"] == "http.disconnect":
                gone = True
            return message

        async def send_measured(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, CLIENT_GONE if gone else message["status"]
            await send(message)

        begun = time.perf_counter()
        self.metrics.request_started()
        try:
            await self.app(scope, receive_measured, send_measured)
        except Exception:
            if not gone:
                status = 500
            raise
        finally:
            if gone and not started:
                status = CLIENT_GONE
            method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
            self.metrics.request_finished(method, route_template(scope), status, time.perf_counter() - begun)


def route_template(scope: Scope) -> str:
    """The template of the path that was taken, such as `/api/v1/tasks/{task_id}`; `UNMATCHED` where none was.

    To be asked after the application has run, with the scope that it was given.
    """
    # FastAPI leaves the path without the prefixes of the routers in scope["route"], and the whole one here. That is no
    # promise of FastAPI's: were it gone, the prefixes would be missing from the label, and a test fails.
    route = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route") or _by_endpoint(scope)
    path = getattr(route, "path_format", None)
    if not isinstance(path, str):
        return UNMATCHED
    if isinstance(route, Mount):  # of files, or of an application in which nothing matched: /static/{path}
        return path
    outside: str = scope.get("root_path", "")
    return outside.removeprefix(scope.get("app_root_path", outside)) + path


def _by_endpoint(scope: Scope) -> object:
    """The route of what Starlette's own routes and mounts answer inside FastAPI, which does not name it."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return None
    routes = scope["router"].routes
    return next(
        (route for route in routes if endpoint in (getattr(route, "endpoint", 0), getattr(route, "app", 0))), None
    )
