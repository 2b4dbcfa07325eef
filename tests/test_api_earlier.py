"""Clients of earlier services find what they know."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api_server import Server, serve, settings_for, until
from conftest import clips
from live_server import live
from stenograf.errors import AudioDamagedError
from stenograf.jobs.job import LANES, SYNC_PRIORITY
from transcripts import GOLDEN

SOUND = {"file": ("Совещание.ogg", b"sound")}
ENV = """\
# Written for an earlier service.
DEFAULT_MODEL = whisper-test
DEFAULT_LANGUAGE = ru
DEFAULT_DURATION = 60
LOG_LEVEL = INFO
ALLOWED_EXTENSIONS = mp3,wav,flac,ogg
REDIS_HOST = redis
REDIS_PORT = 6379
REDIS_DB = 0
REDIS_QUEUE_NAME = transcription
UPLOAD_DIR = uploads
WHISPER_BEAM_SIZE = 1
MAX_MODELS = 2
API_KEYS = first-key-of-three,second-key-of-three
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(settings_for(tmp_path_factory.mktemp("service"), max_upload=1)) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        running: Server = request.getfixturevalue("server")
        for job in running.service.store.page(limit=200).items:
            running.client.delete(f"/api/v1/tasks/{job.id}")
        assert running.files() == []


def failed(answer: httpx2.Response, status: int) -> str:
    """The error of an answer, which must have nothing else."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    return str(answer.json()["error"])


class TestLater:
    def test_from_the_file_to_the_text(self, server: Server) -> None:
        answer = server.client.post("/transcribe/", files=SOUND)
        assert answer.status_code == 200
        task = answer.json().pop("task_id")
        assert answer.json() == {"task_id": task, "status": "queued", "message": "Transcription is in progress"}
        for path in ("transcribe", "status", "result"):
            assert server.client.get(f"/{path}/{task}").json() == {"task_id": task, "status": "queued"}
        claim = server.service.leases.claim("test", LANES)
        assert claim is not None
        assert server.client.get(f"/status/{task}").json() == {"task_id": task, "status": "processing"}
        server.service.leases.finish(claim, GOLDEN)
        for path in ("transcribe", "status", "result"):
            assert server.client.get(f"/{path}/{task}").json() == {
                "task_id": task,
                "status": "done",
                "filename": "Совещание.ogg",
                "transcription": GOLDEN.text,
                "result": GOLDEN.to_dict(),
            }

    def test_an_error_is_a_text(self, server: Server) -> None:
        task = server.client.post("/transcribe/", files=SOUND).json()["task_id"]
        claim = server.service.leases.claim("test", LANES)
        assert claim is not None
        server.service.leases.fail(claim, AudioDamagedError("Nothing of it can be read.", "Record it again."))
        assert server.client.get(f"/status/{task}").json() == {
            "task_id": task, "status": "error", "error": "Nothing of it can be read. Record it again.",
        }  # fmt: skip

    def test_a_cancelled_task_has_no_result(self, server: Server) -> None:
        task = server.client.post("/transcribe/", files=SOUND).json()["task_id"]
        server.client.post(f"/api/v1/tasks/{task}/cancel")
        assert server.client.get(f"/result/{task}").json() == {"task_id": task, "status": "cancelled"}

    @pytest.mark.parametrize("place", ["params", "data"])
    def test_options_stand_in_the_query_or_in_the_form(self, server: Server, place: str) -> None:
        options = {"model": "whisper-test", "trim": "30", "language": "ru", "task": "transcribe"}
        request: dict[str, Any] = {place: options}
        task = server.client.post("/transcribe/", files=SOUND, **request).json()["task_id"]
        job = server.service.store.get(task)
        assert job.options == {"model": "whisper-test", "trim": 30.0, "language": "ru", "task": "transcribe"}

    def test_what_they_do_not_know_is_passed_over_and_empty_is_not_given(self, server: Server) -> None:
        form = {"beam_size": "none", "user": "7", "language": ""}
        answer = server.client.post("/transcribe/?verbose=1&trim=", files=SOUND, data=form)
        assert answer.status_code == 200, answer.text
        assert server.service.store.get(answer.json()["task_id"]).options == {}

    def test_a_value_that_makes_no_sense(self, server: Server) -> None:
        assert "minus" in failed(server.client.post("/transcribe/?trim=minus", files=SOUND), 422)
        assert "Klingon" in failed(server.client.post("/transcribe/", files=SOUND, data={"language": "Klingon"}), 422)
        assert "hueg" in failed(server.client.post("/transcribe/?model=hueg", files=SOUND), 422)

    def test_whispers_own_names_are_models(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, offline=False)) as online:  # nothing is fetched before a worker wants it
            names = {"base": "base", "large": "large-v3", "turbo": "turbo", "whisper-base": "base", "Tiny": "tiny"}
            for sent, kept in names.items():
                task = online.client.post("/transcribe/", params={"model": sent}, files=SOUND).json()["task_id"]
                assert online.service.store.get(task).options["model"] == kept

    @pytest.mark.parametrize("path", ["/transcribe/x", "/status/x", "/result/x", "/status/%00", "/result/a%2Fb"])
    def test_an_unknown_task(self, server: Server, path: str) -> None:
        failed(server.client.get(path), 404)


class TestNow:
    def test_the_answer_is_the_text(self, server: Server) -> None:
        with _worker(server) as seen:
            answer = server.client.post("/transcribe?language=ru", files=SOUND)
        assert answer.status_code == 200
        assert answer.json() == {"text": GOLDEN.text, "language": "ru", "duration": GOLDEN.duration}
        (job,) = seen
        assert job.options == {"language": "ru"}
        assert job.priority == SYNC_PRIORITY

    def test_an_error_is_the_answer(self, server: Server) -> None:
        with _worker(server, AudioDamagedError("Nothing of it can be read.", "Record it again.")):
            answer = server.client.post("/transcribe", files=SOUND)
        assert failed(answer, 422) == "Nothing of it can be read. Record it again."

    def test_who_hangs_up_cancels(self, server: Server) -> None:
        request = server.client.build_request("POST", "/transcribe", files=SOUND)
        body = request.read()
        head = f"POST /transcribe HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        kind = f"content-type: {request.headers['content-type']}\r\n\r\n"
        with server.connect() as connection:
            connection.sendall((head + kind).encode() + body)
            until(lambda: server.service.store.page().items)
        until(lambda: server.service.store.page().items[0].state == "cancelled")


class TestBothCalls:
    @pytest.fixture(params=["/transcribe", "/transcribe/"])
    def path(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_no_file(self, server: Server, path: str) -> None:
        for request in ({}, {"data": {"model": "base"}}, {"files": {"model": (None, "base")}}, {"json": {"file": "x"}}):
            answer = server.client.post(path, **request)
            assert answer.status_code == 400
            assert answer.json() == {"error": "No file provided"}

    def test_what_is_wrong_with_a_file(self, server: Server, path: str) -> None:
        assert "audio" in failed(server.client.post(path, files={"audio": ("a.ogg", b"x")}), 400)
        failed(server.client.post(path, files={"file": ("a.ogg", b"")}), 422)
        failed(server.client.post(path, files={"file": ("a.ogg", bytes(1_000_001))}), 413)

    def test_other_methods(self, server: Server, path: str) -> None:
        failed(server.client.get(path), 405)
        failed(server.client.delete(path), 405)


def test_the_health_that_they_ask_for(server: Server) -> None:
    found = server.client.get("/health").json()
    assert found["status"] == "ok"
    assert found["model"] == "whisper-test"


def test_a_key_is_asked_for_and_tasks_of_others_are_unknown(tmp_path: Path) -> None:
    with serve(settings_for(tmp_path, auth=True, api_keys=("k" * 16, "l" * 16), rate_requests=1)) as server:
        failed(server.client.post("/transcribe", files=SOUND), 401)
        failed(server.client.post("/transcribe/", files=SOUND), 401)
        mine = {"X-API-Key": "k" * 16}
        task = server.client.post("/transcribe/", files=SOUND, headers=mine).json()["task_id"]
        for path in ("transcribe", "status", "result"):
            failed(server.client.get(f"/{path}/{task}"), 401)
            failed(server.client.get(f"/{path}/{task}", headers={"X-API-Key": "l" * 16}), 404)
        for _ in range(5):  # however often they ask
            assert server.client.get(f"/status/{task}", headers=mine).status_code == 200


def test_an_old_settings_file_starts_the_service(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / ".env").write_text(ENV, "utf-8")
    clip = next(clip for clip in clips() if clip.language == "ru" and "whisper-test" in clip.exact)
    key = {"X-API-Key": "first-key-of-three"}
    # What `live` would set must not stand above the file.
    with live(folder, default_model="", auth="") as server, server.client() as client:
        assert client.get("/health").json()["model"] == "whisper-test"
        files = {"file": (clip.path.name, clip.path.read_bytes())}
        failed(client.post("/transcribe", files=files), 401)
        said = client.post("/transcribe", files=files, headers=key)
        assert said.status_code == 200, said.text
        assert said.json()["text"] == clip.text
        assert said.json()["language"] == "ru"
        assert said.json()["duration"] == pytest.approx(clip.duration, abs=0.1)
        task = client.post("/transcribe/", params={"trim": "1"}, files=files, headers=key).json()["task_id"]
        until(lambda: client.get(f"/status/{task}", headers=key).json()["status"] == "done", 60, 0.5)
        result = client.get(f"/result/{task}", headers=key).json()
        assert result["filename"] == clip.path.name
        assert result["result"]["duration"] == pytest.approx(1, abs=0.1)
        assert clip.text.startswith(result["transcription"][:5])
        assert "txt" in failed(client.post("/transcribe/", files={"file": ("a.txt", b"x")}, headers=key), 415)
        assert any(path.is_file() for path in (folder / "uploads").rglob("*"))


class _worker:
    """Takes the next job as soon as there is one, and finishes it, or lets it fail; gives the jobs that it took."""

    def __init__(self, server: Server, error: AudioDamagedError | None = None) -> None:
        self._server = server
        self._error = error
        self._jobs: list[Any] = []
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> list[Any]:
        self._thread.start()
        return self._jobs

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _work(self) -> None:
        leases = self._server.service.leases
        deadline = time.monotonic() + 20
        while (claim := leases.claim("test", LANES)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if claim is None:
            return
        self._jobs.append(claim.job)
        if self._error:
            leases.fail(claim, self._error)
        else:
            leases.finish(claim, GOLDEN)
