"""How much a caller may ask in a minute, and the headers that tell it.

Two policies, `uploads` and `requests`, each counted for each key on its own; an endpoint names one of them as a
dependency. While the service is open there are no keys: then addresses are counted, but for this machine's own. The
headers are those of the IETF's draft "RateLimit header fields for HTTP", version 11.

A window moves: `t`, and `Retry-After` on a 429, is the time until the oldest request in it falls out. What counts, and
whether it does so for several replicas together, `counters.py` tells.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from stenograf.api.auth import Principal, Who
from stenograf.api.connection import add_header, client_address, client_network, kept
from stenograf.api.counters import Counter, counter_of
from stenograf.errors import RateLimitedError
from stenograf.keys import is_loopback
from stenograf.settings import Settings

Policy = Literal["uploads", "requests"]

WINDOW_SECONDS = 60
"""The rates in the settings and of the keys are for a minute."""

_MEANT = {"uploads": "recordings", "requests": "requests"}


class Limits:
    """Counts what callers ask; one for an application."""

    def __init__(self, settings: Settings, counter: Counter, *, window: int = WINDOW_SECONDS) -> None:
        """`window` in seconds: rates are so much a window."""
        self._settings = settings
        self._window = window
        self._counter = counter
        self.waits = counter.waits
        """Whether `take` may ask a server, so that it must not be called on an event loop."""

    def take(self, connection: HTTPConnection, policy: Policy, who: Principal) -> None:
        """Count one request, and put the headers on its answer; raises `RateLimitedError` if it is one too many."""
        quota = self._settings.rate_uploads if policy == "uploads" else self._settings.rate_requests
        if policy == "uploads" and who.rate is not None:
            quota = who.rate
        if not quota or (who.key_id is None and is_loopback(client_address(connection.scope, self._settings))):
            return
        counted = who.key_id or client_network(connection.scope, self._settings)
        tally = self._counter.take(f"{policy}:{counted}", quota, self._window)
        seconds = max(1, math.ceil(tally.seconds))
        add_header(connection, "RateLimit-Policy", f'"{policy}";q={quota};w={self._window}')
        add_header(connection, "RateLimit", f'"{policy}";r={tally.left};t={seconds}')
        if not tally.room:
            add_header(connection, "Retry-After", str(seconds))
            per = "minute" if self._window == WINDOW_SECONDS else f"{self._window} seconds"
            raise RateLimitedError(
                f"{'This key' if who.key_id else 'Your address'} has used up its {quota} {_MEANT[policy]} a {per}.",
                f"Send it again in {seconds} seconds.",
            )


def limits_of(app: Any) -> Limits:
    """The `Limits` of an application."""
    counter = counter_of(app)
    return kept(app, "limits", lambda service: Limits(service.settings, counter))


async def uploads(connection: HTTPConnection, who: Who) -> None:
    """A dependency of endpoints that take a recording. Raises `RateLimitedError`, and as `auth.principal`."""
    await _take(connection, "uploads", who)


async def requests(connection: HTTPConnection, who: Who) -> None:
    """A dependency of all other endpoints behind a key. Raises as `uploads`."""
    await _take(connection, "requests", who)


async def _take(connection: HTTPConnection, policy: Policy, who: Principal) -> None:
    limits = limits_of(connection.app)
    if limits.waits:
        await run_in_threadpool(limits.take, connection, policy, who)
    else:
        limits.take(connection, policy, who)
