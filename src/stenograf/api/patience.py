"""How long a connection may take to say what it wants. uvicorn itself waits for ever for the headers of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 30.0
"""From the start of a connection, or of a request, to the end of its headers."""


class PatientProtocol(HttpToolsProtocol):
    """Closes connections that send nothing, or half a request's head: each of them takes a file descriptor."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:  # a further request of a connection that is kept
            self._begin(self.transport)

    def on_headers_complete(self) -> None:
        self._end()
        super().on_headers_complete()

    def _begin(self, transport: Any) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, transport.close)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
