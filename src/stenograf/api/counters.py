"""What counts how much callers ask: in memory, or once for all replicas of the service, over Redis or PostgreSQL.

All count in moving windows: a request counts until it is as old as the window, and there is room again when the oldest
has fallen out. Shared counters go by the clock of the server that counts, and tell times as so long from now, so that
the replicas' own clocks do not matter. Where a shared counter cannot be reached, the next best counts: Redis, then
PostgreSQL, then each replica for itself; nobody is kept out because nothing can be counted. Each begins at nothing, so
that a caller may have twice the quota in the minute of such a change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

import sqlalchemy as sa
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from stenograf.api.connection import kept
from stenograf.errors import DatabaseError, SettingInvalidError
from stenograf.jobs.database import Database
from stenograf.jobs.tables import requests
from stenograf.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger(__name__)

REDIS_CONNECT_SECONDS = 0.5
"""How long Redis may take to take a connection: a request waits for it."""

REDIS_SECONDS = 1.0
"""How long Redis may take to answer."""

RETRY_SECONDS = 5.0
"""A counter that could not be reached is tried again after so long, by one request; the others do not wait for it."""

LOCK_MILLISECONDS = 2000
"""How long a request waits for others of the same caller, which are counted just now on other replicas."""

LOCKS = 0x52415445
"""The advisory locks of whoever counts in PostgreSQL: "RATE" as a number, and a hash of the name."""

REMEMBERED = 10_000
"""So many callers who have used up their quota are remembered at once."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How a window stands."""

    room: bool
    """Whether there was room for one request; `take` has then counted it."""
    left: int
    """How many more there is room for."""
    seconds: float
    """Until the oldest request in the window falls out; the whole window where there is none."""


class Counter(Protocol):
    """Counts requests by the name of who is counted; to be used by many threads."""

    waits: bool
    """Whether it asks a server, so that it must not be called on an event loop."""

    def take(self, name: str, quota: int, seconds: int) -> Tally:
        """Count one request, if there were fewer than `quota` of this name in the last `seconds`."""
        ...

    def look(self, name: str, quota: int, seconds: int) -> Tally:
        """As `take`, and count nothing."""
        ...


class AwayError(Exception):
    """A shared counter cannot count just now; the text says why, without credentials."""


class InMemory:
    """A `Counter` of this process alone."""

    waits = False

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def take(self, name: str, quota: int, seconds: int) -> Tally:
        """See `Counter`."""
        item = RateLimitItemPerSecond(quota, seconds)
        return self._tally(item, name, self._limiter.hit(item, name))

    def look(self, name: str, quota: int, seconds: int) -> Tally:
        """See `Counter`."""
        item = RateLimitItemPerSecond(quota, seconds)
        return self._tally(item, name, self._limiter.test(item, name))

    def _tally(self, item: RateLimitItemPerSecond, name: str, room: bool) -> Tally:
        stats = self._limiter.get_window_stats(item, name)
        return Tally(room, max(0, stats.remaining), max(0.0, stats.reset_time - time.time()))


class InDatabase:
    """A `Counter` over the table `requests`, exact whatever replicas count at once. For PostgreSQL."""

    waits = True

    def __init__(self, database: Database) -> None:
        self._db = database
        now, asked = database.now, sa.bindparam("seconds", type_=sa.Double)
        name, quota = sa.bindparam("name", type_=sa.String), sa.bindparam("quota", type_=sa.Integer)
        seen = (
            sa.select(sa.func.count().label("count"), sa.func.min(requests.c.at).label("oldest"))
            # What lies ahead was counted before the clock was set back.
            .where(requests.c.counted == name, requests.c.at > now - asked, requests.c.at <= now)
            .cte("seen")
        )
        added = (
            requests.insert()
            .from_select(["counted", "at"], sa.select(name, now).select_from(seen).where(seen.c.count < quota))
            .returning(requests.c.id)
            .cte("added")
        )
        waiting = sa.func.coalesce(seen.c.oldest - now, 0.0) + asked
        self._looking = sa.select(seen.c.count, waiting.label("waiting"))
        self._taking = self._looking.add_cte(added)
        # In a statement of its own: the next one sees what was committed before the lock was had. What is counted may
        # be lost when the server crashes, so nobody waits for its disk.
        self._locking = sa.select(
            sa.func.set_config("synchronous_commit", "off", True),
            sa.func.set_config("lock_timeout", str(LOCK_MILLISECONDS), True),
            sa.func.pg_advisory_xact_lock(LOCKS, sa.func.hashtext(name)),
        )
        self._full: dict[tuple[str, int, int], float] = {}

    def take(self, name: str, quota: int, seconds: int) -> Tally:
        """See `Counter`. Raises `AwayError`."""
        who, now = (name, quota, seconds), time.monotonic()
        # Nothing makes room before that moment: who hammers on costs the database nothing.
        if (until := self._full.get(who, 0.0)) > now:
            return Tally(False, 0, until - now)
        values = {"name": name, "quota": quota, "seconds": float(seconds)}
        try:
            with self._db.write() as connection:
                connection.execute(self._locking, values)
                count, waiting = connection.execute(self._taking, values).one()
        except DatabaseError as error:
            raise AwayError(error.message) from error
        if count < quota:
            return Tally(True, quota - count - 1, waiting)
        if len(self._full) >= REMEMBERED:
            self._full.clear()
        self._full[who] = now + waiting
        return Tally(False, 0, waiting)

    def look(self, name: str, quota: int, seconds: int) -> Tally:
        """See `Counter`. Raises `AwayError`."""
        try:
            with self._db.read() as connection:
                values = {"name": name, "seconds": float(seconds)}
                count, waiting = connection.execute(self._looking, values).one()
        except DatabaseError as error:
            raise AwayError(error.message) from error
        return Tally(count < quota, max(0, quota - count), waiting)


_SCRIPT = """
local name, quota, window, counts = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]) * 1000000, ARGV[3] == 'take'
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local newest = redis.call('LINDEX', name, 0)
if newest and tonumber(newest) > now then
  redis.call('DEL', name)
end
local oldest = redis.call('LINDEX', name, -1)
while oldest and tonumber(oldest) <= now - window do
  redis.call('RPOP', name)
  oldest = redis.call('LINDEX', name, -1)
end
local count = redis.call('LLEN', name)
local room = count < quota
if room and counts then
  redis.call('LPUSH', name, string.format('%.0f', now))
  redis.call('PEXPIRE', name, window / 1000)
end
return {room and 1 or 0, count, oldest and tonumber(oldest) + window - now or window}
"""
"""Times in microseconds, the newest first. Redis runs a script as a whole, so that it is exact; one that asks for the
time and writes needs Redis 5."""


class InRedis:
    """A `Counter` over Redis."""

    waits = True

    def __init__(self, url: str, prefix: str) -> None:
        """Connects to nothing yet. What it keeps in Redis has names that begin with `prefix`.

        Raises `SettingInvalidError` where the URL makes no sense, or redis is not installed.
        """
        self._redis = _client(url)
        self._script = self._redis.register_script(_SCRIPT)
        self._prefix = prefix

    def take(self, name: str, quota: int, seconds: int) -> Tally:
        """See `Counter`. Raises `AwayError`."""
        room, count, waiting = self._run(name, quota, seconds, "take")
        return Tally(room, max(0, quota - count - 1), waiting)

    def look(self, name: str, quota: int, seconds: int) -> Tally:
        """See `Counter`. Raises `AwayError`."""
        room, count, waiting = self._run(name, quota, seconds, "look")
        return Tally(room, max(0, quota - count), waiting)

    def _run(self, name: str, quota: int, seconds: int, what: str) -> tuple[bool, int, float]:
        from redis.exceptions import RedisError

        try:
            answer: Any = self._script(keys=[f"{self._prefix}:counted:{name}"], args=[quota, seconds, what])
        except (RedisError, OSError) as error:
            raise AwayError(str(error)) from error
        room, count, microseconds = answer
        return bool(room), int(count), min(float(seconds), microseconds / 1_000_000)


class Backed:
    """A `Counter` that counts with `first`, and while that is away with `second`."""

    waits = True

    def __init__(self, first: Counter, second: Counter, *, called: str) -> None:
        """`called` is what people call the server of the first."""
        self._first, self._second, self._called = first, second, called
        self._lock = threading.Lock()
        self._away = False
        self._again = 0.0

    def take(self, name: str, quota: int, seconds: int) -> Tally:
        """See `Counter`. Raises `AwayError` where `second` does."""
        return self._ask(lambda counter: counter.take(name, quota, seconds))

    def look(self, name: str, quota: int, seconds: int) -> Tally:
        """See `Counter`. Raises `AwayError` where `second` does."""
        return self._ask(lambda counter: counter.look(name, quota, seconds))

    def _ask(self, question: Callable[[Counter], Tally]) -> Tally:
        if self._may_try():
            try:
                tally = question(self._first)
            except AwayError as error:
                self._note(str(error))
            else:
                self._note(None)
                return tally
        return question(self._second)

    def _may_try(self) -> bool:
        with self._lock:
            if not self._away:
                return True
            if time.monotonic() < self._again:
                return False
            self._again = time.monotonic() + RETRY_SECONDS
            return True

    def _note(self, reason: str | None) -> None:
        with self._lock:
            changed, self._away = self._away != (reason is not None), reason is not None
            if reason is not None:
                self._again = time.monotonic() + RETRY_SECONDS
        if changed and reason is not None:
            log.warning("%s cannot count what callers ask, so that it is counted elsewhere: %s", self._called, reason)
        elif changed:
            log.info("%s counts what callers ask again", self._called)


def counter_for(settings: Settings, database: Database) -> Counter:
    """The counter of a service: Redis where that is the broker, backed by a shared database, backed by memory.

    Connects to nothing yet. Raises `SettingInvalidError` as `InRedis`.
    """
    counter: Counter = InMemory()
    if database.is_shared:
        counter = Backed(InDatabase(database), counter, called="PostgreSQL")
    broker = settings.broker or ""
    if broker.startswith(("redis://", "rediss://")):
        counter = Backed(InRedis(broker, settings.queue_name), counter, called="Redis")
    return counter


def counter_of(app: Any) -> Counter:
    """The `Counter` of an application, made at the first call; raises as `counter_for`."""
    return kept(app, "counter", lambda service: counter_for(service.settings, service.database))


def _client(url: str) -> Redis:
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise SettingInvalidError(
            "The setting STENOGRAF_BROKER_URL names a Redis, and the package redis is not installed.",
            "Install it: pip install 'stenograf[cluster]'.",
        ) from error
    try:
        client: Redis = Redis.from_url(
            _without_options(url),
            socket_connect_timeout=REDIS_CONNECT_SECONDS,
            socket_timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 0),  # the next best counts at once
            protocol=2,
        )
    except ValueError:  # its text would show a part of the URL
        raise SettingInvalidError(
            "The URL of the broker does not read as redis://:password@host:port/number.",
            "In a password write %40 for @, %2F for /, %3A for :, %23 for # and %3F for ?.",
        ) from None
    return client


def _without_options(url: str) -> str:
    """The URL without what its query tells the broker's client, but for TLS, which redis spells in another way."""
    parts = urlsplit(url)
    tls = {
        name: value.removeprefix("CERT_").lower() if name == "ssl_cert_reqs" else value
        for name, value in parse_qsl(parts.query)
        if name.startswith("ssl_")
    }
    return parts._replace(query=urlencode(tls)).geturl()
