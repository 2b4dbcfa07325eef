"""What listeners hear of a task: server-sent events and a WebSocket, on a real service."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from api_server import SECONDS, Server, serve, settings_for, until
from stenograf.api import events
from stenograf.chunk import ChunkResult
from stenograf.errors import AudioDamagedError
from stenograf.jobs.job import LANES, Claim
from stenograf.transcript import Segment, Transcript, Word

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(settings_for(tmp_path_factory.mktemp("service"))) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the service without tasks, and no listener stays behind."""
    yield
    if "server" not in request.fixturenames:
        return
    running: Server = request.getfixturevalue("server")
    for job in running.service.store.page(limit=200).items:
        assert running.client.delete(f"/api/v1/tasks/{job.id}").status_code == 204
    until(lambda: not running.service.watcher._waiters)


def read(index: int, *texts: str) -> ChunkResult:
    """A chunk with a segment for each text."""
    segments = tuple(
        Segment(
            index * 10 + number + 1 / 3,
            index * 10 + number + 2 / 3,
            text,
            (Word(index * 10 + number + 1 / 3, index * 10 + number + 2 / 3, text, 0.9),),
            avg_logprob=-1 / 7,
        )
        for number, text in enumerate(texts)
    )
    return ChunkResult(index, index * 10.0, index * 10.0 + 10, segments, "ru", 0.9)


CHUNKS = (read(0, "Раз", "два"), read(1), read(2, "три"), read(3, "четыре", "пять", "шесть"))


def transcript_of(*chunks: ChunkResult, words: bool = False) -> Transcript:
    segments = [segment for chunk in chunks for segment in chunk.segments]
    if not words:
        segments = [Segment(s.start, s.end, s.text, avg_logprob=s.avg_logprob) for s in segments]
    return Transcript(tuple(segments), "ru", 0.9, 40.1234, "whisper-test", "faster-whisper", "cpu", "int8")


class Worker:
    """Does as a worker does with the next job."""

    def __init__(self, server: Server) -> None:
        self._server = server
        claim = server.service.leases.claim("test", LANES)
        assert claim is not None
        self.claim: Claim = claim
        self._tell()

    def reads(self, *chunks: ChunkResult, **learnt: Any) -> None:
        self._server.service.leases.append(self.claim, chunks, **learnt)
        self._tell()

    def learns(self, **learnt: Any) -> None:
        self._server.service.leases.renew(self.claim, **learnt)
        self._tell()

    def finishes(self, transcript: Transcript, *chunks: ChunkResult) -> None:
        self._server.service.leases.finish(self.claim, transcript, chunks)
        self._tell()

    def _tell(self) -> None:
        self._server.service.heard({"event": "job", "job": self.claim.id})


Heard = tuple[str, str | None, dict[str, Any]]
"""An event's name, id and data."""


class Listener:
    """Reads a stream of server-sent events."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.answer = answer
        self.comments = 0
        self.retry: str | None = None
        self._lines = answer.iter_lines()

    def __iter__(self) -> Iterator[Heard]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                if "data" in fields:
                    yield fields["event"], fields.get("id"), json.loads(fields["data"])
                fields = {}
                continue
            name, _, value = line.partition(":")
            if not name:
                self.comments += 1
            elif name == "retry":
                self.retry = value.strip()
            else:
                assert name not in fields
                fields[name] = value.removeprefix(" ")

    def next(self, name: str) -> Heard:
        """The next event of that name."""
        return next(heard for heard in self if heard[0] == name)


@contextmanager
def listening(server: Server, task: str, last: str | None = None, **options: Any) -> Iterator[Listener]:
    headers = {**STREAM, **({"Last-Event-ID": last} if last else {}), **options.pop("headers", {})}
    with server.client.stream("GET", f"/api/v1/tasks/{task}/events", headers=headers, **options) as answer:
        if answer.status_code != 200:
            answer.read()
        assert answer.status_code == 200, answer.text
        yield Listener(answer)


def all_of(server: Server, task: str, last: str | None = None, **options: Any) -> list[Heard]:
    with listening(server, task, last, **options) as listener:
        return list(listener)


def done_task(server: Server, **options: Any) -> str:
    """A task that was read in two attempts."""
    task = server.sent(**options)
    worker = Worker(server)
    worker.reads(CHUNKS[0])
    server.service.leases.release(worker.claim)
    worker = Worker(server)
    worker.reads(CHUNKS[1], CHUNKS[2])
    worker.finishes(transcript_of(*CHUNKS, words="word_timestamps" in options), CHUNKS[3])
    return task


class TestEvents:
    def test_from_the_queue_to_the_end(self, server: Server) -> None:
        task = server.sent()
        with listening(server, task) as listener:
            answer = listener.answer
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-accel-buffering"] == "no"
            name, number, data = next(iter(listener))
            assert (name, number) == ("progress", None)
            assert (data["status"], data["stage"], data["progress"], data["position"]) == ("queued", "waiting", 0, 0)
            assert listener.retry == str(events.RETRY_MILLISECONDS)
            worker = Worker(server)
            assert listener.next("progress")[2]["status"] == "processing"
            worker.learns(stage="transcribing", progress=0.25, model="whisper-test", device="cpu")
            _, _, data = listener.next("progress")
            assert (data["stage"], data["progress"], data["model"]) == ("transcribing", 0.25, "whisper-test")
            worker.reads(CHUNKS[0], progress=0.5)
            assert [listener.next("segment")[1] for _ in range(2)] == ["1.0", "1.1"]
            assert listener.next("progress")[2]["progress"] == 0.5
            worker.reads(CHUNKS[1], CHUNKS[2])
            worker.finishes(transcript_of(*CHUNKS), CHUNKS[3])
            rest = list(listener)
        assert [(name, number) for name, number, _ in rest if name != "progress"] == [
            ("segment", "1.2"), ("segment", "1.3"), ("segment", "1.4"), ("segment", "1.5"), ("done", None),
        ]  # fmt: skip
        path = f"/api/v1/tasks/{task}"
        assert rest[-1][2] == {
            "status": "done",
            "language": "ru",
            "duration": 40.123,
            "links": server.client.get(path).json()["links"],
        }
        assert rest[-1][2]["links"]["result"] == f"{path}/result"

    @pytest.mark.parametrize("options", [{}, {"word_timestamps": "true"}])
    def test_the_segments_are_those_of_the_result(self, server: Server, options: dict[str, str]) -> None:
        task = done_task(server, **options)
        result = server.client.get(f"/api/v1/tasks/{task}/result").json()
        assert [data for name, _, data in all_of(server, task) if name == "segment"] == result["segments"]
        assert all(("words" in segment) == bool(options) for segment in result["segments"])

    def test_a_segment_is_named_by_the_attempt_that_read_it(self, server: Server) -> None:
        heard = all_of(server, done_task(server))
        assert [number for _, number, _ in heard] == ["1.0", "1.1", "2.2", "2.3", "2.4", "2.5", None]

    @pytest.mark.parametrize("way", ["header", "query"])
    def test_whoever_comes_back_gets_the_rest_and_nothing_twice(self, server: Server, way: str) -> None:
        task = done_task(server)
        whole = all_of(server, task)
        for place, (_, number, _) in enumerate(whole[:-1]):
            if way == "header":
                again = all_of(server, task, number)
            else:
                again = all_of(server, task, params={"last_event_id": number})
            assert whole[: place + 1] + again == whole

    def test_a_browser_that_comes_back_sends_what_it_saw_in_the_header(self, server: Server) -> None:
        heard = all_of(server, done_task(server), "2.4", params={"last_event_id": "1.0"})
        assert [number for _, number, _ in heard] == ["2.5", None]

    @pytest.mark.parametrize("last", ["x", "1", "1.", "-1.0", "1.0.0", "1.999", "٣.٠", "9" * 40 + ".1"])
    def test_an_id_that_was_never_sent_counts_as_none(self, server: Server, last: str) -> None:
        task = done_task(server)
        assert all_of(server, task, params={"last_event_id": last}) == all_of(server, task)

    def test_coming_back_in_the_middle(self, server: Server) -> None:
        task = server.sent()
        worker = Worker(server)
        worker.reads(CHUNKS[0])
        with listening(server, task) as listener:
            assert listener.next("segment")[1] == "1.0"
        worker.reads(*CHUNKS[1:3])
        with listening(server, task, "1.0") as listener:
            assert [listener.next("segment")[1] for _ in range(2)] == ["1.1", "1.2"]
            worker.finishes(transcript_of(*CHUNKS), CHUNKS[3])
            assert [number for name, number, _ in listener if name != "progress"] == ["1.3", "1.4", "1.5", None]

    def test_an_error(self, server: Server) -> None:
        task = server.sent()
        worker = Worker(server)
        with listening(server, task) as listener:
            assert listener.next("progress")[2]["status"] == "processing"
            server.service.leases.fail(worker.claim, AudioDamagedError("Nothing of it can be read.", "Record it."))
            told = {"code": "audio_damaged", "message": "Nothing of it can be read.", "hint": "Record it."}
            assert list(listener) == [("error", None, told)]
        assert all_of(server, task) == [("error", None, told)]

    def test_a_cancel(self, server: Server) -> None:
        task = server.sent()
        with listening(server, task) as listener:
            listener.next("progress")
            server.client.post(f"/api/v1/tasks/{task}/cancel")
            (name, _, data) = next(iter(listener))
            assert (name, data["status"], data["links"]["self"]) == ("cancelled", "cancelled", f"/api/v1/tasks/{task}")
            assert list(listener) == []

    def test_a_task_that_is_removed(self, server: Server) -> None:
        task = server.sent()
        with listening(server, task) as listener:
            listener.next("progress")
            assert server.client.delete(f"/api/v1/tasks/{task}").status_code == 204
            (name, _, data) = next(iter(listener))
            assert (name, data["code"]) == ("error", "task_unknown")
            assert list(listener) == []

    def test_a_place_in_the_queue_is_told_anew(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(events, "PING_SECONDS", 0.05)
        first, second = server.sent(), server.sent(b"other")
        with listening(server, second) as listener:
            assert listener.next("progress")[2]["position"] == 1
            server.service.store.cancel(first)
            assert listener.next("progress")[2]["position"] == 0

    def test_signs_of_life(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(events, "PING_SECONDS", 0.02)
        task = server.sent()
        with listening(server, task) as listener:
            listener.next("progress")
            worker = Worker(server)
            listener.next("progress")
            threading.Timer(0.3, worker.finishes, (transcript_of(),)).start()
            assert [name for name, _, _ in listener] == ["done"]
            assert listener.comments >= 2

    def test_many_listen(self, server: Server) -> None:
        task = server.sent()
        begun = threading.Barrier(21, timeout=SECONDS)

        def listen() -> list[Heard]:
            with httpx2.Client(base_url=server.url, timeout=SECONDS, trust_env=False) as client:
                path = f"/api/v1/tasks/{task}/events"
                with client.stream("GET", path, headers=STREAM) as answer:
                    listener = Listener(answer)
                    listener.next("progress")
                    begun.wait()
                    return [heard for heard in listener if heard[0] != "progress"]

        with ThreadPoolExecutor(20) as pool:
            listeners = [pool.submit(listen) for _ in range(20)]
            begun.wait()
            assert set(server.service.watcher._waiters) == {task}  # one question for all of them
            worker = Worker(server)
            worker.reads(*CHUNKS[:3])
            worker.finishes(transcript_of(*CHUNKS), CHUNKS[3])
            heard = [listener.result() for listener in listeners]
        assert len(heard[0]) == 7
        assert all(each == heard[0] for each in heard)

    def test_a_listener_that_hangs_up_is_forgotten(self, server: Server) -> None:
        task = server.sent()
        with server.connect() as connection:
            connection.sendall(f"GET /api/v1/tasks/{task}/events HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            until(lambda: task in server.service.watcher._waiters)
        until(lambda: task not in server.service.watcher._waiters)

    def test_a_service_that_stops_ends_the_stream_without_a_last_event(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path)) as server:
            task = server.sent()
            Worker(server).reads(CHUNKS[0])
            with listening(server, task) as listener:
                assert [listener.next("segment")[1] for _ in range(2)] == ["1.0", "1.1"]
                server.service.watcher.stopping()
                assert {name for name, _, _ in listener} <= {"progress"}  # it comes to its end, and is no error
            with listening(server, task) as listener:
                assert list(listener) == []  # the client is to come back

    def test_a_task_that_is_not_there(self, server: Server) -> None:
        answer = server.client.get("/api/v1/tasks/nobody/events", headers=STREAM)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "task_unknown"


class TestSocket:
    def test_the_same_events_as_messages(self, server: Server) -> None:
        task = server.sent()
        with open_socket(server, task) as socket:
            first = json.loads(socket.recv(SECONDS))
            assert first["event"] == "progress"
            assert first["id"] is None
            assert first["data"]["status"] == "queued"
            worker = Worker(server)
            worker.reads(*CHUNKS[:3])
            worker.finishes(transcript_of(*CHUNKS), CHUNKS[3])
            heard = [json.loads(message) for message in socket]
            assert socket.protocol.close_code == 1000
        told = [(each["event"], each["id"], each["data"]) for each in heard if each["event"] != "progress"]
        assert told == all_of(server, task)

    def test_it_goes_on_where_it_was(self, server: Server) -> None:
        task = done_task(server)
        with open_socket(server, task + "/ws?last_event_id=2.3") as socket:
            assert [json.loads(message)["id"] for message in socket] == ["2.4", "2.5", None]
        with open_socket(server, task, additional_headers={"Last-Event-ID": "2.4"}) as socket:
            assert [json.loads(message)["id"] for message in socket] == ["2.5", None]

    def test_what_a_client_says_is_passed_over(self, server: Server) -> None:
        with open_socket(server, server.sent()) as socket:
            socket.recv(SECONDS)
            socket.send("hello")
            socket.send(b"\x00")
            worker = Worker(server)
            worker.finishes(transcript_of())
            assert json.loads(list(socket)[-1])["event"] == "done"

    def test_a_client_that_goes_is_forgotten(self, server: Server) -> None:
        task = server.sent()
        with open_socket(server, task) as socket:
            socket.recv(SECONDS)
            until(lambda: task in server.service.watcher._waiters)
        until(lambda: task not in server.service.watcher._waiters)

    def test_a_service_that_stops_says_so(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path)) as server, open_socket(server, server.sent()) as socket:
            socket.recv(SECONDS)
            server.service.watcher.stopping()
            with pytest.raises(ConnectionClosedError):
                socket.recv(SECONDS)
            assert socket.protocol.close_code == 1012

    def test_a_task_that_is_not_there(self, server: Server) -> None:
        refused = refusal(lambda: open_socket(server, "nobody"))
        assert refused.response.status_code == 404
        assert json.loads(refused.response.body or b"")["code"] == "task_unknown"

    def test_pages_of_others_may_not_listen_while_no_key_is_asked_for(self, server: Server) -> None:
        task = server.sent()
        refused = refusal(lambda: open_socket(server, task, origin="https://evil.example"))
        assert refused.response.status_code == 403
        with open_socket(server, task, origin=server.url) as socket:
            assert socket.recv(SECONDS)


class TestWhoMayListen:
    @pytest.fixture
    def guarded(self, tmp_path: Path) -> Iterator[Server]:
        with serve(settings_for(tmp_path, auth=True, rate_requests=0)) as running:
            yield running

    def test_keys_tokens_and_owners(self, guarded: Server) -> None:
        _, mine = guarded.service.keys.create("mine", owner="me")
        _, other = guarded.service.keys.create("other")
        _, metrics = guarded.service.keys.create("metrics", scopes=["metrics"], owner="me")
        files = {"file": ("a.ogg", b"sound")}
        accepted = guarded.client.post("/api/v1/transcribe", files=files, headers={"X-API-Key": mine}).json()
        task = accepted["task_id"]
        Worker(guarded).finishes(transcript_of())
        path = accepted["links"]["events"]

        def token(secret: str) -> str:
            key = guarded.service.keys.check(secret)
            form = {"grant_type": "client_credentials", "client_id": key.id, "client_secret": secret}
            return str(guarded.client.post("/api/v1/token", data=form).json()["access_token"])

        def status(headers: dict[str, str] | None = None, **query: str) -> tuple[int, int]:
            """Of the stream and of the handshake."""
            answer = guarded.client.get(path, headers={**STREAM, **(headers or {})}, params=query)
            assert ("event: done" in answer.text) == (answer.status_code == 200)
            end = "&".join(f"{name}={value}" for name, value in query.items())
            try:
                with open_socket(guarded, f"{task}/ws?{end}", additional_headers=headers) as socket:
                    assert json.loads(socket.recv(SECONDS))["event"] == "done"
                    return answer.status_code, 200
            except InvalidStatus as refused:
                assert refused.response.headers["content-type"] == "application/problem+json"
                return answer.status_code, refused.response.status_code

        assert status() == (401, 401)
        assert status({"X-API-Key": mine}) == (200, 200)
        assert status({"Authorization": f"Bearer {mine}"}) == (200, 200)
        assert status(access_token=token(mine)) == (200, 200)
        assert status(access_token=mine) == (401, 401)  # a key does not belong into an address
        assert status({"X-API-Key": other}) == (404, 404)
        assert status(access_token=token(other)) == (404, 404)
        assert status({"X-API-Key": metrics}) == (403, 403)
        assert guarded.client.get(path, params={"access_token": token(mine)}).status_code == 401  # no stream

    def test_listening_is_counted(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, auth=True, rate_requests=2)) as server:
            _, secret = server.service.keys.create("mine")
            headers = {"X-API-Key": secret}
            first = server.client.get("/api/v1/tasks/nobody/events", headers=headers)
            assert first.status_code == 404
            assert "ratelimit" in first.headers
            assert (
                refusal(lambda: open_socket(server, "nobody", additional_headers=headers)).response.status_code == 404
            )
            assert server.client.get("/api/v1/tasks/nobody/events", headers=headers).status_code == 429
            refused = refusal(lambda: open_socket(server, "nobody", additional_headers=headers))
            assert refused.response.status_code == 429
            assert "retry-after" in refused.response.headers


def open_socket(server: Server, task: str, **options: Any) -> ClientConnection:
    path = task if "/" in task else f"{task}/ws"
    address = f"ws://127.0.0.1:{server.port}/api/v1/tasks/{path}"
    opened: ClientConnection = connect(address, proxy=None, open_timeout=SECONDS, **options)
    return opened


def refusal(opens: Callable[[], ClientConnection]) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as caught:
        opens().close()
    return caught.value
