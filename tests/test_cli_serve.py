"""`stenograf serve`: how it starts and stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from api_server import until
from live_server import live

TESTS = Path(__file__).parent


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


def test_a_default_model_that_nobody_has_ends_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stenograf", "serve", "--port", "0", "-m", "nonesuch"],
        env={**os.environ, "STENOGRAF_DATA_DIR": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "nonesuch" in done.stderr


def test_workers_alone_do_the_jobs_of_a_service(tmp_path: Path) -> None:
    with live(tmp_path, "--workers", "1", "--slots", "1") as server, server.client() as client:
        environment = {
            **os.environ,
            "STENOGRAF_DATA_DIR": str(tmp_path / "data"),
            "STENOGRAF_MODELS_DIR": str(TESTS / "models"),
            "STENOGRAF_DEFAULT_MODEL": "whisper-test",
            "STENOGRAF_OFFLINE": "true",
        }
        with (tmp_path / "worker.log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "stenograf", "worker"], env=environment, cwd=tmp_path, stdout=log, stderr=log
            )
        try:
            until(lambda: "is loaded" in (tmp_path / "worker.log").read_text(), 60)
            data = (TESTS / "audio" / "ru-01.flac").read_bytes()
            sent = [
                client.post("/api/v1/transcribe", files={"file": (f"{n}.flac", data)}).json()["task_id"]
                for n in range(12)
            ]
            until(lambda: all(client.get(f"/api/v1/tasks/{i}").json()["status"] == "done" for i in sent), 60)
        finally:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
    told = (tmp_path / "worker.log").read_text()
    assert " done " in told, "it had its share"
    assert "Traceback" not in told
