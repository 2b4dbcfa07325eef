"""A receiver of webhooks on this machine: it checks what comes, and now and then hangs up without an answer."""

from __future__ import annotations

import json
import random
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from standardwebhooks import Webhook

SECRET = "whsec_" + "c3Rlbm9ncmFmJ3MgY2hhb3MgdGVzdHMh"


class Receiver:
    """Counts what arrives; a message may come twice, under one id."""

    def __init__(self, seed: int, *, hang_ups: float = 0.05) -> None:
        """So large a share of the messages is taken, and not answered, when it comes for the first time."""
        self.ids: dict[str, set[str]] = defaultdict(set)
        """Task -> the ids of the messages about it."""
        self.types: dict[str, str] = {}
        """Message -> its type."""
        self.deliveries = 0
        self.hung_up = 0
        self.faults: list[str] = []
        """What should not have come."""
        self._random = random.Random(seed)
        self._hang_ups = hang_ups
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes, headers: dict[str, str]) -> bool:
        """Write a message down; False: hang up."""
        with self._lock:
            try:
                Webhook(SECRET).verify(body, headers)
                message = json.loads(body)
                ours, task = headers["webhook-id"], message["data"]["task_id"]
            except Exception as error:
                self.faults.append(f"{type(error).__name__}: {error}, {headers}, {body!r}")
                return True
            self.deliveries += 1
            known = ours in self.types
            if known and self.types[ours] != message["type"]:
                self.faults.append(f"{ours} came as {self.types[ours]} and as {message['type']}")
            self.types[ours] = message["type"]
            self.ids[task].add(ours)
            if not known and self._random.random() < self._hang_ups:
                self.hung_up += 1
                return False
            return True

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self.take

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:  # its sender was killed
                    self.close_connection = True
                    return
                if not take(body, {name.lower(): value for name, value in self.headers.items()}):
                    self.close_connection = True
                    return
                self.send_response(204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler
