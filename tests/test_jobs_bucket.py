"""Recordings in an object store: as in a folder, whatever dies or goes away."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from api_server import serve, settings_for, until
from servers import S3
from servers import s3 as s3
from stenograf.errors import FileMissingError, SettingInvalidError, StorageError, UploadTooLargeError
from stenograf.jobs import bucket as bucket_module
from stenograf.jobs import bucket_client, copies, signing
from stenograf.jobs.bucket import BucketFiles
from stenograf.jobs.bucket_client import PART, Client
from stenograf.jobs.copies import Copies
from stenograf.jobs.files import MARK, FileStore
from stenograf.jobs.folder import LocalFiles
from stenograf.jobs.job import LANES
from stenograf.jobs.outbound import Outbound
from stenograf.jobs.runner import REST_SECONDS, Limits, Runner
from stenograf.settings import Settings
from stenograf.transcriber import Transcriber
from work import SHORT, OneModel, hand_in, let_rest_be_over, runtime

MB = 1024 * 1024
TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}


def named(s3: S3, **changes: Any) -> dict[str, Any]:
    """The settings for it, with a folder of its own."""
    return {**s3.settings, "storage_url": f"s3://{s3.bucket}/{uuid.uuid4().hex}/deep", **changes}


@pytest.fixture
def settings(s3: S3, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", **named(s3))


@pytest.fixture
def in_bucket(settings: Settings) -> BucketFiles:
    return BucketFiles(settings)


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    if request.param == "folder":
        return LocalFiles(tmp_path / "files")
    found: BucketFiles = request.getfixturevalue("in_bucket")
    return found


def everything(store: FileStore) -> list[str]:
    """All that the store holds."""
    if isinstance(store, LocalFiles):
        return sorted(path.name for path in store.folder.rglob("*") if path.is_file())
    assert isinstance(store, BucketFiles)
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []
    client = store._client
    with httpx2.Client(trust_env=False) as web:
        begun = client.unfinished(web, "audio")
    names = [found["path"].rpartition("/")[2] for found in client.list("")]
    return sorted([name for name in names if name != MARK] + [key for key, _, _ in begun])


def bring(store: FileStore, data: bytes = b"abc") -> str:
    incoming = store.create()
    incoming.write(data)
    return incoming.commit()


def come(store: FileStore, name: str, *pieces: bytes) -> None:
    """A file comes in pieces."""
    at = 0
    for data in pieces:
        piece = store.piece(name, at, 1 << 40)
        piece.write(data)
        at = piece.end() or 0
        piece.close()


def noise(size: int) -> bytes:
    return os.urandom(1000) * (size // 1000 + 1)


# What every store does


@pytest.mark.parametrize("size", [0, 3, PART, PART + 1, 3 * PART + 5])
def test_a_file_comes_in(store: FileStore, size: int) -> None:
    data = noise(size)[:size]
    incoming = store.create()
    for start in range(0, size, 700_000):
        incoming.write(data[start : start + 700_000])
    assert (incoming.size, incoming.digest) == (size, hashlib.sha256(data).hexdigest())
    name = incoming.commit()
    assert everything(store) == [name]
    found = store.look(name)
    assert found.size == size
    assert abs(found.modified - time.time()) < 60
    assert b"".join(store.read(name)) == data
    with store.local(name) as path:
        assert path.read_bytes() == data
    assert everything(store) == [name]


def test_parts_of_a_file(store: FileStore) -> None:
    data = noise(9_000_000)
    name = bring(store, data)
    for start, end in ((0, 1), (5, 8_999_000), (8_000_000, len(data)), (7, 7)):
        assert b"".join(store.read(name, start, end)) == data[start:end]
    assert b"".join(store.read(name, 8_999_990)) == data[8_999_990:]
    other = bring(store, b"other")
    assert store.look(name).tag != store.look(other).tag


@pytest.mark.parametrize("size", [3, 3 * PART])
def test_a_file_that_is_given_up_leaves_nothing(store: FileStore, size: int) -> None:
    data = noise(size)
    under_way = store.create()
    under_way.write(data)
    under_way.abort()
    whole = store.create()
    whole.write(data)
    whole.commit()
    whole.abort()  # its job could not be written
    until(lambda: everything(store) == [])


def test_a_file_that_is_gone(store: FileStore) -> None:
    name = bring(store)
    store.remove(name)
    store.remove(name)
    store.remove(None)
    assert everything(store) == []
    for ask in (lambda: store.look(name), lambda: next(store.read(name)), lambda: store.local(name).__enter__()):
        with pytest.raises(FileMissingError) as caught:
            ask()
        assert str(store.folder) not in str(caught.value)


def test_a_file_that_is_too_large(tmp_path: Path, settings: Settings) -> None:
    for store in (LocalFiles(tmp_path, max_bytes=10), BucketFiles(settings, max_bytes=10)):
        incoming = store.create()
        incoming.write(b"1234567890")
        with pytest.raises(UploadTooLargeError):
            incoming.write(b"1")
        incoming.abort()


def test_a_file_comes_in_pieces(store: FileStore) -> None:
    assert store.received("new") == 0
    assert not store.admit("new")
    first, second = noise(2 * PART + 3), noise(1000)
    come(store, "new", first)
    assert store.received("new") == len(first)
    broken = store.piece("new", len(first), 1 << 40)
    broken.write(second)
    broken.break_off()
    broken.close()
    whole = first + second
    assert store.received("new") == len(whole)
    assert store.admit("new")
    assert store.admit("new")
    assert everything(store) == ["new"]
    assert b"".join(store.read("new")) == whole
    assert store.received("new") == len(whole)


def test_pieces_with_a_checksum(store: FileStore) -> None:
    come(store, "new", b"abc")
    data = noise(PART + 7)
    wrong = store.piece("new", 3, 1 << 40, "sha256")
    wrong.write(data)
    assert store.received("new") == 3
    assert wrong.end(hashlib.sha256(b"other").digest()) is None
    wrong.close()
    given_up = store.piece("new", 3, 1 << 40, "sha1")
    given_up.write(data)
    given_up.break_off()
    assert store.received("new") == 3
    right = store.piece("new", 3, 1 << 40, "sha1")
    right.write(data)
    assert right.end(hashlib.sha1(data).digest()) == 3 + len(data)
    right.close()
    assert store.received("new") == 3 + len(data)
    assert store.admit("new")
    assert b"".join(store.read("new")) == b"abc" + data


def test_more_than_was_announced(store: FileStore) -> None:
    piece = store.piece("new", 0, 10)
    with pytest.raises(UploadTooLargeError):
        piece.write(b"x" * 11)
    piece.close()


def test_an_upload_is_removed(store: FileStore) -> None:
    come(store, "new", b"abc", b"def")
    store.remove("new")
    assert everything(store) == []
    assert store.received("new") == 0


def test_what_nobody_names_is_swept_away(store: FileStore) -> None:
    kept, orphan = bring(store), bring(store)
    come(store, "upload", b"abc")
    come(store, "forgotten", b"abc")
    assert store.sweep(lambda: {kept, "upload"}, age=60) == 0  # all of them are young
    assert store.sweep(lambda: {kept, "upload"}, age=-60) == 2
    assert orphan not in everything(store)
    assert store.look(kept).size == store.received("upload") == 3
    late = bring(store)

    def written_meanwhile() -> set[str]:
        return {kept, "upload", late}

    assert store.sweep(written_meanwhile, age=-60) == 0


def test_a_check(store: FileStore) -> None:
    store.check()
    store.expect_room(1000)
    assert "@" not in store.shown


# In a bucket


def test_memory_does_not_grow_with_the_file(in_bucket: BucketFiles) -> None:
    process, most, size = psutil.Process(), 0, 0
    block = bytes(MB)
    bring(in_bucket, bytes(2 * PART))  # what is loaded at the first use does not count
    before = process.memory_info().rss
    incoming = in_bucket.create()
    for _ in range(200):
        incoming.write(block)
        most = max(most, process.memory_info().rss)
    name = incoming.commit()
    with in_bucket.local(name, lambda: None) as path:
        most = max(most, process.memory_info().rss)
        assert path.stat().st_size == 200 * MB
    for block in in_bucket.read(name):
        size += len(block)
        most = max(most, process.memory_info().rss)
    assert size == 200 * MB
    print(f"200 MB in and out: {(most - before) / 1e6:.0f} MB of memory more")
    assert most - before < 100_000_000


def dies(settings: Settings, code: str) -> None:
    """Runs code with the store as `files` in a process of its own, that kills itself."""
    names = ("storage_url", "s3_endpoint", "s3_region", "s3_access_key", "s3_secret_key")
    given = {name: getattr(settings, name) for name in names}
    head = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from stenograf.jobs.bucket import BucketFiles\nfrom stenograf.settings import Settings\n"
        f"files = BucketFiles(Settings(data_dir=Path(sys.argv[1]), **{given!r}))\n"
        "def die():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", head + code, str(settings.data_dir)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_process_dies_while_a_file_comes_in(settings: Settings) -> None:
    store = BucketFiles(settings)
    kept = bring(store)
    dies(
        settings,
        "incoming = files.create()\n"
        "for _ in range(40):\n    incoming.write(bytes(1 << 20))\n"
        "import httpx2\nwith httpx2.Client(trust_env=False) as web:\n"
        "    while not files._client.unfinished(web, 'audio'):\n        time.sleep(0.01)\n"
        "die()\n",
    )
    assert len(everything(store)) == 2
    assert store.sweep(lambda: {kept}, age=0) == 1
    assert everything(store) == [kept]


def test_a_process_dies_while_a_file_is_put_together(settings: Settings) -> None:
    store = BucketFiles(settings)
    data = noise(3 * PART)
    come(store, "new", data)
    dies(
        settings,
        "get, count = files._client.get, 0\n"
        "def counted(*what):\n"
        "    global count\n"
        "    count += 1\n"
        "    return die() if count > 4 else get(*what)\n"
        "files._client.get = counted\n"
        "files.admit('new')\n",
    )
    assert store.received("new") == len(data)
    assert len(everything(store)) == 5  # four stretches, and what was begun
    assert store.admit("new")
    assert b"".join(store.read("new")) == data
    assert store.sweep(lambda: {"new"}, age=0) == 1
    assert everything(store) == ["new"]


def test_a_process_dies_before_the_stretches_are_removed(settings: Settings) -> None:
    store = BucketFiles(settings)
    data = noise(2 * PART)
    come(store, "new", data)
    dies(settings, "files._client.delete = lambda *paths: die()\nfiles.admit('new')\n")
    assert "new" in everything(store)
    assert store.received("new") == len(data)
    assert store.admit("new")
    assert everything(store) == ["new"]


def test_a_process_dies_over_its_copy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BucketFiles(settings)
    name = bring(store)
    dies(settings, f"with files.local({name!r}):\n    die()\n")
    left = {path.suffix for path in store.folder.iterdir()}
    assert left == {"", ".lock"}
    with store.local(name) as path:
        monkeypatch.setattr(copies, "YOUNG_SECONDS", 0.0)
        assert Copies(store.folder).sweep(young=-1.0) == 1
        assert path.read_bytes() == b"abc"  # in use: another process may not take it away
        assert len(list(store.folder.iterdir())) == 2
    assert list(store.folder.iterdir()) == []


def test_several_put_a_file_together(settings: Settings) -> None:
    data = noise(2 * PART)
    come(BucketFiles(settings), "new", data)
    barrier, told = threading.Barrier(3), []

    def admit() -> None:
        store = BucketFiles(settings)
        barrier.wait(60)
        told.append(store.admit("new"))

    threads = [threading.Thread(target=admit) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert told == [True] * 3
    assert everything(BucketFiles(settings)) == ["new"]
    assert b"".join(BucketFiles(settings).read("new")) == data


def test_another_process_is_faster(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = BucketFiles(settings), BucketFiles(settings)
    data = noise(3 * PART)
    come(slow, "new", data)
    get, asked = slow._client.get, 0

    def late(*what: Any) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 4:
            assert fast.admit("new")
        return get(*what)

    monkeypatch.setattr(slow._client, "get", late)
    assert slow.admit("new")
    assert asked >= 4
    until(lambda: everything(fast) == ["new"])
    assert b"".join(fast.read("new")) == data


def test_two_processes_write_the_same_stretch(settings: Settings) -> None:
    """One of them has not noticed yet that its client has gone to the other."""
    data = noise(PART + 1000)
    left, right = BucketFiles(settings), BucketFiles(settings)
    stale = left.piece("new", 0, len(data))
    stale.write(data[:500])
    come(right, "new", data)
    stale.break_off()
    assert right.received("new") == len(data)
    assert right.admit("new")
    assert b"".join(right.read("new")) == data


def test_a_stretch_that_is_missing(in_bucket: BucketFiles) -> None:
    come(in_bucket, "new", b"abc", b"def", b"ghi")
    in_bucket._client.delete("uploads/new/3-6")
    assert in_bucket.received("new") == 3
    assert not in_bucket.admit("new")
    assert everything(in_bucket) == ["0-3", "6-9"]


def test_a_reader_that_stops_makes_no_copy(in_bucket: BucketFiles) -> None:
    name = bring(in_bucket, noise(3 * PART))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), in_bucket.local(name, stop):
        raise AssertionError
    assert everything(in_bucket) == [name]


def test_an_upload_that_broke_off_needs_keys(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    environment = pytest.MonkeyPatch()
    with environment.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", settings.s3_access_key or "")
        patched.setenv("AWS_SECRET_ACCESS_KEY", settings.s3_secret_key or "")
        store = BucketFiles(replace(settings, s3_access_key=None, s3_secret_key=None))
        name = bring(store)
        for _ in range(2):
            assert store.sweep(lambda: {name}, age=0) == 0
        link = store.link(name, "inline", "audio/ogg", 60)
    assert caplog.text.count("AbortIncompleteMultipartUpload") == 1
    assert httpx2.get(link or "", trust_env=False).content == b"abc"


# Links


def test_a_link(in_bucket: BucketFiles) -> None:
    name = bring(in_bucket, b"abcdef")
    shown = "inline; filename=\"a b.ogg\"; filename*=UTF-8''%D1%8F.ogg"
    link = in_bucket.link(name, shown, "audio/ogg", 60)
    assert link is not None
    assert "p@ss" not in link
    answer = httpx2.get(link, trust_env=False)
    assert answer.content == b"abcdef"
    assert answer.headers["content-disposition"] == shown
    assert answer.headers["content-type"] == "audio/ogg"
    part = httpx2.get(link, headers={"Range": "bytes=1-2"}, trust_env=False)
    assert (part.status_code, part.content) == (206, b"bc")


@pytest.mark.parametrize(("endpoint", "token"), [("http://127.0.0.1:9000", None), ("https://s3.example", "a+/=b")])
def test_signatures_are_those_of_obstore(endpoint: str, token: str | None) -> None:
    import obstore
    from obstore.store import S3Store

    config: Any = {"region": "eu-west-1", "aws_endpoint_url_s3": endpoint, "access_key_id": "AK"}
    config |= {"secret_access_key": "S/K+"} | ({"session_token": token} if token else {})
    theirs = obstore.sign(
        S3Store("recordings", config=config, client_options={"allow_http": True}), "GET", "a/b-c", timedelta(seconds=90)
    )
    stamp = theirs.partition("X-Amz-Date=")[2][:16]
    now = time.mktime(time.strptime(stamp, "%Y%m%dT%H%M%SZ")) - time.timezone
    place = signing.Bucket(endpoint, "recordings", "eu-west-1")
    ours = signing.signed(place, signing.Keys("AK", "S/K+", token), "GET", "a/b-c", seconds=90, now=now)
    assert httpx2.URL(ours).params == httpx2.URL(theirs).params
    assert ours.partition("?")[0] == theirs.partition("?")[0]


# When the object store is away, or refuses


class Gate:
    """A way to a server that can be shut."""

    def __init__(self, endpoint: str) -> None:
        self._to = httpx2.URL(endpoint)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        self._accept()

    def _accept(self) -> None:
        threading.Thread(target=self._pass_on, args=(self._listening,), daemon=True).start()

    def _pass_on(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection((self._to.host, self._to.port or 80))
                self._open += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def shut(self) -> None:
        for end in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open = []

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._accept()


@pytest.fixture
def gate(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setattr(bucket_client, "RETRY_SECONDS", 1.0)
    made = Gate(s3.endpoint)
    yield made
    made.shut()


def failing(store: BucketFiles) -> list[Callable[[], object]]:
    return [
        store.check,
        lambda: store.look("x"),
        lambda: next(store.read("x", 0, 5)),
        lambda: store.received("x"),
        lambda: store.admit("x"),
        lambda: bring(store),
        lambda: bring(store, bytes(3 * PART)),
        lambda: come(store, "x", b"abc"),
        lambda: store.remove("x"),
        lambda: store.sweep(list),
        lambda: store._client.give_up_unfinished("audio", 0.0),
        lambda: store.local("x").__enter__(),
    ]


def test_nobody_answers(
    settings: Settings, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    store = BucketFiles(replace(settings, s3_endpoint=gate.endpoint))
    name = bring(store)
    gate.shut()
    for ask in failing(store):
        with pytest.raises(StorageError) as caught:
            ask()
        assert gate.endpoint in caught.value.message
        assert "does not answer" in caught.value.message
        assert caught.value.retryable
        assert caught.value.__suppress_context__
    gate.open()
    assert b"".join(store.read(name)) == b"abc"
    for secret in (settings.s3_access_key, settings.s3_secret_key, "X-Amz"):
        assert str(secret) not in caplog.text


def test_it_goes_away_while_a_file_comes_in(settings: Settings, gate: Gate) -> None:
    store = BucketFiles(replace(settings, s3_endpoint=gate.endpoint))
    kept = bring(store)
    incoming = store.create()
    for _ in range(20):
        incoming.write(bytes(MB))
    gate.shut()

    def go_on() -> None:
        for _ in range(200):
            incoming.write(bytes(MB))

    with pytest.raises(StorageError):
        go_on()
    with pytest.raises(StorageError):
        incoming.commit()
    incoming.abort()
    gate.open()
    store.sweep(lambda: {kept}, age=0)
    assert everything(store) == [kept]


def test_there_is_no_such_bucket(settings: Settings, s3: S3) -> None:
    store = BucketFiles(replace(settings, storage_url="s3://nowhere/deep"))
    for ask in failing(store):
        with pytest.raises(StorageError) as caught:
            ask()
        assert "no bucket nowhere" in caught.value.message
        assert s3.endpoint in caught.value.message


def test_a_key_that_is_wrong(settings: Settings) -> None:
    store = BucketFiles(replace(settings, s3_secret_key="WRONGEXAMPLE"))
    try:
        store.check()
    except StorageError as error:
        assert "refuses" in error.message
        assert "STENOGRAF_S3_SECRET_KEY" in error.hint
        assert "WRONG" not in str(error)
    else:
        pytest.skip("this server takes any key")
    for ask in failing(store):
        with pytest.raises(StorageError, match="refuses"):
            ask()


def test_it_takes_connections_and_says_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUEST_SECONDS", "SHORT_SECONDS", "CHECK_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(bucket_client, name, 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        store = BucketFiles(replace(settings, s3_endpoint=f"http://127.0.0.1:{listening.getsockname()[1]}"))
        for ask in failing(store):
            with pytest.raises(StorageError, match="does not answer"):
                ask()


def test_there_are_no_keys(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # where Amazon's machines are asked for them
    store = BucketFiles(replace(settings, s3_access_key=None, s3_secret_key=None))
    with pytest.raises(StorageError, match="no keys") as caught:
        store.check()
    assert "STENOGRAF_S3_ACCESS_KEY" in caught.value.hint


def test_half_a_key(settings: Settings) -> None:
    with pytest.raises(SettingInvalidError, match="one half"):
        BucketFiles(replace(settings, s3_secret_key=None))


def test_the_library_is_missing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SettingInvalidError, match=r"stenograf\[cluster\]"):
        BucketFiles(settings)


def test_nothing_hangs_after_a_fork(in_bucket: BucketFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    in_bucket.check()
    monkeypatch.setattr(Client, "_used_by", os.getpid() + 1)  # as if this were a child of the process that used it
    with pytest.raises(RuntimeError, match="fork"):
        in_bucket.check()


def test_a_service_without_a_bucket_needs_no_library(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stenograf.runtime import Runtime; "
        "from stenograf.settings import Settings\n"
        "Runtime(Settings(data_dir=Path(sys.argv[1]))).files.check()\n"
        "assert 'obstore' not in sys.modules and 'stenograf.jobs.bucket' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_job_waits_until_its_recording_can_be_had(tmp_path: Path, s3: S3, gate: Gate, whisper: Transcriber) -> None:
    with runtime(tmp_path, **named(s3, s3_endpoint=gate.endpoint)) as service:
        runner = Runner(service.leases, service.files, OneModel(whisper), Outbound(), worker="w", limits=Limits())
        job = hand_in(service, SHORT, options={"temperature": 0.0})
        gate.shut()
        for attempt in range(1, 5):  # more often than a job may fail
            assert runner.run_one(LANES)
            found = service.jobs.get(job.id)
            assert (found.state, found.attempt, found.failures) == ("queued", attempt, 0)
            assert found.run_at > time.time() + REST_SECONDS / 2
            let_rest_be_over(service.database)
        gate.open()
        assert runner.run_one(LANES)
        assert service.jobs.get(job.id).state == "done"
        service.files.remove(job.file)
        lost = hand_in(service, SHORT)
        service.files.remove(lost.file)
        assert runner.run_one(LANES)
        error = service.jobs.get(lost.id).error
        assert error is not None
        assert error.code == "file_missing"


# The service


def test_a_service_with_a_bucket(tmp_path: Path, s3: S3, gate: Gate) -> None:
    data = noise(9_000_000)
    with serve(settings_for(tmp_path, **named(s3, s3_endpoint=gate.endpoint))) as server:
        task = server.sent(data, "meeting.ogg")
        path = f"/api/v1/tasks/{task}/audio"
        whole = server.client.get(path)
        assert (whole.status_code, whole.content) == (200, data)
        assert whole.headers["content-length"] == str(len(data))
        assert whole.headers["content-type"] == "audio/ogg"
        assert server.client.head(path).headers["content-length"] == str(len(data))
        part = server.client.get(path, headers={"Range": "bytes=8999000-", "If-Range": whole.headers["etag"]})
        assert (part.status_code, part.content) == (206, data[8_999_000:])
        assert server.client.get(path, headers={"Range": "bytes=99999999-"}).status_code == 416
        server.service.runtime.check_files(claim=True)  # as `serve` does at its start
        time.sleep(1.0)  # so long an answer of /ready is good
        assert server.client.get("/ready").json()["checks"]["storage"]["ok"]
        gate.shut()
        for answer in (server.client.get(path), server.send(b"abc")):
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
            assert answer.headers["retry-after"]
            assert gate.endpoint not in answer.text
        assert server.client.get(f"/api/v1/tasks/{task}").status_code == 200
        time.sleep(1.0)  # so long the answer of /ready is good
        assert not server.client.get("/ready").json()["checks"]["storage"]["ok"]
        assert server.client.delete(f"/api/v1/tasks/{task}").status_code == 204
        gate.open()
        assert server.service.files.sweep(list, age=0) == 1  # its recording
        assert everything(server.service.files) == []


def test_a_recording_by_a_link(tmp_path: Path, s3: S3) -> None:
    with serve(settings_for(tmp_path, download_links=60.0, **named(s3))) as server:
        task = server.sent(b"sound", "Совещание.ogg")
        path = f"/api/v1/tasks/{task}/audio"
        answer = server.client.get(path)
        assert answer.status_code == 307
        assert answer.headers["location"].startswith(s3.endpoint)
        there = httpx2.get(answer.headers["location"], trust_env=False)
        assert there.content == b"sound"
        assert "UTF-8" in there.headers["content-disposition"]
        assert server.client.head(path).status_code == 200
        server.service.files.remove(server.service.store.get(task).file)
        assert server.client.get(path).status_code == 404


def test_an_upload_goes_on_at_another_replica(tmp_path: Path, s3: S3) -> None:
    data = noise(2 * PART + 100)
    where = named(s3)
    one, other = settings_for(tmp_path, **where), settings_for(tmp_path, **where)
    half = PART + 50
    with serve(one) as first, serve(other) as second:
        begun = first.client.post("/api/v1/uploads", headers={**TUS, "Upload-Length": str(len(data))})
        path = begun.headers["location"]
        sent = first.client.patch(path, content=data[:half], headers={**PIECE, "Upload-Offset": "0"})
        assert sent.headers["upload-offset"] == str(half)
        assert second.client.head(path, headers=TUS).headers["upload-offset"] == str(half)
        digest = hashlib.sha1(data[half:]).digest()
        checked = {"Upload-Checksum": "sha1 " + base64.b64encode(digest).decode(), "Upload-Offset": str(half)}
        done = second.client.patch(path, content=data[half:], headers={**PIECE, **checked})
        assert done.status_code == 204, done.text
        job = first.service.store.get(done.headers["stenograf-task-id"])
        assert (job.size, job.digest) == (len(data), hashlib.sha256(data).hexdigest())
        assert everything(first.service.files) == [job.file]
        assert first.client.get(f"/api/v1/tasks/{job.id}/audio").content == data


def test_it_goes_away_in_the_middle_of_an_upload(tmp_path: Path, s3: S3, gate: Gate) -> None:
    data = noise(PART + 1000)
    with serve(settings_for(tmp_path, **named(s3, s3_endpoint=gate.endpoint))) as server:
        begun = server.client.post("/api/v1/uploads", headers={**TUS, "Upload-Length": str(len(data))})
        path = begun.headers["location"]
        sent = server.client.patch(path, content=data[:PART], headers={**PIECE, "Upload-Offset": "0"})
        assert sent.status_code == 204
        gate.shut()
        rest = {**PIECE, "Upload-Offset": str(PART)}
        answer = server.client.patch(path, content=data[PART:], headers=rest)
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert server.client.head(path, headers=TUS).status_code == 503
        gate.open()
        assert server.client.head(path, headers=TUS).headers["upload-offset"] == str(PART)
        done = server.client.patch(path, content=data[PART:], headers=rest)
        job = server.service.store.get(done.headers["stenograf-task-id"])
        assert job.digest == hashlib.sha256(data).hexdigest()


def test_an_upload_that_breaks_off(tmp_path: Path, s3: S3) -> None:
    data = noise(PART + 300_000)
    with serve(settings_for(tmp_path, **named(s3))) as server:
        begun = server.client.post("/api/v1/uploads", headers={**TUS, "Upload-Length": str(len(data))})
        path = begun.headers["location"]

        def here() -> int:
            return int(server.client.head(path, headers=TUS).headers["upload-offset"])

        with server.connect() as connection:
            head = f"PATCH {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\nUpload-Offset: 0\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in PIECE.items())
            connection.sendall(head.encode() + b"\r\n" + data[:-1000])
            until(lambda: here() >= PART)
        came = here()
        done = server.client.patch(path, content=data[came:], headers={**PIECE, "Upload-Offset": str(came)})
        if done.status_code == 409:  # what was still under way counts too
            came = int(done.headers["upload-offset"])
            done = server.client.patch(path, content=data[came:], headers={**PIECE, "Upload-Offset": str(came)})
        assert done.status_code == 204
        job = server.service.store.get(done.headers["stenograf-task-id"])
        assert job.digest == hashlib.sha256(data).hexdigest()
        assert everything(server.service.files) == [job.file]


def test_ages_of_what_is_unfinished(in_bucket: BucketFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that comes in over hours is not given up with other files."""
    limits: list[float] = []

    def noted(_folder: str, limit: float) -> int:
        limits.append(limit)
        return 0

    monkeypatch.setattr(in_bucket._client, "give_up_unfinished", noted)
    in_bucket.sweep(list, age=3600)
    assert limits[0] == pytest.approx(time.time() - 3600 * bucket_module.UNFINISHED_AGES, abs=60)
