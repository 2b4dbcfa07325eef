"""How much a caller may ask in a minute, and the headers that tell it.

Two policies, `uploads` and `requests`, each counted for each key on its own; an endpoint names one of them as a
dependency. While the service is open there are no keys: then addresses are counted, but for this machine's own. The
headers are those of the IETF's draft "RateLimit header fields for HTTP", version 11.

A window moves: `t`, and `Retry-After` on a 429, is the time until the oldest request in it falls out.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import HTTPConnection

from stenograf.api.auth import Principal, Who
from stenograf.api.connection import add_header, client_address, client_network, kept
from stenograf.errors import RateLimitedError
from stenograf.keys import is_loopback
from stenograf.settings import Settings

Policy = Literal["uploads", "requests"]

WINDOW_SECONDS = 60
"""The rates in the settings and of the keys are for a minute."""

_MEANT = {"uploads": "recordings", "requests": "requests"}


class Limits:
    """Counts what callers ask; one for an application. In memory: each process counts for itself."""

    def __init__(self, settings: Settings, *, window: int = WINDOW_SECONDS) -> None:
        """`window` in seconds: rates are so much a window."""
        self._settings = settings
        self._window = window
        self._counter = MovingWindowRateLimiter(MemoryStorage())

    def take(self, connection: HTTPConnection, policy: Policy, who: Principal) -> None:
        """Count one request, and put the headers on its answer; raises `RateLimitedError` if it is one too many."""
        quota = self._settings.rate_uploads if policy == "uploads" else self._settings.rate_requests
        if policy == "uploads" and who.rate is not None:
            quota = who.rate
        if not quota or (who.key_id is None and is_loopback(client_address(connection.scope, self._settings))):
            return
        item = RateLimitItemPerSecond(quota, self._window, namespace=policy)
        counted = who.key_id or client_network(connection.scope, self._settings)
        taken = self._counter.hit(item, counted)
        stats = self._counter.get_window_stats(item, counted)
        seconds = max(1, math.ceil(stats.reset_time - time.time()))
        add_header(connection, "RateLimit-Policy", f'"{policy}";q={quota};w={self._window}')
        add_header(connection, "RateLimit", f'"{policy}";r={max(0, stats.remaining)};t={seconds}')
        if not taken:
            add_header(connection, "Retry-After", str(seconds))
            per = "minute" if self._window == WINDOW_SECONDS else f"{self._window} seconds"
            raise RateLimitedError(
                f"{'This key' if who.key_id else 'Your address'} has used up its {quota} {_MEANT[policy]} a {per}.",
                f"Send it again in {seconds} seconds.",
            )


def limits_of(app: Any) -> Limits:
    """The `Limits` of an application."""
    return kept(app, "limits", lambda service: Limits(service.settings))


async def uploads(connection: HTTPConnection, who: Who) -> None:
    """A dependency of endpoints that take a recording. Raises `RateLimitedError`, and as `auth.principal`."""
    limits_of(connection.app).take(connection, "uploads", who)


async def requests(connection: HTTPConnection, who: Who) -> None:
    """A dependency of all other endpoints behind a key. Raises as `uploads`."""
    limits_of(connection.app).take(connection, "requests", who)
