"""What stands between the network and the application: request ids, headers, addresses, other origins.

All of it is plain ASGI, as it must work for WebSockets and must not hold up a stream.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stenograf import logs
from stenograf.api.auth import access_of
from stenograf.api.connection import address_of, client_address, networks, over_tls, within
from stenograf.api.errors import respond
from stenograf.errors import ForbiddenError, StenografError
from stenograf.keys import is_loopback
from stenograf.settings import Settings

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self), payment=(), usb=()",
}
"""On every answer."""

HSTS = "max-age=31536000"
"""Over TLS only, as browsers ignore it elsewhere (RFC 6797, 8.1). The domain's other names are not ours."""

API_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Of what is no page: if a browser is brought to show it, nothing in it runs or loads."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; worker-src 'self' blob:; "
    "manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""Of pages: all of it from here, and no script in the page itself. ReDoc puts its styles into the page and searches in
a worker made of a blob; Swagger UI's icons are data."""

PAGES = ("docs", "redoc", "")
"""First parts of the paths where pages are."""

PRIVATE = ("api", "v1", "transcribe", "status", "result")
"""First parts of the paths whose answers no cache may keep, unless they say otherwise."""

EXPOSED = (
    "Location", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-ID", "Content-Disposition", "Content-Range",
    "Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size",
    "Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Expires",
    "Tus-Checksum-Algorithm", "Stenograf-Task-Id", "Content-Location",
)  # fmt: skip
"""Headers that scripts of other origins may read."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def add_security(app: FastAPI, settings: Settings) -> None:
    """Put all of it around an application. To be called after `errors.install`, and before anything is served.

    From the outside in:

    1. `RequestIds`: whatever happens further in has an id, in the logs and in the answer.
    2. `AnswerHeaders`: refusals of all that follows carry the headers too.
    3. `AllowedAddresses`: who may not come in learns nothing, not even which origins are welcome.
    4. CORS, where origins are set: errors of the application have its headers, so that a script can read them.
    5. `OpenGuard`: a refusal for a listed origin can be read by it.
    6. what `errors.install` put there, and the application.
    """
    app.add_middleware(OpenGuard, settings=settings)  # the last one added is the outermost
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("*",),  # nothing goes along by itself: no cookies, so no credentials
            allow_private_network=True,  # a listed page on the internet may call a service in the local network
            expose_headers=EXPOSED,
        )
    if settings.allowed_ips:
        app.add_middleware(AllowedAddresses, settings=settings)
    app.add_middleware(AnswerHeaders, settings=settings)
    app.add_middleware(RequestIds)


class RequestIds:
    """Takes `X-Request-ID` over, or makes one: for the log's lines, `request.state.request_id`, and the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        identity = logs.valid_request_id(Headers(scope=scope).get("x-request-id"))
        # Middlewares and endpoints see copies of the scope, but one and the same state.
        state = scope.setdefault("state", {})
        state["request_id"] = identity
        state["answer_headers"] = {"X-Request-ID": identity}
        with logs.bind(request_id=identity):
            await self._app(scope, receive, send)


class AnswerHeaders:
    """Writes what `connection.add_header` left, and the headers that browsers are kept in check by."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                message.setdefault("headers", [])
                headers = MutableHeaders(scope=message)
                if message["type"] != "websocket.accept":
                    self._protect(scope, headers)
                for name, value in scope.get("state", {}).get("answer_headers", {}).items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, with_headers)

    def _protect(self, scope: Scope, headers: MutableHeaders) -> None:
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        first = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/").partition("/")[0]
        page = first in PAGES and headers.get("content-type", "").startswith("text/html")
        headers.setdefault("Content-Security-Policy", PAGE_POLICY if page else API_POLICY)
        if first in PRIVATE:
            headers.setdefault("Cache-Control", "no-store")
        if over_tls(scope, self._settings):
            headers.setdefault("Strict-Transport-Security", HSTS)


class _Gate:
    """A middleware that lets a connection through or answers it with an error."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                await self.check(scope)
            except StenografError as error:
                await _refuse(scope, receive, send, error)
                return
        await self._app(scope, receive, send)

    async def check(self, scope: Scope) -> None:
        """Raises the error that the connection is answered with."""
        raise NotImplementedError


class AllowedAddresses(_Gate):
    """Lets only clients of the networks in `allowed_ips` come in."""

    async def check(self, scope: Scope) -> None:
        text = client_address(scope, self._settings)
        address = address_of(text)
        if address is None or not within(address, networks(self._settings.allowed_ips)):
            raise ForbiddenError(
                f"The address {text} may not come in here.", "The operator can put it into STENOGRAF_ALLOWED_IPS."
            )


class OpenGuard(_Gate):
    """While the service is open: keeps out web pages that use the browser of somebody who can reach it.

    Where a key is asked for, such a page has none. A service on the machine's own address must be called by a name of
    that machine: otherwise any page could make its own name point here ("DNS rebinding") and would be of our origin.
    Nor may pages of other origins change anything or open a WebSocket, for which browsers ask nobody first.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        super().__init__(app, settings)
        self._public = urlsplit(settings.public_url or "")
        self._may_be_open = not settings.auth or is_loopback(settings.host)

    async def check(self, scope: Scope) -> None:
        if scope["path"] == "/health" or not self._may_be_open or not await run_in_threadpool(self._is_open, scope):
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if is_loopback(self._settings.host) and not self._is_ours(host):
            raise ForbiddenError(
                f"This service does not answer to the name {host[:200]!r} while it asks for no keys.",
                "Call it 127.0.0.1 or localhost, set STENOGRAF_PUBLIC_URL to the address that you use, or make a key: "
                "stenograf keys create NAME.",
            )
        if (scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS) and self._is_foreign(headers, host):
            raise ForbiddenError(
                "Web pages of other origins may not do this while the service asks for no keys.",
                "Put the page's origin into STENOGRAF_CORS_ORIGINS, or make a key: stenograf keys create NAME.",
            )

    def _is_open(self, scope: Scope) -> bool:
        access = access_of(scope["app"])
        is_open = access.is_open(scope)
        self._may_be_open = not self._settings.auth or not access.keys.exists()  # keys that exist do so for good
        return is_open

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        names = (self._settings.host.lower(), self._public.hostname)
        return is_loopback(name) or name.endswith(".localhost") or (bool(name) and name in names)

    def _is_foreign(self, headers: Headers, host: str) -> bool:
        origin = headers.get("origin")
        if origin is None:  # no browser, or an old one
            return headers.get("sec-fetch-site") == "cross-site"
        if {"*", origin} & set(self._settings.cors_origins):
            return False
        # The name and the port decide: behind a proxy, the scheme that we see may be another. `null` has neither.
        site = origin.lower().partition("://")[2]
        return not site or site not in (host.lower(), self._public.netloc.lower())


async def _refuse(scope: Scope, receive: Receive, send: Send, error: StenografError) -> None:
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})  # becomes a 403 without a body
            return
        handshake: dict[str, Any] = {**scope, "type": "http", "method": "GET"}
        await respond(Request(handshake), error)(scope, receive, send)
        return
    await respond(Request(scope), error)(scope, receive, send)
