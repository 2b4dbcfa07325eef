"""Recordings in pieces, by tus 1.0: over a real socket, with connections and processes that break."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import sqlalchemy as sa

from api_server import SECONDS, Server, serve, settings_for, until
from clients import run_client
from stenograf.api.turns import Turns
from stenograf.api.uploads import PATH, store_of
from stenograf.errors import TaskUnknownError
from stenograf.jobs.folder import LocalFiles, LocalPiece
from stenograf.jobs.job import Job
from stenograf.jobs.maintenance import Maintenance
from stenograf.jobs.store import JobStore
from stenograf.jobs.tables import uploads
from stenograf.jobs.uploads import Uploads
from work import place

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}
DATA = bytes(range(256)) * 10_000
NAME = "Совещание «12 ноября».ogg"
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(settings_for(tmp_path_factory.mktemp("service"), max_upload=3)) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the service without tasks and uploads, and no test leaves a file that nobody names."""
    yield
    if "server" not in request.fixturenames:
        return
    running: Server = request.getfixturevalue("server")
    for job in running.service.store.page(limit=200).items:
        assert running.client.delete(f"/api/v1/tasks/{job.id}").status_code == 204
    for upload in rows(running):
        with contextlib.suppress(TaskUnknownError):  # its time is over
            store_of(running.app).remove(upload["id"])
    assert running.files() == []


def rows(server: Server) -> list[Any]:
    with server.service.database.read() as connection:
        return list(connection.execute(sa.select(uploads)).mappings())


def change(server: Server, **columns: Any) -> None:
    with server.service.database.write() as connection:
        connection.execute(uploads.update().values(**columns))


def described(**values: str) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in values.items())


def begin(
    server: Server, size: int = len(DATA), headers: dict[str, str] | None = None, **values: Any
) -> httpx2.Response:
    named = described(**{"filename": NAME, **values})
    head = {**TUS, "Upload-Length": str(size), "Upload-Metadata": named, **(headers or {})}
    return server.client.post(PATH, headers=head)


def begun(server: Server, size: int = len(DATA), **values: Any) -> str:
    """The path of a new upload."""
    answer = begin(server, size, **values)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def send(server: Server, path: str, offset: int, data: Any, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.patch(path, content=data, headers={**PIECE, "Upload-Offset": str(offset), **named})


def offset_of(server: Server, path: str) -> int:
    answer = server.client.head(path, headers=TUS)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


def job_of(server: Server, answer: httpx2.Response) -> Job:
    """The job that an answer names; it must hold the recording, and be the only one."""
    job = server.service.store.get(answer.headers["stenograf-task-id"])
    assert answer.headers["content-location"] == f"/api/v1/tasks/{job.id}"
    assert place(server.service.files, job.file).read_bytes() == DATA
    assert job.digest == hashlib.sha256(DATA).hexdigest()
    assert [each.id for each in server.service.store.page().items] == [job.id]
    assert [path.name for path in server.files()] == [job.file]
    return job


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["tus-resumable"] == "1.0.0"
    found = dict(answer.json())
    assert found["code"] == code
    assert found["instance"] == answer.url.path
    return found


@contextmanager
def half_sent(port: int, path: str, data: bytes, *, offset: int = 0, more: str = "") -> Iterator[socket.socket]:
    """A connection on which a piece of all of DATA was announced, and `data` of it sent and written."""
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        head = (
            f"PATCH {path} HTTP/1.1\r\nhost: localhost\r\ntus-resumable: 1.0.0\r\nupload-offset: {offset}\r\n"
            f"content-type: application/offset+octet-stream\r\ncontent-length: {len(DATA) - offset}\r\n{more}\r\n"
        )
        connection.sendall(head.encode() + data)
        yield connection


def taken_in(server: Server) -> float:
    """Bytes of all bodies that the service has read from its connections so far."""
    text = server.client.get("/metrics").text
    return next(
        float(line.split()[1]) for line in text.splitlines() if line.startswith("stenograf_upload_bytes_total ")
    )


def maintenance(server: Server) -> Maintenance:
    service = server.service
    return Maintenance(service.store, service.leases, service.files, store_of(server.app), on_event=lambda _: None)


class TestUpload:
    def test_from_the_first_piece_to_the_result(self, server: Server) -> None:
        woken: list[bool] = []
        server.service.wake = lambda: woken.append(True)
        answer = begin(server, language="Russian", priority="2", retention="60", word_timestamps="yes")
        path = answer.headers["location"]
        assert path.startswith("/api/v1/uploads/")
        assert answer.headers["upload-offset"] == "0"
        assert answer.headers["tus-resumable"] == "1.0.0"
        expires = parsedate_to_datetime(answer.headers["upload-expires"]).timestamp()
        assert 86_000 < expires - time.time() < 86_500
        middle = 1_000_001
        answer = send(server, path, 0, DATA[:middle])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(middle))
        assert "upload-expires" in answer.headers
        assert "stenograf-task-id" not in answer.headers
        assert server.service.store.page().items == ()
        head = server.client.head(path, headers=TUS)
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == (str(middle), str(len(DATA)))
        assert head.headers["cache-control"] == "no-store"
        assert not woken

        answer = send(server, path, middle, DATA[middle:])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(len(DATA)))
        job = job_of(server, answer)
        assert woken
        assert job.id == path.rpartition("/")[2]
        assert (job.filename, job.size, job.priority, job.retention) == (NAME, len(DATA), 2, 60)
        assert job.options == {"language": "ru", "word_timestamps": True}
        assert server.finish_next().id == job.id
        assert server.client.get(answer.headers["content-location"] + "/result").status_code == 200
        assert job_of(server, server.client.head(path, headers=TUS)).id == job.id

    def test_all_in_the_first_request(self, server: Server) -> None:
        head = {**PIECE, "Upload-Length": str(len(DATA)), "Upload-Metadata": described(name="a.ogg", type="audio/ogg")}
        answer = server.client.post(PATH, headers=head, content=DATA)
        assert (answer.status_code, answer.headers["upload-offset"]) == (201, str(len(DATA)))
        assert job_of(server, answer).filename == "a.ogg"

    def test_the_start_in_the_first_request(self, server: Server) -> None:
        answer = server.client.post(PATH, headers={**PIECE, "Upload-Length": str(len(DATA))}, content=DATA[:10])
        assert (answer.status_code, answer.headers["upload-offset"]) == (201, "10")
        answer = send(server, answer.headers["location"], 10, DATA[10:])
        assert job_of(server, answer).filename == "recording"

    def test_what_this_server_can_do(self, server: Server) -> None:
        for path in (PATH, PATH + "/", PATH + "/some"):
            answer = server.client.options(path)
            assert answer.status_code == 204
            assert answer.headers["tus-version"] == "1.0.0"
            assert answer.headers["tus-max-size"] == "3000000"
            assert "creation-with-upload" in answer.headers["tus-extension"].split(",")
            assert answer.headers["tus-checksum-algorithm"] == "sha1,sha256"

    def test_a_look_in_json(self, server: Server) -> None:
        path = begun(server)
        send(server, path, 0, DATA[:7])
        found = server.client.get(path).json()
        assert found.pop("expires_at").endswith("Z")
        upload_id = path.rpartition("/")[2]
        assert found == {
            "upload_id": upload_id, "filename": NAME, "size": len(DATA), "offset": 7, "task_id": None, "task": None,
        }  # fmt: skip
        send(server, path, 7, DATA[7:])
        found = server.client.get(path).json()
        assert (found["offset"], found["task_id"], found["task"]) == (
            len(DATA), upload_id, f"/api/v1/tasks/{upload_id}",
        )  # fmt: skip

    def test_the_metadata_comes_back_without_the_secret(self, tmp_path: Path) -> None:
        secret = "whsec_" + "QUJD" * 10
        with serve(settings_for(tmp_path, private_networks=("127.0.0.0/8",))) as server:
            path = begun(server, webhook_url="http://127.0.0.1:9/", webhook_secret=secret, language="ru")
            told = server.client.head(path, headers=TUS).headers["upload-metadata"]
            assert told == described(filename=NAME, webhook_url="http://127.0.0.1:9/", language="ru")
            assert secret not in server.client.get(path).text
            job = job_of(server, send(server, path, 0, DATA))
            assert (job.webhook_url, job.webhook_secret) == ("http://127.0.0.1:9/", secret)

    def test_where_no_patch_gets_through(self, server: Server) -> None:
        path = begun(server)

        def instead(method: str, data: bytes = b"", **headers: str) -> httpx2.Response:
            head = {**PIECE, "X-HTTP-Method-Override": method, **headers}
            return server.client.post(path, content=data, headers=head)

        assert instead("PATCH", DATA[:5], **{"Upload-Offset": "0"}).headers["upload-offset"] == "5"
        assert instead("HEAD").headers["upload-offset"] == "5"
        assert instead("DELETE").status_code == 204
        assert instead("HEAD").status_code == 404
        assert instead("PUT").status_code == 405


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "status", "code", "says"),
        [
            ({"langage": "ru"}, 422, "option_invalid", "language"),
            ({"beam_size": "99"}, 422, "option_invalid", "beam_size"),
            ({"language": "Rusian"}, 422, "language_unknown", "russian"),
            ({"model": "gigam"}, 422, "model_unknown", "gigaam"),
            ({"model": "turbo"}, 422, "model_not_installed", "turbo"),
            ({"webhook_url": "http://127.0.0.1/"}, 422, "address_refused", "127.0.0.1"),
        ],
    )
    def test_options_are_checked_before_anything_is_sent(
        self, server: Server, values: dict[str, Any], status: int, code: str, says: str
    ) -> None:
        found = problem(begin(server, **values), status, code)
        assert says in found["detail"] + found["hint"]
        assert rows(server) == []

    @pytest.mark.parametrize(
        ("headers", "status", "code"),
        [
            ({"Upload-Length": "3000001"}, 413, "upload_too_large"),
            ({"Upload-Length": "0"}, 422, "file_empty"),
            ({"Upload-Length": "-1"}, 400, "bad_request"),
            ({"Upload-Length": "1e3"}, 400, "bad_request"),
            ({"Upload-Length": ""}, 400, "bad_request"),
            ({"Upload-Length": "9" * 5000}, 400, "bad_request"),
            ({"Upload-Defer-Length": "1"}, 400, "bad_request"),
            ({"Upload-Concat": "partial"}, 400, "bad_request"),
            ({"Upload-Metadata": "filename *"}, 400, "bad_request"),
            ({"Upload-Metadata": "filename /w=="}, 400, "bad_request"),
            ({"Upload-Metadata": "filename YQ==,filename Yg=="}, 400, "bad_request"),
            ({"Tus-Resumable": "0.2.2"}, 412, "precondition_failed"),
            ({"Upload-Checksum": "md5 aaaa", **PIECE}, 400, "bad_request"),
        ],
    )
    def test_a_beginning_that_makes_no_sense(
        self, server: Server, headers: dict[str, str], status: int, code: str
    ) -> None:
        problem(begin(server, headers=headers), status, code)
        assert server.service.store.page().items == ()
        assert server.files() == []

    def test_a_name_that_is_not_taken(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, allowed_extensions=(".mp3",))) as server:
            problem(begin(server), 415, "unsupported_media_type")

    def test_a_piece_that_makes_no_sense(self, server: Server) -> None:
        path = begun(server)
        send(server, path, 0, DATA[:10])
        problem(send(server, path, 0, DATA[10:], Content_Type="audio/ogg"), 415, "unsupported_media_type")
        problem(send(server, path, 10, DATA[10:], Tus_Resumable="2.0"), 412, "precondition_failed")
        problem(send(server, path, 10, DATA[10:], Upload_Offset="x"), 400, "bad_request")
        problem(send(server, PATH + "/nobody", 0, DATA), 404, "task_unknown")
        for wrong in (0, 9, 11, len(DATA)):
            answer = send(server, path, wrong, DATA[10:20])
            assert "10 bytes" in problem(answer, 409, "task_state")["detail"]
            assert answer.headers["upload-offset"] == "10"
        problem(send(server, path, 10, DATA), 413, "upload_too_large")
        problem(send(server, path, 10, iter([DATA])), 413, "upload_too_large")  # without a length
        assert offset_of(server, path) < len(DATA)
        assert "Tus-Resumable" not in server.client.get("/health").headers

    def test_an_answer_without_a_version(self, server: Server) -> None:
        path = begun(server)
        answer = server.client.head(path)
        assert answer.status_code == 412
        assert answer.headers["tus-version"] == "1.0.0"
        assert server.client.get(path).status_code == 200  # no part of the protocol

    def test_a_disk_without_room(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        path = begun(server)
        monkeypatch.setattr("stenograf.jobs.files.RESERVE", 1 << 60)
        assert begin(server).status_code == 507
        assert send(server, path, 0, DATA).status_code == 507
        monkeypatch.undo()
        assert offset_of(server, path) == 0


class TestBrokenConnections:
    def test_what_came_counts(self, server: Server) -> None:
        path = begun(server)
        before = taken_in(server)
        with half_sent(server.port, path, DATA[:600_000]) as connection:
            until(lambda: offset_of(server, path) == 600_000)
            connection.sendall(DATA[600_000:700_000])
            until(lambda: taken_in(server) == before + 700_000)
            assert offset_of(server, path) == 600_000  # the rest of it waits for more
        until(lambda: offset_of(server, path) == 700_000)
        job_of(server, send(server, path, 700_000, DATA[700_000:]))

    def test_a_connection_that_is_dead_without_saying_so_gives_way(self, server: Server) -> None:
        path = begun(server)
        with half_sent(server.port, path, DATA[:600_000]) as dead:
            until(lambda: offset_of(server, path) > 0)
            here = offset_of(server, path)
            answer = send(server, path, here, DATA[here:])
            assert answer.status_code == 204
            dead.settimeout(SECONDS)
            assert dead.recv(12) == b"HTTP/1.1 409"
        job_of(server, answer)

    def test_a_client_that_stops_sending(self, server: Server) -> None:
        path = begun(server)
        server.app.state.turns = Turns(seconds=0.2)
        try:
            with half_sent(server.port, path, DATA[:600_000]) as silent:
                silent.settimeout(SECONDS)
                assert silent.recv(12) == b"HTTP/1.1 408"
        finally:
            del server.app.state.turns
        assert offset_of(server, path) == 600_000
        job_of(server, send(server, path, 600_000, DATA[600_000:]))

    def test_many_at_once_make_one_recording(self, server: Server) -> None:
        path = begun(server)

        def stubborn(number: int) -> None:
            with client_of(server.port) as client:
                for _ in range(200):
                    here = int(client.head(path, headers=TUS).headers["upload-offset"])
                    if here == len(DATA):
                        return
                    piece = DATA[here : here + 100_000 + number]
                    answer = client.patch(path, content=piece, headers={**PIECE, "Upload-Offset": str(here)})
                    assert answer.status_code in (204, 409), answer.text
            raise AssertionError("it did not come to its end")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(stubborn, range(4)))
        job_of(server, server.client.head(path, headers=TUS))

    def test_the_last_answer_is_lost(self, server: Server) -> None:
        path = begun(server)
        first = job_of(server, send(server, path, 0, DATA))
        problem(send(server, path, 0, DATA), 409, "task_state")
        assert job_of(server, server.client.head(path, headers=TUS)) == first
        assert job_of(server, send(server, path, len(DATA), b"")) == first


class TestCrashes:
    """The service ends at a point: what was on the disk then is made anew, and the client or the maintenance comes."""

    @pytest.fixture(params=["client", "maintenance"])
    def comes(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def again(self, server: Server, comes: str, path: str) -> httpx2.Response:
        if comes == "maintenance":
            maintenance(server).tend_uploads()
            maintenance(server).tend_uploads()
        return server.client.head(path, headers=TUS)

    def test_before_the_job(self, server: Server, comes: str) -> None:
        path = begun(server)
        piece = server.service.files.piece(rows(server)[0]["file"], 0, len(DATA))
        piece.write(DATA)
        piece.end()
        job_of(server, self.again(server, comes, path))

    def test_when_the_file_is_in_its_place(self, server: Server, comes: str) -> None:
        path = begun(server)
        name = rows(server)[0]["file"]
        piece = server.service.files.piece(name, 0, len(DATA))
        piece.write(DATA)
        piece.end()
        assert server.service.files.admit(name)
        os.utime(place(server.service.files, name), (0, 0))
        assert maintenance(server).sweep() == 0
        job_of(server, self.again(server, comes, path))

    def test_when_the_job_is_written(self, server: Server, comes: str) -> None:
        path = begun(server)
        first = job_of(server, send(server, path, 0, DATA))
        change(server, job_id=None)
        assert job_of(server, self.again(server, comes, path)) == first

    def test_when_a_checked_piece_is_half_written(self, server: Server) -> None:
        path = begun(server)
        send(server, path, 0, DATA[:100])
        piece = server.service.files.piece(rows(server)[0]["file"], 100, len(DATA), "sha256")
        piece.write(b"x" * (len(DATA) - 100))  # all of it is there, but nobody knows whether it is right
        assert isinstance(piece, LocalPiece)
        piece._file.close()
        maintenance(server).tend_uploads()
        assert offset_of(server, path) == 100
        assert send(server, path, 100, DATA[100:200]).status_code == 204
        assert offset_of(server, path) == 200
        job_of(server, send(server, path, 200, DATA[200:]))

    def test_a_process_that_is_killed_in_the_middle(self, tmp_path: Path) -> None:
        with process(tmp_path) as (running, port), client_of(port) as client:
            path = client.post(PATH, headers={**TUS, "Upload-Length": str(len(DATA))}).headers["location"]
            with half_sent(port, path, DATA[:2_000_000]):
                until(lambda: int(client.head(path, headers=TUS).headers["upload-offset"]) >= 1_000_000)
                running.send_signal(signal.SIGKILL)
                running.wait()
        with serve(settings_for(tmp_path)) as server:
            here = offset_of(server, path)
            assert 1_000_000 <= here <= 2_000_000
            job_of(server, send(server, path, here, DATA[here:]))

    def test_a_queue_that_is_full_at_the_end(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, max_queued=1)) as server:
            other = server.sent()
            path = begun(server)
            problem(send(server, path, 0, DATA), 503, "queue_full")
            assert server.client.head(path, headers=TUS).status_code == 503
            assert rows(server)[0]["options"]["digest"] == hashlib.sha256(DATA).hexdigest()  # reckoned once
            change(server, expires_at=1.0)  # and it stays full until the upload's time is over
            maintenance(server).tend_uploads()
            assert server.client.delete(f"/api/v1/tasks/{other}").status_code == 204
            maintenance(server).tend_uploads()
            job_of(server, server.client.head(path, headers=TUS))


class TestChecksums:
    @pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
    def test_a_piece_that_is_as_it_was(self, server: Server, algorithm: str) -> None:
        path = begun(server)
        assert send(server, path, 0, DATA[:9], Upload_Checksum=checksum(algorithm, DATA[:9])).status_code == 204
        answer = send(server, path, 9, DATA[9:], Upload_Checksum=checksum(algorithm, DATA[9:]))
        job_of(server, answer)

    def test_a_piece_that_is_not(self, server: Server) -> None:
        path = begun(server)
        send(server, path, 0, DATA[:9])
        wrong = DATA[9:-1] + b"\x00"
        found = problem(
            send(server, path, 9, wrong, Upload_Checksum=checksum("sha1", DATA[9:])), 460, "checksum_mismatch"
        )
        assert found["status"] == 460
        assert offset_of(server, path) == 9
        assert server.service.store.page().items == ()
        job_of(server, send(server, path, 9, DATA[9:]))

    def test_a_piece_that_breaks_off_is_not_kept(self, server: Server) -> None:
        path = begun(server)
        more = f"upload-checksum: {checksum('sha1', DATA)}\r\n"
        with half_sent(server.port, path, DATA[:700_000], more=more):
            until(lambda: any(file.stat().st_size > 500_000 for file in server.files()))
            assert offset_of(server, path) == 0
        until(lambda: sum(file.stat().st_size for file in server.files()) == 0)
        assert len(server.files()) == 1
        job_of(server, send(server, path, 0, DATA))

    @pytest.mark.parametrize("sent", ["sha1", "sha1 !", "md5 " + "A" * 24, "sha1 AAAA", "sha256 " + "A" * 28, ""])
    def test_a_checksum_that_makes_no_sense(self, server: Server, sent: str) -> None:
        path = begun(server)
        problem(send(server, path, 0, DATA, Upload_Checksum=sent), 400, "bad_request")


def checksum(algorithm: str, data: bytes) -> str:
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


class TestEnds:
    def test_giving_up(self, server: Server) -> None:
        path = begun(server)
        send(server, path, 0, DATA[:10])
        answer = server.client.delete(path, headers=TUS)
        assert answer.status_code == 204
        assert answer.headers["tus-resumable"] == "1.0.0"
        assert server.files() == []
        assert server.client.head(path, headers=TUS).status_code == 404
        problem(send(server, path, 10, DATA[10:]), 404, "task_unknown")
        problem(server.client.delete(path, headers=TUS), 404, "task_unknown")

    def test_giving_up_while_a_piece_comes_in(self, server: Server) -> None:
        path = begun(server)
        with half_sent(server.port, path, DATA[:600_000]) as connection:
            until(lambda: offset_of(server, path) > 0)
            assert server.client.delete(path, headers=TUS).status_code == 204
            connection.settimeout(SECONDS)
            assert connection.recv(12) == b"HTTP/1.1 409"
        assert server.files() == []

    @pytest.mark.parametrize("owner", [LocalFiles, JobStore], ids=["before its sum", "before its task"])
    def test_giving_up_at_another_replica_while_it_becomes_a_task(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, owner: type
    ) -> None:
        path = begun(server)
        service = server.service
        another = Uploads(service.database, service.store, service.files)
        name = "read" if owner is LocalFiles else "add"
        call = getattr(owner, name)

        def late(*arguments: Any, **named: Any) -> Any:
            monkeypatch.undo()
            another.remove(path.rpartition("/")[2])
            return call(*arguments, **named)

        monkeypatch.setattr(owner, name, late)
        problem(send(server, path, 0, DATA), 404, "task_unknown")
        assert (service.store.page().items, rows(server), server.files()) == ((), [], [])

    def test_giving_up_what_is_a_task_already(self, server: Server) -> None:
        path = begun(server)
        job = job_of(server, send(server, path, 0, DATA))
        assert server.client.delete(path, headers=TUS).status_code == 204
        assert server.client.head(path, headers=TUS).status_code == 404
        assert server.client.get(f"/api/v1/tasks/{job.id}/audio").content == DATA

    def test_what_nobody_goes_on_with_is_removed(self, server: Server) -> None:
        path, other = begun(server), begun(server)
        send(server, path, 0, DATA[:10])
        upload_id = path.rpartition("/")[2]
        with server.service.database.write() as connection:
            connection.execute(uploads.update().where(uploads.c.id == upload_id).values(expires_at=1.0))
        assert server.client.head(path, headers=TUS).status_code == 404
        assert send(server, path, 10, DATA[10:]).status_code == 404
        maintenance(server).tend_uploads()
        assert [row["id"] for row in rows(server)] == [other.rpartition("/")[2]]
        assert server.files() == []

    def test_a_task_outlives_its_upload(self, server: Server) -> None:
        path = begun(server)
        answer = send(server, path, 0, DATA)
        change(server, expires_at=1.0)
        assert server.client.head(path, headers=TUS).status_code == 200
        maintenance(server).tend_uploads()
        assert rows(server) == []
        job_of(server, answer)

    def test_a_piece_lets_it_live_longer(self, server: Server) -> None:
        path = begun(server)
        soon = time.time() + 3600
        change(server, expires_at=soon)
        assert send(server, path, 0, DATA[:10]).status_code == 204
        assert rows(server)[0]["expires_at"] > soon + 80_000
        kept = time.time() + 50_000
        change(server, expires_at=kept)
        assert send(server, path, 10, DATA[10:20]).status_code == 204
        assert rows(server)[0]["expires_at"] == kept

    def test_a_removed_task_is_not_made_again(self, server: Server) -> None:
        path = begun(server)
        job = job_of(server, send(server, path, 0, DATA))
        assert server.client.delete(f"/api/v1/tasks/{job.id}").status_code == 204
        assert server.client.head(path, headers=TUS).headers["stenograf-task-id"] == job.id
        assert send(server, path, len(DATA), b"").status_code == 204
        maintenance(server).tend_uploads()
        assert server.service.store.page().items == ()

    def test_files_of_uploads_are_not_swept(self, server: Server) -> None:
        path = begun(server)
        send(server, path, 0, DATA[:10])
        folder = server.service.files.folder / "uploads"
        (folder / "orphan").write_bytes(b"x")
        (folder / "orphan.note").write_bytes(b"1")
        for file in server.files():
            os.utime(file, (0, 0))
        assert maintenance(server).sweep() == 2
        assert offset_of(server, path) == 10


class TestWhoMay:
    def test_an_upload_of_another_owner_is_unknown(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, auth=True)) as server:
            keys = server.service.keys
            mine, other, reader, admin = (
                {"X-API-Key": keys.create(name, scopes=scopes)[1]}
                for name, scopes in (("a", ["transcribe", "read"]), ("b", ["transcribe", "read"]), ("c", ["read"]),
                                     ("d", ["admin"]))
            )  # fmt: skip
            assert problem(begin(server), 401, "unauthorized")
            assert problem(begin(server, headers=reader), 403, "forbidden")
            path = begin(server, headers=mine).headers["location"]
            assert problem(send(server, path, 0, DATA), 401, "unauthorized")
            with half_sent(server.port, path, DATA[:600_000], more=f"x-api-key: {mine['X-API-Key']}\r\n"):
                until(lambda: [file for file in server.files() if file.stat().st_size])
                assert problem(send(server, path, 0, DATA, **other), 404, "task_unknown")
                assert server.client.delete(path, headers={**TUS, **other}).status_code == 404
            assert server.client.head(path, headers={**TUS, **other}).status_code == 404
            assert server.client.get(path, headers=other).status_code == 404
            until(lambda: server.client.get(path, headers=admin).json()["offset"] == 600_000)  # nobody broke it off
            answer = send(server, path, 600_000, DATA[600_000:], **mine)
            assert job_of(server, answer).owner == server.service.keys.check(mine["X-API-Key"]).owner

    def test_beginnings_are_counted_and_pieces_are_not(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, auth=True, rate_uploads=2, rate_requests=1)) as server:
            mine = {"X-API-Key": server.service.keys.create("a")[1]}
            path = begin(server, headers=mine).headers["location"]
            for offset in range(20):
                assert send(server, path, offset, b"x", **mine).status_code == 204
                assert server.client.head(path, headers={**TUS, **mine}).status_code == 200
            assert begin(server, headers=mine).status_code == 201
            assert problem(begin(server, headers=mine), 429, "rate_limited")

    def test_pages_of_other_origins(self, tmp_path: Path) -> None:
        origin = {"Origin": "https://app.example"}
        with serve(settings_for(tmp_path, cors_origins=("https://app.example",))) as server:
            asked = {
                "Access-Control-Request-Method": "PATCH",
                "Access-Control-Request-Headers": "tus-resumable,upload-offset,content-type,upload-checksum",
            }
            answer = server.client.options(PATH + "/some", headers={**origin, **asked})
            assert answer.status_code == 200
            assert "PATCH" in answer.headers["access-control-allow-methods"]
            assert "upload-offset" in answer.headers["access-control-allow-headers"].lower()
            answer = begin(server, headers=origin)
            exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
            assert {"location", "upload-offset", "upload-length", "upload-expires", "upload-metadata",
                    "tus-resumable", "tus-version", "tus-max-size", "tus-extension"} <= exposed  # fmt: skip


def client_of(port: int) -> httpx2.Client:
    return httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)


@contextmanager
def process(folder: Path, **settings: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A service in a process of its own, and its port."""
    code = (
        "import sys; from pathlib import Path; from api_server import serve, settings_for\n"
        f"with serve(settings_for(Path(sys.argv[1]), **{settings!r})) as server:\n"
        "    print(server.port, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        try:
            yield running, int(running.stdout.readline())
        finally:
            running.kill()


def test_memory_does_not_grow_with_the_piece(tmp_path: Path) -> None:
    size = 200_000_000
    with process(tmp_path) as (running, port):
        watched = psutil.Process(running.pid)
        most = 0

        def body() -> Iterator[bytes]:
            nonlocal most
            for _ in range(size // 1_000_000):
                yield bytes(1_000_000)
                most = max(most, watched.memory_info().rss)

        with client_of(port) as client:
            path = client.post(PATH, headers={**TUS, "Upload-Length": str(size)}).headers["location"]
            before = watched.memory_info().rss
            headers = {**PIECE, "Upload-Offset": "0", "Content-Length": str(size)}
            answer = client.patch(path, content=body(), headers=headers)
            assert answer.status_code == 204, answer.text
            task = client.get(answer.headers["content-location"]).json()
            assert (task["size"], task["status"]) == (size, "queued")
    assert most - before < 30_000_000


class Relay:
    """Passes on what clients send to a port, and cuts the connection that brings the total to `most` bytes, once."""

    def __init__(self, port: int, most: int) -> None:
        self._port = port
        self._most = most
        self.passed = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._port), SECONDS)
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(10_000):
                target.sendall(data)
                if target.getpeername()[1] != self._port:
                    continue
                cut, self.passed = self.passed < self._most <= self.passed + len(data), self.passed + len(data)
                if cut:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_a_client_goes_on_after_breaks(tmp_path: Path) -> None:
    """The client that tus has for Python, unchanged, over a connection that breaks."""
    recording = tmp_path / "a.ogg"
    recording.write_bytes(DATA)
    with serve(settings_for(tmp_path / "data")) as server, Relay(server.port, most=1_700_000) as relay:
        address = f"http://127.0.0.1:{relay.port}{PATH}"
        told = run_client("tuspy", TESTS / "tuspy_calls.py", address, str(recording))
        job = server.service.store.get(told["url"].rpartition("/")[2])
        assert told["offsets"] == [500_000, 500_000, len(DATA)]
        assert place(server.service.files, job.file).read_bytes() == DATA
        assert (job.filename, job.options) == ("a.ogg", {"language": "ru"})
        assert len(server.service.store.page().items) == 1
        assert len(DATA) < relay.passed < len(DATA) + 1_000_000  # it did not begin again


def test_the_store_tells_where_to_go_on(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    assert files.received("new") == 0
    piece = files.piece("new", 0, 10)
    piece.write(b"abc")
    assert files.received("new") == 3
    piece.break_off()
    assert files.received("new") == 3
    piece = files.piece("new", 3, 10, "sha1")
    piece.write(b"defghij")
    assert files.received("new") == 3
    assert piece.end(hashlib.sha1(b"defghij").digest()) == 10
    piece.close()
    assert files.received("new") == 10
    assert files.admit("new")
    assert files.admit("new")
    assert files.path("new").read_bytes() == b"abcdefghij"
    assert files.received("new") == 10
    assert not files.admit("other")
    files.remove("new")
    assert json.dumps([str(path) for path in tmp_path.rglob("*") if path.is_file()]) == "[]"
