"""Connections that do not say what they want, over a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from stenograf.api import patience
from stenograf.api.patience import PatientProtocol


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(patience, "HEADER_SECONDS", 0.5)
    app = Starlette(routes=[Route("/", lambda _request: PlainTextResponse("here"))])
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=PatientProtocol, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX"])
def test_half_a_head_is_not_waited_for(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        assert connection.recv(100) == b"", "closed by the server"


def test_a_request_that_came_may_stay_and_the_next_is_timed_again(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(b"here"):
                answer += connection.recv(1000)
            time.sleep(0.7)  # longer than a head may take
        connection.sendall(b"GET / HTTP/1.1\r\nX")
        assert connection.recv(100) == b""
