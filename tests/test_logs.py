"""What a line of the log says, what it never says, and that several processes may write one file."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from filelock import FileLock

from stenograf import logs
from stenograf.errors import SettingInvalidError
from stenograf.logs import MASK, SharedFileHandler, bind, new_request_id, redact, setup, valid_request_id

KEY = "stg_" + "Ab3-_" * 6
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl-_x"

Lines = Callable[[], list[str]]
log = logging.getLogger("stenograf.somewhere")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging as it was: the root logger belongs to all tests."""
    root = logging.getLogger()
    names = (*logs.NOISY, *logs.UVICORN)
    levels = {name: logging.getLogger(name).level for name in names}
    level = root.level
    yield
    for handler in [handler for handler in root.handlers if isinstance(handler, logs.LineHandler)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    for name in names:
        logging.getLogger(name).setLevel(levels[name])


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Lines:
    """What was written to the real stdout since the last call; nothing may go to stderr."""

    def read() -> list[str]:
        out, err = capfd.readouterr()
        assert err == ""
        return out.splitlines()

    return read


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


def text_line(lines: Lines) -> str:
    return only(lines())


def json_line(lines: Lines) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(only(lines()))
    return found


def test_text_is_time_level_logger_message_and_extras(lines: Lines) -> None:
    setup(level="info", json=False)
    with bind(request_id="r-1", task_id="t-1"):
        log.warning("took %d files", 3, extra={"path": Path("/a b"), "seconds": 1.5, "names": ["a"], "model": "base"})
    line = text_line(lines)
    found = re.fullmatch(r"(\S+ \S+) WARNING stenograf\.somewhere took 3 files (.*)", line)
    assert found, line
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found[1])).total_seconds()) < 60
    assert found[2] == 'process=api request_id=r-1 task_id=t-1 path="/a b" seconds=1.5 names=["a"] model=base'


def test_json_is_one_object_a_line(lines: Lines) -> None:
    setup(level="info", json=True, process="worker-1")
    log.info(
        "файл %s", "имя", extra={"count": 2, "ratio": float("nan"), "where": Path("/a"), "deep": {"a": {1: (1, b"x")}}}
    )
    found = json_line(lines)
    assert list(found)[:7] == ["ts", "level", "logger", "message", "process", "request_id", "task_id"]
    ts = found.pop("ts")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ts)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(ts)).total_seconds()) < 60
    assert found == {
        "level": "INFO",
        "logger": "stenograf.somewhere",
        "message": "файл имя",
        "process": "worker-1",
        "request_id": None,
        "task_id": None,
        "count": 2,
        "ratio": "nan",
        "where": "/a",
        "deep": {"a": {"1": [1, "x"]}},
    }


@pytest.mark.parametrize("as_json", [True, False])
def test_an_exception_comes_with_its_traceback(lines: Lines, as_json: bool) -> None:
    setup(level="info", json=as_json)
    try:
        raise ValueError(f"no\n2026-01-01 00:00:00 INFO forged {KEY}\x1b[2J")
    except ValueError:
        log.exception("broke")
    if as_json:
        found = json_line(lines)
        assert found["exception"].startswith("Traceback (most recent call last):\n")
        assert f"forged stg_{MASK}" in found["exception"]
        return
    first, *rest = lines()
    assert " broke process=api" in first
    assert rest[0].strip() == "Traceback (most recent call last):"
    assert any("forged" in line for line in rest)
    assert all(line.startswith("    ") for line in rest), "a line of its own could be forged"
    assert "\x1b" not in "".join(rest)


def test_a_file_gets_the_same_lines(lines: Lines, tmp_path: Path) -> None:
    file = tmp_path / "new" / "stenograf.log"
    setup(level="info", json=True, file=file)
    log.info("one")
    log.info("two")
    assert file.read_text("utf-8").splitlines() == lines()


def test_the_level_holds_for_libraries_and_the_noisy_only_warn(lines: Lines) -> None:
    setup(level="debug", json=True)
    for name in ("httpx2", "httpcore2.connection", "urllib3.pool", "filelock", "asyncio", "python_multipart.multipart"):
        logging.getLogger(name).info("chatter")
    logging.getLogger("sqlalchemy.pool").error("heard")
    log.debug("detail")
    assert [json.loads(line)["message"] for line in lines()] == ["heard", "detail"]
    setup(level="error", json=True)
    logging.getLogger("httpx2").warning("a level of its own does not get it past the one that was asked for")
    log.error("bad")
    assert json_line(lines)["message"] == "bad"


def test_set_up_again_replaces_and_leaves_others_alone(lines: Lines, caplog: pytest.LogCaptureFixture) -> None:
    setup(level="info", json=True)
    setup(level="info", json=False)
    log.info("once")
    assert " once " in text_line(lines)
    assert caplog.messages == ["once"]


def test_a_replaced_stdout_is_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    setup(level="info", json=True)
    log.info("caught \udcff")
    assert json.loads(capsys.readouterr().out)["message"] == "caught \udcff"


def test_ids_of_nested_contexts(lines: Lines) -> None:
    setup(level="info", json=True)

    def ids() -> tuple[str | None, str | None]:
        log.info("x")
        found = json_line(lines)
        return found["request_id"], found["task_id"]

    with bind(request_id="r"):
        with bind(task_id="t"):
            assert ids() == ("r", "t")
            with bind(task_id="other"):
                assert ids() == ("r", "other")
            assert ids() == ("r", "t")
        assert ids() == ("r", None)
    assert ids() == (None, None)
    with bind(task_id="bound"):
        log.info("x", extra={"task_id": "given"})
        assert json_line(lines)["task_id"] == "given"
    with pytest.raises(RuntimeError), bind(task_id="t"):
        raise RuntimeError
    assert logs.task_id.get() is None


def test_ids_do_not_leak_between_tasks_and_threads(lines: Lines) -> None:
    setup(level="info", json=True)

    async def one(name: str) -> None:
        with bind(request_id=name):
            await asyncio.sleep(0)
            log.info(name)
            await asyncio.to_thread(log.info, name)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(f"r{number}") for number in range(20)))

    asyncio.run(all_of_them())
    found = [json.loads(line) for line in lines()]
    assert len(found) == 40
    assert all(line["request_id"] == line["message"] for line in found)


def test_a_generator_may_be_closed_elsewhere() -> None:
    async def main() -> None:
        async def stream() -> Any:
            with bind(task_id="t"):
                yield logs.task_id.get()

        opened = stream()
        assert await anext(opened) == "t"
        await asyncio.create_task(opened.aclose())  # a task has a context of its own

    asyncio.run(main())


def test_request_ids() -> None:
    assert len({new_request_id() for _ in range(100)}) == 100
    for good in ("a", "a b", "~!-", "x" * 128, new_request_id()):
        assert valid_request_id(good) == good
    for bad in (None, "", "x" * 129, "a\nb", "a\n", "\ta", "é", "a\x7f", " a", "a ", "\N{FULLWIDTH DIGIT ONE}"):
        assert re.fullmatch("[0-9a-f]{32}", valid_request_id(bad)), bad


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Bearer top secret", "Authorization: ***"),
        ("got authorization=Basic dG9w", "got authorization=***"),
        ("{'authorization': 'Bearer top', 'host': 'h'}", "{'authorization': '***', 'host': 'h'}"),
        ("[(b'authorization', b'Basic top'), (b'host', b'h')]", "[(b'authorization', b'***'), (b'host', b'h')]"),
        ('{"X-API-Key": "top", "a": "b"}', '{"X-API-Key": "***", "a": "b"}'),
        (r'"{\"x-api-key\": \"top\", \"a\": 1}"', r'"{\"x-api-key\": \"***\", \"a\": 1}"'),
        (r'{"password": "to\"p", "a": 1}', '{"password": "***", "a": 1}'),
        ("X-API-Key: top\nnext", "X-API-Key: ***\nnext"),
        (f"the key {KEY}, then", "the key stg_***, then"),
        (f"%3D{KEY} _{KEY}", "%3Dstg_*** _stg_***"),
        ("sk_" + "a" * 20 + " sk-" + "b" * 40, "sk_*** sk-***"),
        ("%3Dsk_" + "a" * 20, "%3Dsk_***"),
        (f"sent {JWT}.", "sent ***"),
        (f"cookie={JWT}; x", "cookie=***; x"),
        ("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD/= end", "whsec_*** end"),
        ("postgresql+psycopg://ann:p#a/s@s@db:5432/x", "postgresql+psycopg://ann:***@db:5432/x"),
        ("redis://:top@host/0", "redis://:***@host/0"),
        ("host=db password=to,p user=ann", "host=db password=*** user=ann"),
        ("client_secret='to p' x", "client_secret=*** x"),
        (
            "GET /a?token=1&model=base&key=2&api_key=3&secret=4&password=5&Signature=6&access_token=7 HTTP/1.1",
            "GET /a?token=***&model=base&key=***&api_key=***&secret=***&password=***&Signature=***&access_token=*** "
            "HTTP/1.1",
        ),
    ],
)
def test_secrets_are_masked(text: str, left: str) -> None:
    assert redact(text) == left
    assert redact(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "task_processing_of_a_long_name_is_no_key",
        "sk_short stg_short",
        "http://host:8000/a@b.c and ssh://git@host/x",
        "http://host:8000 mail ann@host",
        "GET /api/v1/tasks?status=done&sort=key HTTP/1.1",
        "the word authorization, the word token and eyJhbGciOi.alone",
        "3 tokens: a, b",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "unit", ["eyJ", "eyJa.", "a://a:", "stg_", "&token=", 'password="', '"token":"', "_token", "a-"]
)
def test_no_text_makes_redacting_slow(unit: str) -> None:
    # Quadratic, this would take minutes; it takes a tenth of a second.
    worker = threading.Thread(target=redact, args=(unit * (200_000 // len(unit)),), daemon=True)
    worker.start()
    worker.join(20)
    assert not worker.is_alive()


@pytest.mark.parametrize("as_json", [True, False])
def test_no_secret_gets_into_a_line(lines: Lines, as_json: bool) -> None:
    setup(level="info", json=as_json)
    secret = "hush-hush"
    log.info("sent %s", {"Authorization": f"Bearer {secret}"})
    log.info(
        "x",
        extra={"hub_token": secret, "headers": {"X-API-Key": secret}, "raw": [(b"authorization", b"Basic hush-hush")]},
    )
    log.info("x", extra={"url": f"https://ann:{secret}@host/", "deep": [{"a": [f"?token={secret}"]}]})
    log.info("x", extra={"object": {"password": None}})
    with bind(request_id=KEY):
        log.info("x")
    try:
        raise RuntimeError(f"password={secret}")
    except RuntimeError:
        log.exception("x")
    written = "\n".join(lines())
    assert secret not in written
    assert KEY not in written
    assert written.count(MASK) == 9, "the source line in the traceback is one"
    assert "null" in written, "a password that is not there is no secret"


@pytest.mark.parametrize("formatter", [logs.TextFormatter("api"), logs.JsonFormatter("api")])
def test_a_wrong_call_loses_no_line_and_shows_no_secret(formatter: logging.Formatter) -> None:
    record = {"name": "x", "msg": "%d of %s", "args": ("three", "redis://:hush-hush@host")}
    line = formatter.format(logging.makeLogRecord(record))
    assert "%d of %s (the arguments do not fit: ('three', 'redis://:***@host'))" in line


NASTY = "a\nb\r\x1b[31m\x00\x7f\x85\x9b\u2028\u202e\u2066c"


def test_text_cannot_be_forged(lines: Lines) -> None:
    setup(level="info", json=False)
    log.info("got %s", NASTY, extra={"name\n": NASTY, "file": NASTY})
    line = text_line(lines)
    assert r"got a\nb\r\x1b[31m\x00\x7f\x85\x9b\u2028\u202e\u2066c " in line
    assert line.isprintable()


def test_json_stays_one_line_and_says_it_all(lines: Lines) -> None:
    setup(level="info", json=True)
    log.info(NASTY, extra={"x": NASTY})
    line = only(lines())  # splitlines() breaks at \x85 and \u2028 too
    assert line.isprintable()
    assert json.loads(line)["message"] == json.loads(line)["x"] == NASTY


def test_an_extra_cannot_pass_for_a_field_of_ours(lines: Lines) -> None:
    setup(level="info", json=True)
    holds_itself: list[Any] = []
    holds_itself.append(holds_itself)
    log.info("true", extra={"level": "ERROR", "ts": "1970", "logger": "x", "loop": holds_itself})
    found = json_line(lines)
    assert (found["level"], found["logger"], found["message"]) == ("INFO", "stenograf.somewhere", "true")
    assert not found["ts"].startswith("1970")


def test_the_file_is_put_aside_at_ten_megabytes_and_five_are_kept(tmp_path: Path, lines: Lines) -> None:
    file = tmp_path / "s.log"
    for number in range(1, 6):
        (tmp_path / f"s.log.{number}").write_text(f"old {number}")
    with file.open("wb") as stream:
        stream.truncate(10_000_000 - 50)
    setup(level="info", json=False, file=file)
    log.info("the first line of the new file")
    lines()
    assert "the first line" in file.read_text("utf-8")
    assert (tmp_path / "s.log.1").stat().st_size == 10_000_000 - 50
    assert [(tmp_path / f"s.log.{number}").read_text() for number in range(2, 6)] == [f"old {n}" for n in range(1, 5)]
    assert not (tmp_path / "s.log.6").exists()


def test_a_line_longer_than_the_file_may_be(tmp_path: Path) -> None:
    handler = SharedFileHandler(tmp_path / "s.log", limit=10, keep=2)
    for letter in "abcd":
        handler.write(letter.encode() * 30 + b"\n")
    assert [(tmp_path / name).read_text()[0] for name in ("s.log", "s.log.1", "s.log.2")] == ["d", "c", "b"]
    assert not (tmp_path / "s.log.3").exists()


def test_a_process_stopped_with_the_lock_holds_up_nobody(tmp_path: Path) -> None:
    handler = SharedFileHandler(tmp_path / "s.log", limit=100, keep=2)
    with FileLock(f"{tmp_path / 's.log'}.lock"):  # another process is about to put the file aside, and hangs
        for number in range(20):
            handler.write(b"%029d\n" % number)
        assert len((tmp_path / "s.log").read_bytes().splitlines()) == 20
        assert not (tmp_path / "s.log.1").exists()
    handler.write(b"last\n")
    assert (tmp_path / "s.log").read_bytes() == b"last\n"
    assert len((tmp_path / "s.log.1").read_bytes().splitlines()) == 20


def test_who_gets_the_lock_second_does_not_put_the_new_file_aside(tmp_path: Path) -> None:
    first, second = (SharedFileHandler(tmp_path / "s.log", limit=10, keep=2) for _ in range(2))
    first.write(b"a line\n")
    assert second._is_full(b"b line\n")
    first.write(b"c line\n")
    second._put_aside(b"d\n")  # what it does next, late
    assert (tmp_path / "s.log").read_bytes() == b"c line\n"
    assert (tmp_path / "s.log.1").read_bytes() == b"a line\n"


def test_a_file_that_cannot_be_written(tmp_path: Path, unprivileged: None) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SettingInvalidError, match="cannot be written") as caught:
        setup(level="info", json=True, file=tmp_path / "s.log")
    assert str(tmp_path / "s.log") in caught.value.message
    assert "log_file" in caught.value.hint


WRITERS, THREADS, LINES, LIMIT = 4, 2, 400, 30_000

WRITER = f"""
import logging, sys, threading
from pathlib import Path
from stenograf import logs
logs.setup(level="info", json=True, process=sys.argv[1])
root = logging.getLogger()
if len(sys.argv) > 2:
    shared = logs.SharedFileHandler(Path(sys.argv[2]), limit={LIMIT}, keep=1000)
    shared.setFormatter(logs.JsonFormatter(sys.argv[1]))
    root.removeHandler(root.handlers[0])
    root.addHandler(shared)
print("ready", file=sys.stderr, flush=True)
sys.stdin.readline()
def write(thread):
    for number in range({LINES}):
        size = 20_000 if number % 50 == 0 else 100
        root.info("x" * size, extra={{"thread_number": thread, "number": number}})
threads = [threading.Thread(target=write, args=(n,)) for n in range({THREADS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def write_at_once(stdout: Any, *arguments: str) -> None:
    """Runs the writers and lets them all go in one moment."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, f"worker-{number}", *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        for number in range(WRITERS)
    ]
    for writer in writers:
        assert writer.stderr is not None
        assert writer.stderr.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert (writer.returncode, errors) == (0, b"")


def check_all_there(written: list[str]) -> None:
    """Each line is whole, there once, and in order within its thread."""
    numbers: dict[tuple[str, int], list[int]] = {}
    for line in written:
        found = json.loads(line)
        assert set(found["message"]) == {"x"}
        numbers.setdefault((found["process"], found["thread_number"]), []).append(found["number"])
    assert len(numbers) == WRITERS * THREADS
    assert all(found == list(range(LINES)) for found in numbers.values())


def test_processes_write_one_file_and_no_line_is_lost_or_torn(tmp_path: Path) -> None:
    file = tmp_path / "s.log"
    write_at_once(None, str(file))
    aside = sorted(tmp_path.glob("s.log.[0-9]*"), key=lambda path: -int(path.suffix[1:]))
    assert len(aside) > 10
    assert [int(path.suffix[1:]) for path in aside] == list(range(len(aside), 0, -1)), "none is skipped"
    assert min(path.stat().st_size for path in aside) > LIMIT - 21_000, "none is put aside before it is full"
    check_all_there([line for path in (*aside, file) for line in path.read_text("utf-8").splitlines()])


def test_processes_share_their_stdout_and_no_line_is_torn(tmp_path: Path) -> None:
    file = tmp_path / "stdout"
    with file.open("ab") as stdout:
        write_at_once(stdout)
    check_all_there(file.read_text("utf-8").splitlines())


SERVICE = """
import asyncio, logging, sys
import uvicorn
from stenograf import logs

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    headers = dict(scope["headers"])
    with logs.bind(request_id=logs.valid_request_id(headers[b"x-request-id"].decode())):
        if scope["path"] == "/break":
            raise RuntimeError("broken on purpose")
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

logs.setup(level="info", json=True)
uvicorn.run(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=5)
"""


def test_uvicorns_own_lines_go_the_same_way(tmp_path: Path) -> None:
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    try:
        seen: list[dict[str, Any]] = []
        while not (seen and "running on" in seen[-1]["message"]):
            seen.append(json.loads(service.stdout.readline()))
        address = re.search(r"http://127\.0\.0\.1:\d+", seen[-1]["message"])
        assert address
        with httpx2.Client(base_url=address[0], trust_env=False) as client:
            assert client.get("/ok?token=hush-hush", headers={"X-Request-ID": "req-1"}).status_code == 204
            assert client.get("/break", headers={"X-Request-ID": "req-2"}).status_code == 500
    finally:
        service.terminate()
        out, err = service.communicate(timeout=30)
    assert err == ""
    found = [json.loads(line) for line in out.splitlines()]
    access = next(line for line in found if line["logger"] == "uvicorn.access" and "/ok" in line["message"])
    assert access["message"].endswith(f'"GET /ok?token={MASK} HTTP/1.1" 204')
    assert access["request_id"] == "req-1"
    error = next(line for line in found if line["level"] == "ERROR")
    assert error["logger"] == "uvicorn.error"
    assert "broken on purpose" in error["exception"]
    assert all("color_message" not in line for line in (*seen, *found))


def test_many_threads_of_one_process(tmp_path: Path) -> None:
    handler = SharedFileHandler(tmp_path / "s.log", limit=2_000, keep=100)
    handler.setFormatter(logs.JsonFormatter("api"))

    def write(thread: int) -> None:
        for number in range(50):
            handler.handle(logging.makeLogRecord({"msg": f"{thread}.{number}"}))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line)["message"] for path in tmp_path.glob("s.log*") for line in path.read_text().splitlines()]
    assert sorted(found) == sorted(f"{thread}.{number}" for thread in range(8) for number in range(50))
    assert all(os.path.getsize(path) <= 2_000 for path in tmp_path.glob("s.log*"))
