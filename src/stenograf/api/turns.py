"""One at a time, and the latest goes on: who holds what may be nothing but the rest of a broken connection.

A phone that loses its network in the middle of an upload leaves a connection behind of which the server does not know
that it is dead. When the phone comes back, it must not wait until that is given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from stenograf.api.forms import IDLE_TIMEOUT_SECONDS
from stenograf.errors import RequestInFlightError, RequestTimeoutError

GIVE_WAY_SECONDS = 10.0
"""How long a newcomer waits for the one before it, who may be writing to a slow disk."""

T = TypeVar("T")


class Turn:
    """The right to go on with something, until a newcomer wants it."""

    def __init__(self, seconds: float) -> None:
        self.over = asyncio.Event()
        self._seconds = seconds
        self._gives_way = False
        self._patience: asyncio.Timeout | None = None

    def give_way(self) -> None:
        """Whoever has the turn gets `RequestInFlightError` at its next `wait_for`, or in the one it is in."""
        self._gives_way = True
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time())

    async def wait_for(self, come: Callable[[], Awaitable[T]]) -> T:
        """What comes, while the turn lasts. Raises `RequestTimeoutError` where it does not come for long."""
        if self._gives_way:
            raise _taken_over()
        try:
            async with asyncio.timeout(self._seconds) as self._patience:
                return await come()
        except TimeoutError:
            if self._gives_way:
                raise _taken_over() from None
            raise RequestTimeoutError(
                f"Nothing more of the request came for {self._seconds:g} seconds.",
                "Go on with it over a better connection.",
            ) from None
        finally:
            self._patience = None


class Turns:
    """Who is at what, by its name; for one event loop."""

    def __init__(self, *, seconds: float = IDLE_TIMEOUT_SECONDS) -> None:
        """`seconds` is how long a turn may pass without anything coming."""
        self._seconds = seconds
        self._holders: dict[str, Turn] = {}

    @asynccontextmanager
    async def take(self, name: str) -> AsyncIterator[Turn]:
        """Take the turn over from whoever has it. Raises `RequestInFlightError` where that one does not let go."""
        while holder := self._holders.get(name):
            holder.give_way()
            try:
                async with asyncio.timeout(GIVE_WAY_SECONDS):
                    await holder.over.wait()
            except TimeoutError:
                raise RequestInFlightError(
                    "Another request writes to this upload just now.", "Ask HEAD for the offset, and go on there."
                ) from None
        turn = self._holders[name] = Turn(self._seconds)
        try:
            yield turn
        finally:
            del self._holders[name]
            turn.over.set()


def _taken_over() -> RequestInFlightError:
    return RequestInFlightError(
        "Another request has taken this upload over.", "Ask HEAD for the offset, and go on there."
    )
