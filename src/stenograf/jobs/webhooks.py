"""The sending of webhooks: what `outbox.py` promised goes out, by Standard Webhooks 1.0, until it has arrived.

A message is claimed, sent, and marked. Whoever dies between the sending and the mark leaves a lease that runs out, and
the message goes out again: a receiver may get it twice, under the same `webhook-id`. Every claim counts as a try, and
the count fences the mark, as the attempt does for jobs.
"""

from __future__ import annotations

import base64
import binascii
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import sqlalchemy as sa
from standardwebhooks import Webhook

from stenograf import logs
from stenograf.errors import OptionInvalidError, SettingInvalidError, StenografError
from stenograf.jobs.database import Database, insert_new
from stenograf.jobs.dispatch import Event
from stenograf.jobs.outbound import Outbound
from stenograf.jobs.outbox import completed, silence
from stenograf.jobs.tables import silenced, webhooks

log = logging.getLogger(__name__)

SCHEDULE = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds before each try, from the end of the one before: three days and some hours in all. It is the example schedule
of Standard Webhooks 1.0.0, "Deliverability and reliability"."""

JITTER = 0.1
"""Each wait is up to so much of it longer or shorter: messages that failed together do not come back together."""

MAX_RETRY_AFTER = 86_400.0
"""Seconds; a receiver that asks for a longer rest gets this one."""

TIMEOUT_SECONDS = 20.0
"""How long a receiver may take to answer; Standard Webhooks wants 15 to 30."""

LEASE_SECONDS = 60.0
"""How long a message is a process's to send: the timeout, and time to write down how it went."""

AT_ONCE = 4
"""So many messages are under way at once, each to another host: a slow one holds up only its own."""

PAGE = 500
"""So many messages are looked through at once for one that may be sent."""

POLL_SECONDS = 1.0
"""How often is looked for messages that are due; `nudge` is quicker."""

STOP_SECONDS = 5.0
"""How long `stop` waits for messages that are under way."""

KEPT_SECONDS = 7 * 86_400.0
"""Messages are removed so long after the time of their last try."""

_CLEAN_SECONDS = 900.0

_SECRET_BYTES = (24, 64)
"""The least and the most that Standard Webhooks 1.0.0 allows, "Signature scheme"."""


def validate_secret(text: str) -> None:
    """Check that `text` can sign webhooks: `whsec_` and the base64 of 24 to 64 bytes.

    There may be several, separated by spaces: each signs, so that a receiver can change from one to the next.
    Raises `OptionInvalidError`, which does not repeat the text.
    """
    keys = text.split()
    if not keys or not all(_is_secret(key) for key in keys):
        least, most = _SECRET_BYTES
        raise OptionInvalidError(
            "The secret for webhooks is not of the form that Standard Webhooks wants.",
            f"Give whsec_ and the base64 of {least} to {most} random bytes.",
        )


def _is_secret(text: str) -> bool:
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return text.startswith("whsec_") and _SECRET_BYTES[0] <= len(key) <= _SECRET_BYTES[1]


@dataclass(frozen=True, slots=True)
class _Message:
    """A message that is this process's to send."""

    id: str
    job_id: str
    owner: str
    url: str
    host: str
    secret: str | None
    body: str
    tries: int
    """This one included."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """How a try went."""

    status: int | None
    """None where no answer came."""
    failure: str | None
    """None where the message has arrived."""
    rest: float = 0.0
    """Seconds that the receiver wants to be left alone."""


class Webhooks:
    """A thread that sends what was promised, one message at a time to a host; several processes may do so at once."""

    def __init__(
        self,
        database: Database,
        outbound: Outbound,
        *,
        secret: str | None,
        on_event: Callable[[Event], None],
        public_url: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """`secret` signs for jobs that name none; with None these go out unsigned.

        `on_event` is called by any thread, with `{"event": "webhook", "outcome": "delivered" | "retry" | "failed"}`.
        Links begin with `public_url`, or are paths. `lease_seconds` must be longer than `timeout_seconds`.

        Raises `SettingInvalidError` where the secret is none.
        """
        if secret is not None:
            try:
                validate_secret(secret)
            except OptionInvalidError as error:
                raise SettingInvalidError(
                    "The setting STENOGRAF_WEBHOOK_SECRET is not of the form that Standard Webhooks wants.", error.hint
                ) from None
        self._db = database
        self._outbound = outbound
        self._secret = secret
        self._on_event = on_event
        self._public_url = public_url
        self._timeout = timeout_seconds
        self._lease = lease_seconds
        self._under_way: dict[str, threading.Thread] = {}
        """By host. One thread adds to it; the others only take themselves out, which needs no lock."""
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing new, and wait up to `STOP_SECONDS` for what is under way; what takes longer is sent again."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in list(self._under_way.values()):
            thread.join(max(0.0, deadline - time.monotonic()))

    def nudge(self) -> None:
        """There may be a message to send."""
        self._wake.set()

    def clean(self) -> int:
        """Remove messages that were delivered or given up `KEPT_SECONDS` ago; returns how many."""
        old = webhooks.delete().where(
            webhooks.c.state.in_(("delivered", "failed")), webhooks.c.next_at < self._db.now - KEPT_SECONDS
        )
        with self._db.write() as connection:
            return connection.execute(old).rowcount

    def _run(self) -> None:
        clean_at, told = 0.0, ""
        while not self._stopping.is_set():
            try:
                while (message := self._claim()) is not None:
                    self._begin(message)
                if time.monotonic() >= clean_at:
                    clean_at = time.monotonic() + _CLEAN_SECONDS
                    self.clean()
                told = ""
            except StenografError as error:
                if told != str(error):  # once, however long it lasts
                    log.error("%s", error)
                told = str(error)
            except Exception:
                log.exception("webhooks could not be sent")
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _claim(self) -> _Message | None:
        """The message that is due for longest, of those that may be sent now; None where there is none."""
        while not self._stopping.is_set() and len(self._under_way) < AT_ONCE and (found := self._find()) is not None:
            claim = (
                webhooks.update()
                .where(webhooks.c.id == found, *self._due())
                .values(tries=webhooks.c.tries + 1, lease_until=self._db.now + self._lease)
                .returning(webhooks)
            )
            with self._db.write() as connection:
                row = connection.execute(claim).first()
            if row is not None:  # else another process was faster
                return _Message(row.id, row.job_id, row.owner, row.url, _host(row.url), row.secret, row.body, row.tries)
        return None

    def _find(self) -> str | None:
        order = (webhooks.c.next_at, webhooks.c.id)
        due = sa.select(webhooks.c.id, webhooks.c.url, webhooks.c.next_at).where(*self._due()).order_by(*order)
        last = None
        # Page by page: thousands may wait for a host that is slow, and those of others behind them must not.
        while True:
            query = due if last is None else due.where(sa.tuple_(*order) > sa.tuple_(last.next_at, last.id))
            with self._db.read() as connection:
                rows = connection.execute(query.limit(PAGE)).all()
            for row in rows:
                if _host(row.url) not in self._under_way:
                    return str(row.id)
            if len(rows) < PAGE:
                return None
            last = rows[-1]

    def _due(self) -> tuple[sa.ColumnElement[bool], ...]:
        free = sa.or_(webhooks.c.lease_until.is_(None), webhooks.c.lease_until < self._db.now)
        return webhooks.c.state == "pending", webhooks.c.next_at <= self._db.now, free

    def _begin(self, message: _Message) -> None:
        thread = threading.Thread(target=self._deliver, args=(message,), name=f"webhook-{message.host}", daemon=True)
        self._under_way[message.host] = thread
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            del self._under_way[message.host]
            raise

    def _deliver(self, message: _Message) -> None:
        try:
            with logs.bind(task_id=message.job_id):
                self._mark(message, self._send(message))
        except StenografError as error:
            log.error("how a webhook went could not be written down, it is sent again: %s", error)
        except Exception:
            log.exception("how a webhook went could not be written down, it is sent again")
        finally:
            del self._under_way[message.host]
            self._wake.set()

    def _send(self, message: _Message) -> _Answer:
        try:
            body = completed(message.body, self._public_url)
            answer = self._outbound.post(message.url, body, self._headers(message, body), self._timeout)
        except StenografError as error:
            return _Answer(None, error.message)
        except Exception as error:
            log.exception("a webhook to %s could not be sent", message.host)
            return _Answer(None, f"Something unexpected happened ({type(error).__name__}).")
        if 200 <= answer.status <= 299:
            return _Answer(answer.status, None)
        rest = _retry_after(answer.headers) if answer.status in (429, 503) else 0.0
        return _Answer(answer.status, f"{message.host} answered with the status {answer.status}.", rest)

    def _headers(self, message: _Message, body: bytes) -> dict[str, str]:
        now = datetime.now(UTC)  # the library signs any other zone wrong
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now.timestamp())),
        }
        secrets = message.secret or self._secret
        if secrets is None:
            log.debug("a webhook to %s goes out unsigned: there is no secret", message.host)
            return headers
        signatures = [Webhook(secret).sign(message.id, now, body.decode()) for secret in secrets.split()]
        return {**headers, "webhook-signature": " ".join(signatures)}

    def _mark(self, message: _Message, answer: _Answer) -> None:
        """Write down how it went, unless the lease ran out and another process has the message by now."""
        outcome = _outcome(message, answer)
        columns: dict[str, Any] = {
            "state": "pending" if outcome == "retry" else outcome,
            "status": answer.status,
            "failure": answer.failure,
            "lease_until": None,
        }
        rest = 0.0
        if outcome == "retry":
            rest = max(SCHEDULE[message.tries] * random.uniform(1 - JITTER, 1 + JITTER), answer.rest)  # noqa: S311
            columns["next_at"] = self._db.now + rest
        others = 0
        with self._db.write() as connection:
            if answer.status == 410:  # first: two who wait for each other's rows would be a deadlock
                is_silent = {"owner": message.owner, "url": message.url, "created_at": self._db.now}
                insert_new(connection, silenced, is_silent)
            mark = webhooks.update().where(
                webhooks.c.id == message.id, webhooks.c.tries == message.tries, webhooks.c.state == "pending"
            )
            if connection.execute(mark.values(**columns)).rowcount != 1:
                return
            if answer.status == 410:
                others = silence(connection, message.owner, message.url)
        if outcome == "retry":
            log.info("webhook, try %d: %s It is sent again in %.0f s.", message.tries, answer.failure, rest)
        elif outcome == "failed":
            log.warning("webhook given up after try %d: %s", message.tries, answer.failure)
        for told in (outcome, *["failed"] * others):
            self._on_event({"event": "webhook", "outcome": told})


def _outcome(message: _Message, answer: _Answer) -> Literal["delivered", "retry", "failed"]:
    if answer.failure is None:
        return "delivered"
    return "failed" if answer.status == 410 or message.tries >= len(SCHEDULE) else "retry"


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a `Retry-After` asks for (RFC 9110, 10.2.3: a number or a date); 0 where there is none to read."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text) if text.isascii() and text.isdecimal() else _seconds_until(text)
    # The parser of dates meets strange ones with any of these.
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _seconds_until(text: str) -> float:
    date = parsedate_to_datetime(text)
    # One of the forms of a date names no zone: it is in UTC.
    return ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or url
    except ValueError:  # the sending says what is wrong with it
        return url
