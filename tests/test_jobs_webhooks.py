"""Webhooks, from the end of a job to a real server on this machine."""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sqlalchemy as sa
from standardwebhooks import Webhook, WebhookVerificationError

from stenograf import __version__
from stenograf.errors import NotMediaError, OptionInvalidError, SettingInvalidError, StenografError
from stenograf.jobs.database import Database
from stenograf.jobs.dispatch import Event
from stenograf.jobs.job import NewJob
from stenograf.jobs.lease import Leases
from stenograf.jobs.outbound import Outbound
from stenograf.jobs.outbox import completed
from stenograf.jobs.store import JobStore
from stenograf.jobs.tables import silenced, webhooks
from stenograf.jobs.webhooks import AT_ONCE, JITTER, KEPT_SECONDS, MAX_RETRY_AFTER, SCHEDULE, Webhooks, validate_secret
from stenograf.transcript import Segment, Transcript

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
PATIENCE = 20.0
"""Seconds until a test gives up waiting for what should happen at once."""


def make_secret(size: int = 32) -> str:
    return f"whsec_{base64.b64encode(os.urandom(size)).decode()}"


JOBS_SECRET = make_secret()
SERVICES_SECRET = make_secret(24)
TRANSCRIPT = Transcript(
    segments=(Segment(0.0, 1.0, "said in secret"),),
    language="en",
    language_probability=None,
    duration=1.0,
    model="tiny",
    engine="none",
    device="cpu",
    compute_type="int8",
)


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["data"]
        return found


Reply = tuple[int, dict[str, str]]


@dataclass
class Receiver:
    """A server that writes down what it gets; `replies` are used up, then it answers 204."""

    port: int = 0
    replies: list[Reply] = field(default_factory=list)
    on_request: Callable[[Request], object] = lambda _request: None
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__(("127.0.0.1", 0), Handler)
        receiver.port = self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["content-length"]))
        request = Request(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        receiver.requests.append(request)
        receiver.on_request(request)
        status, headers = receiver.replies.pop(0) if receiver.replies else (204, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing on the test's output."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    server = Server(receiver)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield receiver
    receiver.closing.set()
    server.shutdown()
    server.server_close()


class Desk:
    """A database with its jobs, and those who send its webhooks."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = JobStore(database)
        self.leases = Leases(database)
        self.senders: list[Webhooks] = []
        self.events: list[Event] = []

    def cancelled(self, url: str, *, owner: str = "anna", secret: str | None = None, name: str = "a.ogg") -> str:
        """A job that was cancelled, so that its message is promised; returns the job's id."""
        new = NewJob(owner, {}, name, webhook_url=url, webhook_secret=secret)
        self.store.add(new)
        self.store.cancel(new.id)
        return new.id

    def ended(self, url: str, name: str, error: StenografError | None = None) -> str:
        """A job that is done, or in error; returns its id."""
        new = NewJob("anna", {}, name, webhook_url=url)
        self.store.add(new)
        claim = self.leases.claim("worker", ["short"])
        assert claim is not None
        if error is None:
            self.leases.finish(claim, TRANSCRIPT)
        else:
            self.leases.fail(claim, error)
        return new.id

    def send(
        self, *, resolve: dict[str, list[str]] | None = None, secret: str | None = None, **options: Any
    ) -> Webhooks:
        """Start to send."""
        outbound = Outbound(LOOPBACK) if resolve is None else Outbound(LOOPBACK, resolve=resolve.__getitem__)
        sender = Webhooks(self.database, outbound, secret=secret, on_event=self.events.append, **options)
        self.senders.append(sender)
        sender.start()
        return sender

    def rows(self, **columns: Any) -> list[Any]:
        query = sa.select(webhooks).filter_by(**columns).order_by(webhooks.c.created_at)
        with self.database.read() as connection:
            return list(connection.execute(query))

    def wait_for_delivered(self, count: int) -> None:
        wait_for(lambda: len(self.rows(state="delivered")) == count)

    def only(self) -> Any:
        (row,) = self.rows()
        return row

    def change(self, **columns: Any) -> None:
        with self.database.write() as connection:
            connection.execute(webhooks.update().values(**columns))

    def now(self) -> float:
        with self.database.read() as connection:
            return float(connection.execute(sa.select(self.database.now)).scalar_one())

    def outcomes(self) -> list[str]:
        assert {event["event"] for event in self.events} <= {"webhook"}
        return [event["outcome"] for event in self.events]


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    desk = Desk(database)
    yield desk
    for sender in desk.senders:
        sender.stop()


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# What is sent


def test_a_done_job_is_told_of_with_ids_and_links(desk: Desk, receiver: Receiver) -> None:
    job_id = desk.ended(receiver.url("/hook?for=me"), "Встреча.ogg")
    desk.send(public_url="https://stenograf.example.org/speech")
    desk.wait_for_delivered(1)
    (request,) = receiver.requests
    message = json.loads(request.body)
    assert message["type"] == "task.done"
    assert abs(datetime.fromisoformat(message["timestamp"]).timestamp() - desk.now()) < 60
    assert message["data"] == {
        "task_id": job_id,
        "status": "done",
        "filename": "Встреча.ogg",
        "attempt": 1,
        "error": None,
        "task": f"https://stenograf.example.org/speech/api/v1/tasks/{job_id}",
        "result": f"https://stenograf.example.org/speech/api/v1/tasks/{job_id}/result",
    }
    assert b"secret" not in request.body
    assert request.path == "/hook?for=me"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"stenograf/{__version__}"
    row = desk.only()
    assert (row.status, row.failure, row.tries, row.lease_until) == (204, None, 1, None)
    wait_for(lambda: desk.outcomes() == ["delivered"])


def test_an_error_is_told_with_its_code_and_without_a_public_address_links_are_paths(
    desk: Desk, receiver: Receiver
) -> None:
    job_id = desk.ended(receiver.url(), "a.ogg", NotMediaError("It is a picture.", "Send sound."))
    desk.send()
    wait_for(lambda: receiver.requests)
    (request,) = receiver.requests
    assert json.loads(request.body)["type"] == "task.error"
    assert request.data["error"] == {"code": "not_media", "message": "It is a picture.", "hint": "Send sound."}
    assert request.data["task"] == f"/api/v1/tasks/{job_id}"
    assert request.data["result"] is None


def test_a_cancelled_job_tells_nothing_of_an_attempt_that_failed_before(desk: Desk, receiver: Receiver) -> None:
    new = NewJob("anna", {}, "a.ogg", webhook_url=receiver.url())
    desk.store.add(new)
    claim = desk.leases.claim("worker", ["short"])
    assert claim is not None
    with desk.database.write() as connection:
        connection.execute(sa.text("UPDATE jobs SET lease_until = 0"))
    desk.leases.reap()
    assert desk.store.get(new.id).error is not None
    desk.store.cancel(new.id)
    desk.send()
    wait_for(lambda: receiver.requests)
    assert json.loads(receiver.requests[0].body)["type"] == "task.cancelled"
    assert receiver.requests[0].data["error"] is None


@pytest.mark.parametrize("letter", ["a", "\x01", "🎤", '"'])
def test_a_message_is_small_whatever_the_name_of_the_file(desk: Desk, receiver: Receiver, letter: str) -> None:
    name = letter * 4096
    desk.ended(receiver.url(), name, NotMediaError(f"{name} is a picture.", f"Send sound, not {name}."))
    desk.send(public_url="https://stenograf.example.org")
    wait_for(lambda: receiver.requests)
    assert len(receiver.requests[0].body) < 20_000
    assert receiver.requests[0].data["filename"] == letter * 200


def test_the_body_of_a_message_is_the_same_each_time() -> None:
    stored = '{"type":"task.done","data":{"task":"/api/v1/tasks/ё","result":null,"filename":"\\u0001"}}'
    first = completed(stored, "https://example.org")
    assert first == completed(stored, "https://example.org")
    assert json.loads(first)["data"] == {
        "task": "https://example.org/api/v1/tasks/ё",
        "result": None,
        "filename": "\x01",
    }
    assert completed(stored, None) == stored.encode()


def test_a_job_that_was_removed_is_still_told_of(desk: Desk, receiver: Receiver) -> None:
    job_id = desk.cancelled(receiver.url())
    desk.store.remove(job_id)
    desk.send()
    desk.wait_for_delivered(1)
    assert receiver.requests[0].data["task_id"] == job_id


# Signatures


@pytest.mark.parametrize(
    ("jobs", "services", "good", "bad"),
    [
        (JOBS_SECRET, SERVICES_SECRET, [JOBS_SECRET], [SERVICES_SECRET]),
        (None, SERVICES_SECRET, [SERVICES_SECRET], [JOBS_SECRET]),
        (JOBS_SECRET, None, [JOBS_SECRET], [SERVICES_SECRET]),
        (f"{JOBS_SECRET} {SERVICES_SECRET}", None, [JOBS_SECRET, SERVICES_SECRET], [make_secret()]),
    ],
    ids=["both", "services", "jobs", "two of the jobs"],
)
def test_messages_are_signed_with_the_jobs_secret_or_the_services(
    desk: Desk, receiver: Receiver, jobs: str | None, services: str | None, good: list[str], bad: list[str]
) -> None:
    desk.cancelled(receiver.url(), secret=jobs, name="Ёлка.ogg")
    desk.send(secret=services)
    wait_for(lambda: receiver.requests)
    (request,) = receiver.requests
    for secret in good:
        message = Webhook(secret).verify(request.body, request.headers)
        assert message["type"] == "task.cancelled"
    for secret in bad:
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(good[0]).verify(request.body + b" ", request.headers)


def test_without_a_secret_messages_go_out_unsigned(
    desk: Desk, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "stenograf.jobs.webhooks")
    desk.cancelled(receiver.url())
    desk.send()
    desk.wait_for_delivered(1)
    (request,) = receiver.requests
    assert "webhook-signature" not in request.headers
    assert request.id == desk.only().id
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    assert "unsigned" in caplog.text


@pytest.mark.parametrize("text", [make_secret(24), make_secret(64), f"{make_secret()} {make_secret()}"], ids=len)
def test_secrets_that_can_sign(text: str) -> None:
    validate_secret(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "whsec_", make_secret(23), make_secret(65), make_secret()[6:], f"{make_secret()} more", "whsec_пароль",
     f"{make_secret()[:-4]}*&^%", f"{make_secret()},{make_secret()}"],
    ids=len,
)  # fmt: skip
def test_secrets_that_cannot_sign(desk: Desk, text: str) -> None:
    with pytest.raises(OptionInvalidError) as refused:
        validate_secret(text)
    assert text[6:].strip() == "" or text[6:] not in str(refused.value)
    with pytest.raises(SettingInvalidError, match="STENOGRAF_WEBHOOK_SECRET"):
        Webhooks(desk.database, Outbound(), secret=text, on_event=desk.events.append)


# Tries


def test_a_message_that_failed_comes_again_under_its_id_with_a_new_time(desk: Desk, receiver: Receiver) -> None:
    receiver.replies = [(500, {}), (302, {"Location": receiver.url("/elsewhere")})]
    desk.cancelled(receiver.url(), secret=JOBS_SECRET)
    before = desk.now()
    sender = desk.send(public_url="https://stenograf.example.org")
    wait_for(lambda: desk.rows(status=500))
    row, now = desk.only(), desk.now()
    assert (row.state, row.tries, row.lease_until) == ("pending", 1, None)
    assert row.failure == "127.0.0.1 answered with the status 500."
    assert before + SCHEDULE[1] * (1 - JITTER) <= row.next_at <= now + SCHEDULE[1] * (1 + JITTER)
    time.sleep(1.0 - time.time() % 1.0)  # the header has whole seconds
    desk.change(next_at=0.0)
    sender.nudge()
    wait_for(lambda: desk.rows(status=302))
    row, now = desk.only(), desk.now()
    assert (row.state, row.tries) == ("pending", 2)
    assert now + SCHEDULE[2] * (1 - JITTER) - PATIENCE < row.next_at <= now + SCHEDULE[2] * (1 + JITTER)
    desk.change(next_at=0.0)
    sender.nudge()
    desk.wait_for_delivered(1)
    assert desk.only().failure is None
    assert [request.path for request in receiver.requests] == ["/hook"] * 3, "a redirect was followed"
    assert {request.id for request in receiver.requests} == {desk.only().id}
    assert len({request.body for request in receiver.requests}) == 1
    times = [int(request.headers["webhook-timestamp"]) for request in receiver.requests]
    assert times[0] < times[1] <= times[2]
    for request in receiver.requests:
        Webhook(JOBS_SECRET).verify(request.body, request.headers)
    wait_for(lambda: desk.outcomes() == ["retry", "retry", "delivered"])


def test_the_schedule_is_that_of_the_standard_and_its_end_is_final(desk: Desk, receiver: Receiver) -> None:
    """75 hours and 35 minutes and 5 seconds, says the standard."""
    assert (len(SCHEDULE), sum(SCHEDULE)) == (10, 75 * 3600 + 35 * 60 + 5)
    receiver.replies = [(404, {})] * 2
    desk.cancelled(receiver.url())
    desk.change(tries=8)
    sender = desk.send()
    wait_for(lambda: desk.rows(tries=9, lease_until=None))
    row, now = desk.only(), desk.now()
    assert row.state == "pending"
    assert abs(row.next_at - now) < 86_400 * (1 + JITTER)
    assert abs(row.next_at - now) > 86_400 * (1 - JITTER) - PATIENCE
    desk.change(next_at=0.0)
    sender.nudge()
    wait_for(lambda: desk.rows(state="failed"))
    assert desk.only().tries == 10
    wait_for(lambda: desk.outcomes() == ["retry", "failed"])
    assert len(receiver.requests) == 2


def test_waits_differ(desk: Desk, receiver: Receiver) -> None:
    receiver.replies = [(500, {})] * 8
    for _ in range(8):
        desk.cancelled(receiver.url())
    desk.change(tries=4)
    desk.send()
    wait_for(lambda: len(desk.rows(status=500)) == 8)
    now = desk.now()
    waits = [row.next_at - now for row in desk.rows()]
    assert max(waits) - min(waits) > PATIENCE, "there is no jitter"
    assert all(18_000 * (1 - JITTER) - PATIENCE < wait <= 18_000 * (1 + JITTER) for wait in waits)


@pytest.mark.parametrize(
    ("status", "asked", "least", "most"),
    [
        (503, "120", 120.0, 120.0),
        (429, "120", 120.0, 120.0),
        (429, "date", 600.0, 600.0),
        (503, "9" * 400, MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        (429, "1", SCHEDULE[1] * (1 - JITTER), SCHEDULE[1] * (1 + JITTER)),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", SCHEDULE[1] * (1 - JITTER), SCHEDULE[1] * (1 + JITTER)),
        (429, "soon", SCHEDULE[1] * (1 - JITTER), SCHEDULE[1] * (1 + JITTER)),
        (500, "120", SCHEDULE[1] * (1 - JITTER), SCHEDULE[1] * (1 + JITTER)),
    ],
)
def test_retry_after_is_honoured(
    desk: Desk, receiver: Receiver, status: int, asked: str, least: float, most: float
) -> None:
    if asked == "date":
        asked = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    receiver.replies = [(status, {"Retry-After": asked})]
    desk.cancelled(receiver.url())
    before = desk.now()
    desk.send()
    wait_for(lambda: desk.rows(status=status))
    next_at, after = desk.only().next_at, desk.now()
    assert before + least - 2 <= next_at <= after + most  # a date has whole seconds


def test_410_silences_the_address_for_its_owner_alone(desk: Desk, receiver: Receiver) -> None:
    receiver.replies = [(410, {})]
    desk.cancelled(receiver.url())
    desk.cancelled(receiver.url())
    desk.cancelled(receiver.url("/other"))
    desk.cancelled(receiver.url(), owner="boris")
    desk.send()
    wait_for(lambda: not desk.rows(state="pending"))
    first, second, other, of_boris = desk.rows()
    assert (first.state, first.status) == ("failed", 410)
    assert (second.state, second.status, second.tries) == ("failed", None, 0)
    assert "410" in second.failure
    assert (other.state, of_boris.state) == ("delivered", "delivered")
    assert [request.path for request in receiver.requests] == ["/hook", "/other", "/hook"]
    with desk.database.read() as connection:
        assert [(row.owner, row.url) for row in connection.execute(sa.select(silenced))] == [("anna", receiver.url())]
    wait_for(lambda: len(desk.events) == 4)
    assert Counter(desk.outcomes()) == {"failed": 2, "delivered": 2}
    desk.cancelled(receiver.url())
    assert len(desk.rows()) == 4, "a message was promised to a silenced address"


def test_410_to_a_message_under_way_when_the_address_is_silenced_already(desk: Desk, receiver: Receiver) -> None:
    receiver.replies = [(410, {})]
    desk.cancelled(receiver.url())
    with desk.database.write() as connection:
        connection.execute(silenced.insert().values(owner="anna", url=receiver.url(), created_at=0.0))
    desk.send()
    wait_for(lambda: desk.rows(state="failed", status=410))


def test_a_receiver_that_never_answers_is_a_failed_try(desk: Desk, receiver: Receiver) -> None:
    receiver.on_request = lambda _request: receiver.closing.wait(PATIENCE)
    desk.cancelled(receiver.url())
    desk.send(timeout_seconds=0.2)
    wait_for(lambda: desk.outcomes() == ["retry"])
    row = desk.only()
    assert (row.state, row.status, row.tries) == ("pending", None, 1)
    assert "too long" in row.failure


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://inner.test/", "private address"),
        ("http://unknown.test/", "does not resolve"),
        ("http://[", "no host"),
        ("http://hook.test:1/", "cannot be reached"),
    ],
)
def test_an_address_that_cannot_or_must_not_be_reached_is_a_failed_try(desk: Desk, url: str, reason: str) -> None:
    def resolve(host: str) -> list[str]:
        if host == "unknown.test":
            raise OSError
        return {"inner.test": ["10.0.0.1"], "hook.test": ["127.0.0.1"]}[host]

    desk.cancelled(url)
    sender = Webhooks(desk.database, Outbound(LOOPBACK, resolve=resolve), secret=None, on_event=desk.events.append)
    desk.senders.append(sender)
    sender.start()
    wait_for(lambda: desk.outcomes() == ["retry"])
    row = desk.only()
    assert (row.state, row.status) == ("pending", None)
    assert reason in row.failure


def test_a_message_that_cannot_be_signed_is_a_failed_try_and_holds_up_nothing(desk: Desk, receiver: Receiver) -> None:
    desk.cancelled(receiver.url(), secret="whsec_")
    desk.cancelled(receiver.url(), secret=JOBS_SECRET)
    desk.send()
    desk.wait_for_delivered(1)
    first, second = desk.rows()
    assert (first.state, first.tries, second.state) == ("pending", 1, "delivered")
    assert "unexpected" in first.failure
    assert [request.id for request in receiver.requests] == [second.id]


# Several at once, and crashes

CHILD = """
import ipaddress, sys, time
from stenograf.jobs.database import Database
from stenograf.jobs.outbound import Outbound
from stenograf.jobs.webhooks import Webhooks

outbound = Outbound([ipaddress.ip_network("127.0.0.0/8")])
Webhooks(Database(sys.argv[1]), outbound, secret=None, on_event=print, lease_seconds=0.5).start()
time.sleep(60)
"""


def test_who_dies_after_the_sending_and_before_the_mark_leaves_it_to_another(desk: Desk, receiver: Receiver) -> None:
    desk.cancelled(receiver.url())
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, desk.database.url.render_as_string(hide_password=False)]
    ) as child:
        receiver.on_request = lambda _request: child.send_signal(signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
    row = desk.only()
    assert (row.state, row.tries) == ("pending", 1)
    assert row.lease_until is not None
    receiver.on_request = lambda _request: None
    desk.send()
    desk.wait_for_delivered(1)
    assert [request.id for request in receiver.requests] == [row.id, row.id]
    assert desk.only().tries == 2


def test_a_mark_comes_too_late_after_another_took_the_message_over(desk: Desk, receiver: Receiver) -> None:
    """The first one's try takes longer than its lease, and fails while the second one's is under way."""
    arrived = [threading.Event(), threading.Event()]
    go_on = [threading.Event(), threading.Event()]

    def on_request(_request: Request) -> None:
        turn = len(receiver.requests) - 1
        arrived[turn].set()
        go_on[turn].wait(PATIENCE)

    receiver.on_request = on_request
    receiver.replies = [(500, {})]
    desk.cancelled(receiver.url())
    slow = desk.send(lease_seconds=0.1)
    assert arrived[0].wait(PATIENCE)
    desk.send()
    assert arrived[1].wait(PATIENCE)
    go_on[0].set()
    slow.stop()
    row = desk.only()
    assert (row.state, row.tries, row.status) == ("pending", 2, None)
    assert row.lease_until > desk.now()
    go_on[1].set()
    desk.wait_for_delivered(1)
    wait_for(lambda: desk.outcomes() == ["delivered"])


def test_two_senders_deliver_each_message_once(desk: Desk, receiver: Receiver) -> None:
    names = {f"hook{n}.test": ["127.0.0.1"] for n in range(5)}
    both = threading.Event()

    def on_request(_request: Request) -> None:
        if len(receiver.requests) > AT_ONCE:  # more than one of them has under way
            both.set()
        both.wait(PATIENCE)

    receiver.on_request = on_request
    for n in range(40):
        desk.cancelled(receiver.url(host=f"hook{n % 5}.test"))
    other = Desk(Database(desk.database.url.render_as_string(hide_password=False)))
    try:
        desk.send(resolve=names)
        other.send(resolve=names)
        desk.wait_for_delivered(40)
    finally:
        other.senders[0].stop()
        other.database.close()
    assert Counter(request.id for request in receiver.requests) == {row.id: 1 for row in desk.rows()}
    assert {row.tries for row in desk.rows()} == {1}
    wait_for(lambda: len(desk.events) + len(other.events) == 40)
    assert desk.events
    assert other.events


def test_a_slow_host_holds_up_only_its_own_and_gets_one_message_at_a_time(desk: Desk, receiver: Receiver) -> None:
    names = {"slow.test": ["127.0.0.1"], "quick.test": ["127.0.0.1"]}
    go_on = threading.Event()
    at_once: list[int] = []
    inside = threading.Semaphore(1)

    def on_request(request: Request) -> None:
        if request.path == "/slow":
            at_once.append(int(inside.acquire(blocking=False)))
            go_on.wait(PATIENCE)
            inside.release()

    receiver.on_request = on_request
    for _ in range(6):
        desk.cancelled(receiver.url("/slow", "slow.test"))
    for _ in range(3):
        desk.cancelled(receiver.url("/quick", "quick.test"))
    desk.send(resolve=names)
    desk.wait_for_delivered(3)
    assert {row.url for row in desk.rows(state="delivered")} == {receiver.url("/quick", "quick.test")}
    assert at_once == [1]
    go_on.set()
    desk.wait_for_delivered(9)
    assert at_once == [1] * 6


def test_what_is_promised_later_goes_out_by_itself(desk: Desk, receiver: Receiver) -> None:
    desk.send()
    for count in (1, 2):
        desk.cancelled(receiver.url())
        desk.wait_for_delivered(count)


def test_what_is_promised_later_goes_out_at_once_by_a_nudge(
    desk: Desk, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stenograf.jobs.webhooks.POLL_SECONDS", 600.0)
    sender = desk.send()
    for count in (1, 2):
        time.sleep(0.1)  # until it has looked, and waits
        desk.cancelled(receiver.url())
        sender.nudge()
        desk.wait_for_delivered(count)


def test_stop_waits_for_what_is_under_way_and_begins_nothing(desk: Desk, receiver: Receiver) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def on_request(_request: Request) -> None:
        arrived.set()
        go_on.wait(PATIENCE)

    receiver.on_request = on_request
    desk.cancelled(receiver.url())
    desk.cancelled(receiver.url())
    sender = desk.send()
    assert arrived.wait(PATIENCE)
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(sender.stop)
        with pytest.raises(TimeoutError):
            stopped.result(0.2)
        go_on.set()
        stopped.result(PATIENCE)
    assert sorted(row.state for row in desk.rows()) == ["delivered", "pending"]
    assert len(receiver.requests) == 1


def test_old_messages_are_removed_unless_they_wait(desk: Desk, receiver: Receiver) -> None:
    for _ in range(4):
        desk.cancelled(receiver.url())
    old = desk.now() - KEPT_SECONDS - 60
    ids = [row.id for row in desk.rows()]
    with desk.database.write() as connection:
        for row_id, state, at in zip(
            ids, ("delivered", "failed", "pending", "failed"), (old, old, old, old + 120), strict=True
        ):
            connection.execute(webhooks.update().where(webhooks.c.id == row_id).values(state=state, next_at=at))
    sender = Webhooks(desk.database, Outbound(LOOPBACK), secret=None, on_event=desk.events.append)
    assert sender.clean() == 2
    assert [row.id for row in desk.rows()] == ids[2:]
