"""Calls that wait: one job for one request, however often it comes; the test plays the worker."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api_server import Server, serve, settings_for, until
from stenograf.api import sync
from stenograf.chunk import ChunkResult
from stenograf.errors import AudioDamagedError
from stenograf.jobs.job import LANES, SYNC_PRIORITY, UNATTENDED, Claim, Job
from stenograf.transcript import Segment
from transcripts import GOLDEN, transcript_of

PATH = "/v1/audio/transcriptions"
CHUNK = ChunkResult(0, 0.0, 5.0, (Segment(0.5, 4.5, "Half of it."),), "en")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(settings_for(tmp_path_factory.mktemp("service"))) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves a service that nobody waits at, without jobs and without files that no job names."""
    yield
    if "server" in request.fixturenames:
        running: Server = request.getfixturevalue("server")
        for job in jobs(running):
            assert running.client.delete(f"/api/v1/tasks/{job.id}").status_code == 204
        until(lambda: not waiting(running))
        assert running.files() == []


@pytest.fixture
def calls() -> Iterator[ThreadPoolExecutor]:
    """Where calls wait while the test goes on."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "GRACE_SECONDS", 0.05)


def jobs(server: Server) -> list[Job]:
    return list(server.service.store.page(limit=200).items)


def waiting(server: Server) -> dict[str, int]:
    """How many requests wait for each job."""
    desk = getattr(server.app.state, "desk", None)
    return dict(desk._waiting) if desk else {}


def send(server: Server, data: bytes = b"sound", key: str = "", **fields: Any) -> httpx2.Response:
    headers = {"X-API-Key": key} if key else {}
    return server.client.post(PATH, files={"file": ("a.ogg", data)}, data=fields, headers=headers)


def called(
    calls: ThreadPoolExecutor, server: Server, *data: Any, count: int = 1, **fields: Any
) -> Future[httpx2.Response]:
    """Send a request; returns once `count` requests wait in all."""
    answer = calls.submit(send, server, *data, **fields)
    until(lambda: sum(waiting(server).values()) == count or answer.done())
    return answer


def claimed(server: Server) -> Claim:
    """Begin with the next job as a worker does."""
    claim = server.service.leases.claim("test", LANES)
    assert claim is not None
    tell(server, claim)
    return claim


def finish(server: Server, claim: Claim) -> None:
    server.service.leases.finish(claim, GOLDEN)
    tell(server, claim)


def tell(server: Server, claim: Claim) -> None:
    server.service.heard({"event": "job", "job": claim.id})


def stays(server: Server, job_id: str, state: str, seconds: float = 0.3) -> None:
    """For so long, the job is in this state."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.service.store.get(job_id).state == state
        time.sleep(0.02)


def hang_up_after(server: Server, count: int, data: bytes = b"sound") -> Callable[[], None]:
    """Send a request from a bare socket; what this returns closes it. Returns once `count` requests wait."""
    body = (
        b'--edge\r\ncontent-disposition: form-data; name="file"; filename="a.ogg"\r\n\r\n' + data + b"\r\n--edge--\r\n"
    )
    connection: socket.socket = server.connect()
    connection.sendall(
        f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=edge\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    until(lambda: sum(waiting(server).values()) == count)
    return connection.close


class TestWaiting:
    def test_a_call_is_a_job_before_all_others(self, server: Server, calls: ThreadPoolExecutor) -> None:
        other = server.sent(b"other")
        answer = called(calls, server, language="ru")
        assert not answer.done()
        claim = claimed(server)
        assert claim.job.sync
        assert claim.job.priority == SYNC_PRIORITY
        assert claim.job.options == {"language": "ru"}
        assert claim.job.request_id
        finish(server, claim)
        assert answer.result().json()["text"] == GOLDEN.text
        assert answer.result().headers["x-request-id"] == claim.job.request_id
        assert server.service.store.get(other).state == "queued"
        assert waiting(server) == {}

    def test_an_error_of_the_job_is_the_calls(self, server: Server, calls: ThreadPoolExecutor) -> None:
        answer = called(calls, server)
        claim = claimed(server)
        server.service.leases.fail(claim, AudioDamagedError("Nothing of it can be read.", "Record it again."))
        tell(server, claim)
        assert answer.result().status_code == 400
        assert answer.result().json()["error"] == {
            "message": "Nothing of it can be read. Record it again.",
            "type": "invalid_request_error",
            "param": answer.result().json()["error"]["param"],
            "code": "audio_damaged",
        }
        assert answer.result().headers["x-should-retry"] == "false"
        again = called(calls, server)  # it failed: the next one is tried anew
        assert claimed(server).id != claim.id
        assert server.client.post(f"/api/v1/tasks/{jobs(server)[0].id}/cancel").status_code == 200
        again.result()

    def test_somebody_else_cancels_it(self, server: Server, calls: ThreadPoolExecutor) -> None:
        answer = called(calls, server)
        server.client.post(f"/api/v1/tasks/{jobs(server)[0].id}/cancel")
        assert answer.result().status_code == 409
        assert answer.result().json()["error"]["code"] == "cancelled"
        assert answer.result().headers["x-should-retry"] == "false"  # else the client would undo it

    def test_somebody_else_removes_it(self, server: Server, calls: ThreadPoolExecutor) -> None:
        answer = called(calls, server)
        server.client.delete(f"/api/v1/tasks/{jobs(server)[0].id}")
        assert answer.result().status_code == 404
        assert answer.result().json()["error"]["code"] == "task_unknown"

    def test_a_full_queue_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, max_queued=1)) as server:
            server.sent(b"other")
            answer = send(server)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) > 0
            assert "x-should-retry" not in answer.headers
            assert len(server.files()) == 1
            assert waiting(server) == {}


class TestTheSameRequestAgain:
    def test_many_at_once_are_one_job(self, server: Server, calls: ThreadPoolExecutor) -> None:
        answers = [calls.submit(send, server, response_format=kind) for kind in ("json", "text", "srt", "vtt") * 3]
        until(lambda: sum(waiting(server).values()) == 12)
        assert len(jobs(server)) == 1
        until(lambda: len(server.files()) == 1)
        claim = claimed(server)
        until(lambda: len(server.files()) == 1)
        finish(server, claim)
        assert {answer.result().status_code for answer in answers} == {200}
        assert waiting(server) == {}

    def test_it_is_attached_to_while_it_runs(self, server: Server, calls: ThreadPoolExecutor) -> None:
        first = called(calls, server)
        claim = claimed(server)
        again = called(calls, server, count=2)
        assert len(server.files()) == 1
        finish(server, claim)
        assert first.result().json() == again.result().json()
        assert len(jobs(server)) == 1

    def test_other_bytes_or_options_are_another_job(self, server: Server, calls: ThreadPoolExecutor) -> None:
        answers = [called(calls, server), called(calls, server, b"other", count=2),
                   called(calls, server, count=3, language="en")]  # fmt: skip
        assert len(jobs(server)) == 3
        for _ in answers:
            finish(server, claimed(server))
        assert {answer.result().status_code for answer in answers} == {200}

    def test_a_task_that_nobody_waits_for_is_not_attached_to(self, server: Server, calls: ThreadPoolExecutor) -> None:
        server.sent()
        answer = called(calls, server)
        assert len(jobs(server)) == 2
        finish(server, claimed(server))
        assert answer.result().status_code == 200

    def test_another_owners_request_is_another_job(self, tmp_path: Path, calls: ThreadPoolExecutor) -> None:
        with serve(settings_for(tmp_path, auth=True, api_keys=("k" * 16, "l" * 16))) as server:
            first = called(calls, server, b"sound", "k" * 16)
            other = called(calls, server, b"sound", "l" * 16, count=2)
            assert len({job.owner for job in jobs(server)}) == 2
            for _ in range(2):
                finish(server, claimed(server))
            assert first.result().json() == other.result().json()

    def test_a_result_is_not_given_again(self, server: Server, calls: ThreadPoolExecutor) -> None:
        for text in ("One.", "Two."):
            answer = called(calls, server)
            claim = claimed(server)
            server.service.leases.finish(claim, transcript_of(Segment(0, 1, text)))
            tell(server, claim)
            assert answer.result().json()["text"] == text


class TestHangingUp:
    def test_the_job_is_cancelled(self, server: Server, short_grace: None) -> None:
        hang_up = hang_up_after(server, 1)
        claim = claimed(server)
        hang_up()
        until(lambda: server.service.store.get(claim.id).state == "cancelled")
        assert waiting(server) == {}

    def test_not_at_once(self, server: Server, monkeypatch: pytest.MonkeyPatch, calls: ThreadPoolExecutor) -> None:
        monkeypatch.setattr(sync, "GRACE_SECONDS", 0.3)
        hang_up = hang_up_after(server, 1)
        claim = claimed(server)
        hang_up()
        until(lambda: waiting(server) == {})
        again = called(calls, server)
        stays(server, claim.id, "processing", seconds=0.6)
        finish(server, claim)
        assert again.result().json()["text"] == GOLDEN.text
        assert [job.id for job in jobs(server)] == [claim.id]

    def test_not_while_another_waits(self, server: Server, short_grace: None, calls: ThreadPoolExecutor) -> None:
        hang_up = hang_up_after(server, 1)
        other = called(calls, server, count=2)
        claim = claimed(server)
        hang_up()
        until(lambda: waiting(server) == {claim.id: 1})
        stays(server, claim.id, "processing")
        finish(server, claim)
        assert other.result().status_code == 200

    def test_the_same_request_goes_on_where_it_was(
        self, server: Server, short_grace: None, calls: ThreadPoolExecutor
    ) -> None:
        hang_up = hang_up_after(server, 1)
        claim = claimed(server)
        server.service.leases.append(claim, [CHUNK])
        hang_up()
        until(lambda: server.service.store.get(claim.id).state == "cancelled")
        woken: list[bool] = []
        server.service.wake = lambda: woken.append(True)
        try:
            again = called(calls, server)
        finally:
            server.service.wake = lambda: None
        assert woken
        revived = claimed(server)
        assert revived.id == claim.id
        assert revived.attempt == 2
        assert server.service.leases.chunks(revived) == [CHUNK]
        assert len(server.files()) == 1
        finish(server, revived)
        assert again.result().status_code == 200

    def test_much_later_it_begins_anew(
        self, server: Server, short_grace: None, calls: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hang_up = hang_up_after(server, 1)
        first = jobs(server)[0].id
        hang_up()
        until(lambda: server.service.store.get(first).state == "cancelled")
        monkeypatch.setattr(sync, "REVIVAL_SECONDS", 0.0)
        again = called(calls, server)
        claim = claimed(server)
        assert claim.id != first
        finish(server, claim)
        assert again.result().status_code == 200

    def test_after_the_end_it_changes_nothing(self, server: Server, short_grace: None) -> None:
        hang_up = hang_up_after(server, 1)
        claim = claimed(server)
        server.service.leases.finish(claim, GOLDEN)
        hang_up()
        until(lambda: waiting(server) == {})
        stays(server, claim.id, "done")

    def test_a_client_of_another_process_hangs_up(self, server: Server, calls: ThreadPoolExecutor) -> None:
        """That process knows nothing of the clients here: who waits still gets the text."""
        call = called(calls, server)
        claim = claimed(server)
        server.service.store.cancel(claim.id, stage=UNATTENDED)
        server.service.watcher.changed(claim.id)
        until(lambda: server.service.store.get(claim.id).state == "queued")
        finish(server, claimed(server))
        assert call.result(10).status_code == 200


class TestStopping:
    def test_who_waits_is_sent_away_and_finds_the_job_again(
        self, tmp_path: Path, calls: ThreadPoolExecutor, short_grace: None
    ) -> None:
        with serve(settings_for(tmp_path)) as server:
            answer = called(calls, server)
            server.service.watcher.stopping()
            assert answer.result().status_code == 503
            assert answer.result().json()["error"]["code"] == "service_stopping"
            assert int(answer.result().headers["retry-after"]) > 0
            assert "x-should-retry" not in answer.result().headers
            before = jobs(server)[0]
            assert waiting(server) == {}
            stays(server, before.id, "queued")
        with serve(settings_for(tmp_path)) as server:
            again = called(calls, server)
            claim = claimed(server)
            assert claim.id == before.id
            finish(server, claim)
            assert again.result().json()["text"] == GOLDEN.text
            assert len(jobs(server)) == len(server.files()) == 1
