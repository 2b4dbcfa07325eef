"""Recordings in, transcripts out, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api_server import Server, serve, settings_for, until
from stenograf.errors import AudioDamagedError, OutOfMemoryError
from stenograf.formats import FORMATS, render
from stenograf.jobs.job import LANES
from stenograf.transcript import Segment, Transcript
from transcripts import GOLDEN, transcript_of

NAME = "Совещание «12 ноября».ogg"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    with serve(settings_for(folder, max_upload=1)) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the service without tasks, and no test leaves a file that no task names."""
    yield
    if "server" not in request.fixturenames:
        return
    running: Server = request.getfixturevalue("server")
    for job in running.service.store.page(limit=200).items:
        assert running.client.delete(f"/api/v1/tasks/{job.id}").status_code == 204
    assert running.files() == []


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, which must be whole."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert set(found) - {"errors"} == {
        "type", "title", "status", "detail", "code", "hint", "instance", "request_id",
    }  # fmt: skip
    assert found["code"] == code
    assert found["status"] == status
    assert found["type"] == f"/docs/errors#{code}"
    assert found["detail"].endswith(".")
    assert found["instance"] == answer.url.path
    assert found["request_id"] == answer.headers["x-request-id"]
    return dict(found)


def upload(name: bytes, value: bytes, *, filename: bytes = b"") -> bytes:
    file = b'; filename="' + filename + b'"' if filename else b""
    return b'--edge\r\ncontent-disposition: form-data; name="' + name + b'"' + file + b"\r\n\r\n" + value + b"\r\n"


class TestSending:
    def test_from_the_file_to_the_result(self, server: Server) -> None:
        answer = server.send(b"some sound", NAME, language="Russian", word_timestamps="yes")
        assert answer.status_code == 202
        accepted = answer.json()
        path = f"/api/v1/tasks/{accepted['task_id']}"
        assert answer.headers["location"] == path
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert accepted["status"] == "queued"
        assert accepted["position"] == 0
        assert accepted["estimated_seconds"] >= 0
        task = server.client.get(path).json()
        assert task["filename"] == NAME
        assert task["size"] == 10
        assert task["options"] == {"language": "ru", "word_timestamps": True}
        assert task["progress"] == 0
        assert task["stage"] == "waiting"
        assert task["created_at"].endswith("Z")
        assert task["links"] == {
            "self": path, "result": None, "download": None, "audio": f"{path}/audio", "events": f"{path}/events",
        }  # fmt: skip
        assert "10" in server.client.get(path + "/audio").headers["content-length"]
        refused = problem(server.client.get(path + "/result"), 409, "task_state")
        assert "queued" in refused["detail"]

        job = server.finish_next()
        assert job.id == accepted["task_id"]
        task = server.client.get(path).json()
        assert task["status"] == "done"
        assert task["progress"] == 1
        assert task["attempt"] == 1
        assert task["language"] == "ru"
        assert task["audio_seconds"] == GOLDEN.duration
        assert task["finished_at"] >= task["started_at"] >= task["created_at"]
        assert task["expires_at"] > task["finished_at"]
        assert task["position"] is None
        assert server.client.get(task["links"]["result"]).json() == GOLDEN.to_dict()

    @pytest.mark.parametrize("name", FORMATS)
    def test_every_format_can_be_downloaded(self, server: Server, name: str) -> None:
        path = f"/api/v1/tasks/{server.sent(name=NAME)}/download"
        problem(server.client.get(path), 409, "task_state")
        server.finish_next()
        answer = server.client.get(path, params={"format": name})
        assert answer.content == render(Transcript.from_dict(GOLDEN.to_dict()), name)
        assert answer.headers["content-type"] == FORMATS[name].media_type
        disposition = answer.headers["content-disposition"]
        assert disposition.startswith("attachment; ")
        assert f"%C2%BB.{name}" in disposition.split("filename*=UTF-8''")[1]

    def test_an_unknown_format(self, server: Server) -> None:
        found = problem(server.client.get(f"/api/v1/tasks/{server.sent()}/download?format=strt"), 422, "format_unknown")
        assert "srt" in found["hint"]

    def test_all_options_are_kept_with_their_types(self, server: Server) -> None:
        task = server.sent(
            model="whisper-test", language="auto", task="transcribe", prompt="  Имена: Аня.", hotwords="Питон",
            temperature="0.2", beam_size="3", word_timestamps="0", vad="off", diarize="false", speakers="", trim="1.5",
            priority="2", retention="0",
        )  # fmt: skip
        job = server.service.store.get(task)
        assert job.options == {
            "model": "whisper-test", "language": "auto", "task": "transcribe", "prompt": "Имена: Аня.",
            "hotwords": "Питон", "temperature": 0.2, "beam_size": 3, "word_timestamps": False, "vad": False,
            "trim": 1.5,
        }  # fmt: skip
        assert (job.priority, job.retention, job.lane) == (2, 0, "short")
        server.finish_next()
        assert server.client.get(f"/api/v1/tasks/{task}").json()["expires_at"] is None

    @pytest.mark.parametrize(
        ("options", "code", "says"),
        [
            ({"langage": "ru"}, "option_invalid", "language"),
            ({"file_name": "x"}, "option_invalid", "file_name"),
            ({"beam_size": "1.5"}, "option_invalid", "beam_size"),
            ({"beam_size": "21"}, "option_invalid", "20"),
            ({"temperature": "nan"}, "option_invalid", "temperature"),
            ({"vad": "perhaps"}, "option_invalid", "vad"),
            ({"task": "sing"}, "option_invalid", "sing"),
            ({"priority": "0"}, "option_invalid", "priority"),
            ({"retention": "-1"}, "option_invalid", "retention"),
            ({"trim": "inf"}, "option_invalid", "trim"),
            ({"diarize": "true"}, "option_invalid", "speakers"),
            ({"speakers": "2"}, "option_invalid", "speakers"),
            ({"prompt": "x" * 4001}, "option_invalid", "4001"),
            ({"language": "Rusian"}, "language_unknown", "russian"),
            ({"model": "gigam"}, "model_unknown", "gigaam"),
            ({"model": "../../etc"}, "model_unknown", "etc"),
            ({"model": "turbo"}, "model_not_installed", "turbo"),
            ({"webhook_url": "http://127.0.0.1/"}, "address_refused", "127.0.0.1"),
            ({"webhook_url": "ftp://example.com/"}, "address_refused", "ftp"),
            ({"webhook_secret": "whsec_" + "QUJD" * 10}, "option_invalid", "webhook_url"),
            ({"webhook_url": "http://127.0.0.1/", "webhook_secret": "whsec_QUJD"}, "option_invalid", "24"),
        ],
    )
    def test_an_option_that_makes_no_sense(self, server: Server, options: dict[str, str], code: str, says: str) -> None:
        found = problem(server.send(b"sound", "a.ogg", **options), 422, code)
        assert says in found["detail"] + found["hint"]
        assert str(server.service.settings.models_dir) not in json.dumps(found)
        assert server.files() == []
        assert server.service.store.page().items == ()

    def test_an_option_that_is_given_twice(self, server: Server) -> None:
        files = [("vad", (None, "true")), ("vad", (None, "false")), ("file", ("a.ogg", b"sound"))]
        found = problem(server.client.post("/api/v1/transcribe", files=files), 422, "option_invalid")  # type: ignore[arg-type]
        assert "twice" in found["detail"]

    def test_options_in_the_address_are_not_passed_over(self, server: Server) -> None:
        files = {"file": ("a.ogg", b"sound")}
        found = problem(server.client.post("/api/v1/transcribe?model=base", files=files), 422, "option_invalid")
        assert "model" in found["detail"]

    def test_what_is_no_form(self, server: Server) -> None:
        problem(server.client.post("/api/v1/transcribe", data={"a": "b"}), 415, "unsupported_media_type")
        problem(server.client.post("/api/v1/transcribe", content=b"sound"), 415, "unsupported_media_type")
        problem(server.client.post("/api/v1/transcribe", files={"language": (None, "ru")}), 400, "bad_request")
        problem(server.send(b""), 422, "file_empty")
        broken = upload(b"file", b"sound", filename=b"a.ogg")  # without its end
        headers = {"content-type": "multipart/form-data; boundary=edge"}
        problem(server.client.post("/api/v1/transcribe", content=broken, headers=headers), 400, "bad_request")
        assert server.files() == []

    def test_a_file_that_is_too_large_is_refused_before_it_is_sent(self, server: Server) -> None:
        with server.connect() as connection:
            connection.sendall(
                b"POST /api/v1/transcribe HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900000000\r\n"
                b"content-type: multipart/form-data; boundary=edge\r\n\r\n" + upload(b"file", b"", filename=b"a")[:-2]
            )
            assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")

    def test_a_file_that_turns_out_to_be_too_large(self, server: Server) -> None:
        def body() -> Iterator[bytes]:
            yield upload(b"file", b"", filename=b"a.ogg")[:-2]
            for _ in range(20):
                yield bytes(100_000)

        headers = {"content-type": "multipart/form-data; boundary=edge"}
        answer = server.client.post("/api/v1/transcribe", content=body(), headers=headers)
        problem(answer, 413, "upload_too_large")
        assert server.files() == []

    def test_a_client_that_hangs_up_leaves_nothing(self, server: Server) -> None:
        with server.connect() as connection:
            connection.sendall(
                b"POST /api/v1/transcribe HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900000\r\n"
                b"content-type: multipart/form-data; boundary=edge\r\n\r\n"
                + upload(b"file", bytes(600_000), filename=b"a.ogg")
            )
            until(lambda: any(path.stat().st_size for path in server.files()))
        until(lambda: server.files() == [])
        assert server.service.store.page().items == ()

    def test_suffixes_may_be_limited(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, allowed_extensions=(".mp3", ".ogg"))) as server:
            server.sent(name="a.OGG")
            found = problem(server.send(name="a.exe"), 415, "unsupported_media_type")
            assert ".mp3" in found["hint"]
            assert len(server.files()) == 1

    def test_a_full_queue(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, max_queued=1)) as server:
            server.sent()
            answer = server.send()
            problem(answer, 503, "queue_full")
            assert int(answer.headers["retry-after"]) > 0
            assert len(server.files()) == 1

    def test_workers_are_woken_once_the_task_is_there(self, server: Server) -> None:
        seen: list[int] = []
        server.service.wake = lambda: seen.append(len(server.service.store.page().items))
        try:
            server.sent()
            server.send(nonsense="1")
        finally:
            server.service.wake = lambda: None
        assert seen == [1]

    def test_a_trimmed_recording_is_a_short_one(self, server: Server) -> None:
        task = server.sent(bytes(900_000), "a.amr")
        assert server.service.store.get(task).lane == "long"
        task = server.sent(bytes(900_000), "a.amr", trim="30")
        assert server.service.store.get(task).lane == "short"


class TestByAddress:
    @pytest.fixture
    def open_server(self, tmp_path: Path) -> Iterator[Server]:
        with serve(settings_for(tmp_path, private_networks=("127.0.0.0/8",))) as running:
            yield running

    def test_json_names_a_recording_and_options_with_types(self, open_server: Server) -> None:
        body = {
            "url": "http://127.0.0.1:9/%D0%B7%D0%B2%D1%83%D0%BA.mp3?x=1", "beam_size": 2, "vad": False, "prompt": None,
            "webhook_url": "http://127.0.0.1:9/hook", "webhook_secret": "whsec_" + "QUJD" * 8,
        }  # fmt: skip
        answer = open_server.client.post("/api/v1/transcribe", json=body)
        assert answer.status_code == 202, answer.text
        job = open_server.service.store.get(answer.json()["task_id"])
        assert job.url == body["url"]
        assert job.filename == "звук.mp3"
        assert job.options == {"beam_size": 2, "vad": False}
        assert (job.webhook_url, job.webhook_secret) == (body["webhook_url"], body["webhook_secret"])
        shown = open_server.client.get(f"/api/v1/tasks/{job.id}")
        assert shown.json()["links"]["audio"] is None
        assert "whsec_" not in shown.text
        problem(open_server.client.get(f"/api/v1/tasks/{job.id}/audio"), 404, "file_missing")

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"{", 400, "bad_request"),
            (b"[]", 400, "bad_request"),
            (b"[" * 100_000, 400, "bad_request"),
            (b'{"url": "https://a.example/", "trim": NaN}', 400, "bad_request"),
            (b'{"url": "' + b"x" * 300_000 + b'"}', 413, "upload_too_large"),
            (b"{}", 422, "option_invalid"),
            (b'{"url": 7}', 422, "option_invalid"),
            (b'{"url": "http://10.0.0.1/a.mp3"}', 422, "address_refused"),
            (b'{"url": "http://127.0.0.1/a.mp3", "vad": "si"}', 422, "option_invalid"),
            (b'{"url": "http://127.0.0.1/a.mp3", "beam_size": true}', 422, "option_invalid"),
            (b'{"url": "http://127.0.0.1/a.mp3", "beam_size": [1]}', 422, "option_invalid"),
            (b'{"url": "http://127.0.0.1/a.mp3", "trim": {}}', 422, "option_invalid"),
            (b'{"url": "http://127.0.0.1/a.mp3", "prompt": 5}', 422, "option_invalid"),
            (b'{"url": "http://127.0.0.1/a.mp3", "prompt": "\\ud800"}', 422, "option_invalid"),
        ],
    )
    def test_json_that_makes_no_sense(self, open_server: Server, body: bytes, status: int, code: str) -> None:
        headers = {"content-type": "application/json; charset=utf-8"}
        problem(open_server.client.post("/api/v1/transcribe", content=body, headers=headers), status, code)
        assert open_server.service.store.page().items == ()


class TestIdempotency:
    def test_the_same_request_gives_the_same_task(self, server: Server) -> None:
        def send(data: bytes, key: str, **options: str) -> httpx2.Response:
            return server.client.post(
                "/api/v1/transcribe",
                files={"file": ("a.ogg", data)},
                data=options,
                headers={"Idempotency-Key": key},
            )

        first, again = send(b"sound", '"one"'), send(b"sound", "one")
        assert first.json()["task_id"] == again.json()["task_id"]
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert len(server.files()) == 1
        problem(send(b"other", "one"), 422, "idempotency_conflict")
        problem(send(b"sound", "one", vad="false"), 422, "idempotency_conflict")
        problem(send(b"sound", "x" * 256), 400, "bad_request")
        problem(send(b"sound", '""'), 400, "bad_request")
        assert len(server.files()) == 1
        assert send(b"sound", "two").json()["task_id"] != first.json()["task_id"]

    def test_the_same_key_while_the_first_request_is_under_way(self, server: Server) -> None:
        body = upload(b"file", b"sound", filename=b"a.ogg") + b"--edge--\r\n"
        with server.connect() as connection:
            connection.sendall(
                b"POST /api/v1/transcribe HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nidempotency-key: k\r\n"
                b"content-type: multipart/form-data; boundary=edge\r\n"
                + f"content-length: {len(body)}\r\n\r\n".encode()
                + body[:10]
            )
            until(lambda: server.service.in_flight)
            headers = {"Idempotency-Key": "k"}
            files = {"file": ("a.ogg", b"sound")}
            answer = server.client.post("/api/v1/transcribe", files=files, headers=headers)
            problem(answer, 409, "request_in_flight")
            assert "retry-after" in answer.headers
            connection.sendall(body[10:])
            assert connection.recv(100).startswith(b"HTTP/1.1 202 ")
        assert not server.service.in_flight
        again = server.client.post("/api/v1/transcribe", files=files, headers=headers)
        assert again.headers["idempotency-replayed"] == "true"


class TestList:
    def test_pages_follow_each_other(self, server: Server) -> None:
        sent = [server.sent(str(number).encode(), f"{number}.ogg") for number in range(5)]
        seen: list[str] = []
        cursor = None
        for _ in range(3):
            page = server.client.get("/api/v1/tasks", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
            seen += [task["task_id"] for task in page.json()["items"]]
            cursor = page.json()["next"]
        assert cursor is None
        assert seen == sent[::-1]

    def test_filters(self, server: Server) -> None:
        said = transcript_of(Segment(0, 1, "Ёлки горели ярко"))
        first = server.sent(name="Отчёт.ogg")
        server.finish_next(said)
        second = server.sent(b"x", name="100%_other.ogg")

        def found(**parameters: Any) -> set[str]:
            answer = server.client.get("/api/v1/tasks", params=parameters)
            assert answer.status_code == 200, answer.text
            return {task["task_id"] for task in answer.json()["items"]}

        assert found() == {first, second}
        assert found(status="queued") == {second}
        assert found(status=["queued", "done"]) == {first, second}
        assert found(status="error") == set()
        assert found(q="оТЧЁТ") == {first}
        assert found(q="ГОРЕЛИ") == {first}
        assert found(q="%_") == {second}
        assert found(q="отчёт", status="queued") == set()

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "status=lost", "cursor=abc", "cursor=%00"])
    def test_a_question_that_makes_no_sense(self, server: Server, query: str) -> None:
        problem(server.client.get(f"/api/v1/tasks?{query}"), 422, "option_invalid")

    def test_what_is_wrong_is_named(self, server: Server) -> None:
        found = problem(server.client.get("/api/v1/tasks?limit=0&status=lost"), 422, "option_invalid")
        assert {error["param"] for error in found["errors"]} == {"limit", "status"}


class TestLife:
    def test_cancel_and_retry(self, server: Server) -> None:
        path = f"/api/v1/tasks/{server.sent()}"
        problem(server.client.post(path + "/retry"), 409, "task_state")
        assert server.client.post(path + "/cancel").json()["status"] == "cancelled"
        assert server.client.post(path + "/cancel").status_code == 200
        problem(server.client.get(path + "/result"), 409, "task_state")
        woken: list[bool] = []
        server.service.wake = lambda: woken.append(True)
        try:
            again = server.client.post(path + "/retry")
        finally:
            server.service.wake = lambda: None
        assert again.status_code == 202
        assert again.json()["status"] == "queued"
        assert again.json()["position"] == 0
        assert woken
        server.finish_next()
        problem(server.client.post(path + "/cancel"), 409, "task_state")
        problem(server.client.post(path + "/retry"), 409, "task_state")

    def test_an_error_is_shown(self, server: Server) -> None:
        path = f"/api/v1/tasks/{server.sent()}"
        claim = server.service.leases.claim("test", LANES)
        assert claim
        server.service.leases.fail(claim, AudioDamagedError("Nothing of it can be read.", "Record it again."))
        task = server.client.get(path).json()
        assert task["status"] == "error"
        assert task["error"] == {
            "code": "audio_damaged", "message": "Nothing of it can be read.", "hint": "Record it again.",
        }  # fmt: skip
        assert task["last_failure"] is None
        assert "Nothing of it" in problem(server.client.get(path + "/result"), 409, "task_state")["hint"]

    def test_what_is_tried_again_has_no_error(self, server: Server) -> None:
        path = f"/api/v1/tasks/{server.sent()}"
        claim = server.service.leases.claim("test", LANES)
        assert claim
        server.service.leases.fail(claim, OutOfMemoryError("The memory is full.", "Use a smaller model."))
        task = server.client.get(path).json()
        assert (task["status"], task["error"]) == ("queued", None)
        assert task["last_failure"]["code"] == "out_of_memory"

    def test_delete_takes_the_file_along(self, server: Server) -> None:
        path = f"/api/v1/tasks/{server.sent()}"
        assert len(server.files()) == 1
        answer = server.client.delete(path)
        assert answer.status_code == 204
        assert answer.content == b""
        assert server.files() == []
        for gone in (server.client.delete(path), server.client.get(path), server.client.post(path + "/cancel"),
                     server.client.post(path + "/retry"), server.client.get(path + "/result"),
                     server.client.get(path + "/download"), server.client.get(path + "/audio")):  # fmt: skip
            problem(gone, 404, "task_unknown")

    def test_positions_count_those_before(self, server: Server) -> None:
        server.sent(priority="9")
        assert server.send(b"2").json()["position"] == 0
        third = server.send(bytes(500_000)).json()
        assert third["position"] == 1
        assert third["estimated_seconds"] > 0

    def test_tasks_of_others_are_unknown(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, auth=True, api_keys=("k" * 16, "l" * 16))) as server:
            problem(server.send(), 401, "unauthorized")
            assert "Bearer" in server.send().headers["www-authenticate"]
            mine, other = {"X-API-Key": "k" * 16}, {"X-API-Key": "l" * 16}
            files = {"file": ("a.ogg", b"sound")}
            path = server.client.post("/api/v1/transcribe", files=files, headers=mine).headers["location"]
            assert server.client.get(path, headers=mine).status_code == 200
            for end in ("", "/result", "/download", "/audio"):
                problem(server.client.get(path + end, headers=other), 404, "task_unknown")
            problem(server.client.delete(path, headers=other), 404, "task_unknown")
            assert server.client.get("/api/v1/tasks", headers=other).json()["items"] == []


class TestAudio:
    DATA = bytes(range(256)) * 1000

    @pytest.fixture
    def audio(self, server: Server) -> str:
        return f"/api/v1/tasks/{server.sent(self.DATA, NAME)}/audio"

    def test_all_of_it(self, server: Server, audio: str) -> None:
        answer = server.client.get(audio)
        assert answer.content == self.DATA
        assert answer.headers["content-type"] == "audio/ogg"
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-disposition"].startswith("inline; ")
        assert answer.headers["x-content-type-options"] == "nosniff"
        head = server.client.head(audio)
        assert head.content == b""
        assert head.headers["content-length"] == str(len(self.DATA))

    @pytest.mark.parametrize(
        ("asked", "start", "end"), [("0-0", 0, 1), ("100-199", 100, 200), ("255990-", 255_990, 256_000),
                                    ("-10", 255_990, 256_000), ("255999-999999", 255_999, 256_000)]
    )  # fmt: skip
    def test_a_part(self, server: Server, audio: str, asked: str, start: int, end: int) -> None:
        answer = server.client.get(audio, headers={"Range": f"bytes={asked}"})
        assert answer.status_code == 206
        assert answer.content == self.DATA[start:end]
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/256000"

    def test_a_part_that_is_not_there(self, server: Server, audio: str) -> None:
        answer = server.client.get(audio, headers={"Range": "bytes=256000-"})
        problem(answer, 416, "range_not_satisfiable")
        assert answer.headers["content-range"] == "bytes */256000"

    @pytest.mark.parametrize("asked", ["bytes", "lines=1-2", "bytes=", "bytes=b-c", "bytes=5-2"])
    def test_a_range_that_cannot_be_read_counts_as_none(self, server: Server, audio: str, asked: str) -> None:
        answer = server.client.get(audio, headers={"Range": asked})
        assert answer.status_code == 200
        assert answer.content == self.DATA

    def test_a_part_of_what_was_seen_before(self, server: Server, audio: str) -> None:
        etag = server.client.head(audio).headers["etag"]
        same = server.client.get(audio, headers={"Range": "bytes=0-1", "If-Range": etag})
        assert same.status_code == 206
        other = server.client.get(audio, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
        assert other.status_code == 200

    def test_what_could_run_is_not_called_so(self, server: Server) -> None:
        answer = server.client.get(f"/api/v1/tasks/{server.sent(name='page.html')}/audio")
        assert answer.headers["content-type"] == "application/octet-stream"


def test_the_description_names_every_error(server: Server) -> None:
    described = server.client.get("/openapi.json").json()
    send = described["paths"]["/api/v1/transcribe"]["post"]
    form = send["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert {"file", "model", "webhook_secret", "retention"} <= set(form)
    assert {"202", "400", "401", "403", "408", "409", "413", "415", "422", "429", "500", "503", "507"} <= set(
        send["responses"]
    )
    assert "Problem" in described["components"]["schemas"]
    names = set(described["components"]["schemas"])
    for reference in _references(described):
        assert reference.removeprefix("#/components/schemas/") in names
    for path in described["paths"]:
        if not path.startswith(("/api/v1/tasks", "/api/v1/transcribe")):
            continue
        for operation in described["paths"][path].values():
            for status, response in operation["responses"].items():
                if status >= "400" and "content" in response:
                    assert set(response["content"]) == {"application/problem+json"}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)
