"""The command lines and programs of docs/api.md, as they stand there, against a real service."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from api_server import settings_for
from clients import client
from conftest import ROOT, clips
from live_server import LiveServer, live
from stenograf.runtime import Runtime

PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"
RECORDING = "https://example.com/meeting.ogg"
HOOK = "127.0.0.1:9000"
SECRET = "whsec_" + "QUJD" * 8
CLIENT = "openai3"
"""The environment that has all the packages that the programs import."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


class Reader:
    """Follows the page with a service, a recording, and the tools that it takes for granted."""

    def __init__(self, server: LiveServer, folder: Path, key: str, recording: str, hook: int) -> None:
        self.folder = folder
        self._places = {ADDRESS: server.url, RECORDING: recording, HOOK: f"127.0.0.1:{hook}"}
        self._python_hook = {'("127.0.0.1", 9000)': f'("127.0.0.1", {hook})'}
        self._environment = {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),  # curl finds its settings there
            "LC_ALL": "C.UTF-8",
            "KEY": key,
            "WEBHOOK_SECRET": SECRET,
        }

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sh(self, code: str) -> subprocess.Popen[str]:
        return self.start(["sh", "-eu", "-c", self._placed(code)])

    def python(self, code: str) -> subprocess.Popen[str]:
        return self.start([str(client(CLIENT)), "-W", "error", "-c", self._placed(code)])

    def _placed(self, code: str) -> str:
        for old, new in {**self._places, **self._python_hook}.items():
            code = code.replace(old, new)
        return code


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    clip = next(clip for clip in clips() if clip.language == "ru" and "whisper-test" in clip.exact)
    shutil.copy(clip.path, folder / "meeting.ogg")
    (folder / "said.txt").write_text(clip.text, "utf-8")
    (folder / ".curlrc").write_text("silent\nshow-error\nfail-with-body\nmax-time = 60\n", "ascii")
    jq = folder / "jq"
    jq.write_text('#!/bin/sh\nexec python3 -c "import json, sys; print(json.load(sys.stdin)[sys.argv[2][1:]])" "$@"\n')
    jq.chmod(0o755)
    service = tmp_path_factory.mktemp("service")
    settings = replace(settings_for(service / "data"), auth=True)
    runtime = Runtime(settings)
    runtime.database.migrate()
    _, key = runtime.keys.create("reader")
    runtime.database.close()
    chosen = {"auth": "true", "rate_uploads": "0", "rate_requests": "0", "private_networks": "127.0.0.0/8"}
    with _files(folder) as files, live(service, **chosen) as server:
        yield Reader(server, folder, key, f"{files}/meeting.ogg", _free_port())


def test_the_command_lines(reader: Reader) -> None:
    """All of them in one go: what one of them sets, the next ones use."""
    receiver = reader.python(next(block for block in blocks("python") if "HTTPServer(" in block))
    try:
        _until_listening(reader, receiver)
        code = "\n".join(f"{block}\necho; echo '=== {number}'" for number, block in enumerate(blocks("sh")))
        done = reader.sh(code)
        out, errors = done.communicate(timeout=120)
        assert done.returncode == 0, f"{out}\n{errors}"
        assert receiver.stdout is not None
        kind, task = receiver.stdout.readline().split()
    finally:
        receiver.kill()
        receiver.communicate()
    said = (reader.folder / "said.txt").read_text("utf-8")
    answers = re.split(r"\n=== \d+\n", out)
    events = next(answer for answer in answers if "event: done" in answer)
    assert "event: segment" in events
    assert said in json.loads(next(answer for answer in answers if '"segments"' in answer).partition("\n")[0])["text"]
    assert said.split()[0] in (reader.folder / "meeting.srt").read_text("utf-8")
    sent = next(answer for answer in answers if re.search(r'"links"', answer) and task in answer)
    assert kind == "task.done"
    assert json.loads(sent)["task_id"] == task
    assert "00:00:00,000" in out or "00:00:00," in out  # subtitles by OpenAI's API
    assert "stenograf-task-id" in out.lower()
    assert '"duration"' in next(answer for answer in answers if "Transcription is in progress" in answer)


def test_the_programs(reader: Reader) -> None:
    programs = [block for block in blocks("python") if "HTTPServer(" not in block]
    assert len(programs) == 3
    said = (reader.folder / "said.txt").read_text("utf-8")
    client(CLIENT)  # made once, not by each of them

    def run(code: str) -> str:
        done = reader.python(code)
        out, errors = done.communicate(timeout=120)
        assert done.returncode == 0, f"{out}\n{errors}"
        return out

    with ThreadPoolExecutor(len(programs)) as pool:
        polled, listened, asked = pool.map(run, programs)
    assert polled.strip() == said
    assert re.search(r"^ +\d+\.\d\d \S", listened, re.MULTILINE)
    assert "done {" in listened
    assert asked.splitlines() == [said, said]


def test_every_address_on_the_page_is_one_of_the_service(reader: Reader) -> None:
    paths = [*json.loads(_get(reader, "/openapi.json"))["paths"], "/api/v1/tasks/{task_id}/ws", "/docs", "/redoc"]
    templates = [re.sub(r"\{[^}]+\}", "[^/]+", path) for path in paths]
    called = set(re.findall(r"`(?:GET|POST|DELETE|WS) (/[^`?,\s]*)", PAGE))
    called |= set(re.findall(r"`(/[a-z0-9/]+)`", PAGE)) - {"/v1", "/api/v1"}
    assert called
    for path in called:
        assert any(re.fullmatch(template, path) for template in templates), path


def _get(reader: Reader, path: str) -> str:
    done = reader.sh(f"curl {ADDRESS}{path}")
    out, errors = done.communicate(timeout=60)
    assert done.returncode == 0, errors
    return out


@contextmanager
def _files(folder: Path) -> Iterator[str]:
    """A web server for the files of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _until_listening(reader: Reader, process: subprocess.Popen[str]) -> None:
    (place,) = (place for place in reader._places.values() if "://" not in place)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            socket.create_connection(("127.0.0.1", int(place.rpartition(":")[2])), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("nobody listens")
