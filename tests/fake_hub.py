"""A model hub on loopback: enough of huggingface.co's API to download from, with faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_FROM = 1000
"""Files of at least so many bytes are stored as LFS, and known by their sha256."""


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Faults:
    """What goes wrong; a file's name as the key."""

    break_after: dict[str, int] = field(default_factory=dict)
    """Bytes after which the connection is cut, once."""

    cut_always: set[str] = field(default_factory=set)
    """Files of which nothing but the headers ever comes."""

    corrupt: set[str] = field(default_factory=set)
    status: dict[str, int] = field(default_factory=dict)
    """HTTP status for every request whose path has this in it."""

    token: str | None = None
    no_ranges: bool = False
    no_length: bool = False
    """A proxy that does not say how long the content is, and ends it by closing the connection."""

    bare_listing: bool = False
    """A mirror that lists names without sizes and hashes."""

    slow: float = 0.0
    """Seconds to wait before each file."""

    cdn: str | None = None
    """Where requests for large files are redirected to, as the real hub does."""


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    """Names in small letters."""

    sent: int = 0
    """Bytes of a file that were sent."""

    @property
    def sent_from(self) -> int:
        """Where in the file the asked range begins."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


class FakeHub:
    """`with FakeHub({"owner/name": {"file": b"..."}}) as hub: ... hub.url`."""

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos = repos
        self.faults = Faults()
        self.requests: list[Request] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, name: str = "") -> list[Request]:
        """The requests for the content of files (of this name)."""
        return [r for r in self.requests if r.method == "GET" and "/resolve/" in r.path and r.path.endswith(name)]

    def answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = urlsplit(request.path).path  # asked as a proxy, it is the whole URL
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Request(request.command, path, headers)
        self.requests.append(seen)
        self._route(request, seen, with_body=with_body)

    def _route(self, request: BaseHTTPRequestHandler, seen: Request, *, with_body: bool) -> None:
        path = seen.path
        for part, status in self.faults.status.items():
            if part in path:
                return self._refuse(request, status, "GatedRepo" if status == 403 else None)
        if self.faults.token and request.headers.get("Authorization") != f"Bearer {self.faults.token}":
            return self._refuse(request, 401, "RepoNotFound")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/main", path):
            return self._list(request, match[1])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = match.groups()
            content = self.repos.get(repo, {}).get(name)
            if revision in ("main", COMMIT) and content is not None:
                return self._send_file(request, seen, name, content, with_body=with_body)
            return self._refuse(request, 404, "EntryNotFound")
        return self._refuse(request, 404, "RepoNotFound")

    def _list(self, request: BaseHTTPRequestHandler, repo: str) -> None:
        if repo not in self.repos:
            self._refuse(request, 404, "RepoNotFound")
            return
        files = [self._facts(name, content) for name, content in self.repos[repo].items()]
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": files})
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body.encode())

    def _facts(self, name: str, content: bytes) -> dict[str, Any]:
        if self.faults.bare_listing:
            return {"rfilename": name}
        facts: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
        if len(content) >= LFS_FROM:
            facts["lfs"] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 130,
            }
        return facts

    def _send_file(
        self, request: BaseHTTPRequestHandler, seen: Request, name: str, content: bytes, *, with_body: bool
    ) -> None:
        threading.Event().wait(self.faults.slow)
        if self.faults.cdn and len(content) >= LFS_FROM:
            request.send_response(302)
            request.send_header("Location", self.faults.cdn + urlsplit(request.path).path)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if wanted and not self.faults.no_ranges:
            start = int(wanted[1])
        etag = hashlib.sha256(content).hexdigest() if len(content) >= LFS_FROM else blob_id(content)
        if name in self.faults.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        request.send_response(206 if start else 200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{etag}"')
        request.send_header("Accept-Ranges", "bytes")
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.faults.no_length:
            request.send_header("Connection", "close")
            request.close_connection = True
        else:
            request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        if not with_body:
            return
        body = b"" if name in self.faults.cut_always else content[start : self.faults.break_after.pop(name, None)]
        seen.sent = len(body)
        with suppress(ConnectionError):  # who breaks off reads no further
            request.wfile.write(body)
        if len(body) < len(content) - start:
            request.wfile.flush()
            request.close_connection = True

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str | None) -> None:
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()
