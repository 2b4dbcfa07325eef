"""A model hub on loopback: enough of huggingface.co's API to download from, with faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
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

    corrupt: set[str] = field(default_factory=set)
    status: dict[str, int] = field(default_factory=dict)
    """HTTP status for every request whose path has this in it."""

    token: str | None = None
    no_ranges: bool = False
    bare_listing: bool = False
    """A mirror that lists names without sizes and hashes."""

    slow: float = 0.0
    """Seconds to wait before each file."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    sent: int
    """Bytes of the body that were sent."""


class FakeHub:
    """`with FakeHub({"owner/name": {"file": b"..."}}) as hub: ... hub.url`."""

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos = repos
        self.faults = Faults()
        self.requests: list[Request] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

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
        path = urlsplit(request.path).path  # the whole URL when asked as a proxy
        sent = 0
        try:
            sent = self._route(request, path, with_body=with_body)
        finally:
            self.requests.append(Request(request.command, path, dict(request.headers), sent))

    def _route(self, request: BaseHTTPRequestHandler, path: str, *, with_body: bool) -> int:
        for part, status in self.faults.status.items():
            if part in path:
                return self._refuse(request, status, "GatedRepo" if status == 403 else None)
        if self.faults.token and request.headers.get("Authorization") != f"Bearer {self.faults.token}":
            return self._refuse(request, 401, "RepoNotFound")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/main", path):
            return self._list(request, match[1])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = match.groups()
            if revision in ("main", COMMIT) and name in self.repos.get(repo, {}):
                return self._send_file(request, name, self.repos[repo][name], with_body=with_body)
            return self._refuse(request, 404, "EntryNotFound")
        return self._refuse(request, 404, "RepoNotFound")

    def _list(self, request: BaseHTTPRequestHandler, repo: str) -> int:
        if repo not in self.repos:
            return self._refuse(request, 404, "RepoNotFound")
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": [self._facts(*f) for f in self.repos[repo].items()]})
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body.encode())
        return len(body)

    def _facts(self, name: str, content: bytes) -> dict[str, Any]:
        if self.faults.bare_listing:
            return {"rfilename": name}
        facts: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
        if len(content) >= LFS_FROM:
            facts["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return facts

    def _send_file(self, request: BaseHTTPRequestHandler, name: str, content: bytes, *, with_body: bool) -> int:
        threading.Event().wait(self.faults.slow)
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
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        if not with_body:
            return 0
        body = content[start : self.faults.break_after.pop(name, None)]
        request.wfile.write(body)
        if len(body) < len(content) - start:
            request.wfile.flush()
            request.close_connection = True
        return len(body)

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str | None) -> int:
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return 0
