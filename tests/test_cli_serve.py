"""`stenograf serve`: how it starts and stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from live_server import live


def test_who_still_sends_when_it_stops_is_told_to_come_again(tmp_path: Path) -> None:
    with live(tmp_path) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(
                b"POST /api/v1/transcribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
                b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + bytes(100_000)
            )
            with server.client() as client:  # by now the request before is being read
                assert client.get("/health").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            answer = connection.recv(4000)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after:" in answer.lower()
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log
    assert [path for path in (tmp_path / "data" / "files").rglob("*") if path.is_file()] == []


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "stenograf", "serve", "--port", str(port)],
            env={**os.environ, "STENOGRAF_DATA_DIR": str(tmp_path)},
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"port {port} is used by another program" in done.stderr
    assert "--port" in done.stderr
