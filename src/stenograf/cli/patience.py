"""Opening the database at the start of a service, which may be up before its database is."""

from __future__ import annotations

import logging
import signal
import sys
import time

from stenograf.errors import DatabaseError, DatabaseUnreachableError
from stenograf.runtime import Runtime

log = logging.getLogger("stenograf")

START_SECONDS = 120.0
"""How long a database that does not answer is waited for; then the service ends, and whoever runs it starts it anew."""

REFUSALS = 3
"""So often a server may refuse us: it is there, and a wrong password does not become right. But it may be starting."""

LONGEST_PAUSE = 10.0
"""Seconds between two tries."""


def opened(runtime: Runtime) -> None:
    """Bring the database to today's shape, as soon as it answers. Raises `DatabaseError` where it does not."""
    # Else the first process of a container would not hear it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    pause, tries = 0.5, 0
    while True:
        tries += 1
        try:
            runtime.database.migrate()
            return
        except DatabaseError as error:
            waited = time.monotonic() - began
            is_refusal = not isinstance(error, DatabaseUnreachableError)
            is_final = not error.retryable or (is_refusal and tries >= REFUSALS)
            if is_final or not runtime.database.is_shared or waited > START_SECONDS:
                raise
            pause = min(pause * 2, LONGEST_PAUSE)
            log.warning("try %d: %s It is tried again in %.0f s.", tries, error.message, pause)
            time.sleep(pause)
