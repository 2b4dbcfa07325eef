"""The database's clock, watched: it may be set, or stand still while a laptop sleeps.

All moments in the database are by its clock, so that clocks of other machines do not matter. What is left is that this
one jumps: forward, and every lease seems to have run out; back, and jobs would rest until the old time comes again.
"""

from __future__ import annotations

import time

import sqlalchemy as sa

from stenograf.jobs.database import Database

TOLERANCE = 3.0
"""A smaller difference, in seconds, between two looks is the time that the question took, or the clock being slewed."""


class Clock:
    """Notices jumps, by a clock of this machine that nobody can set."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._ahead: float | None = None

    def jump(self) -> float:
        """By how many seconds it has jumped since the last call, back if negative; 0 where it has not.

        Raises `DatabaseError`.
        """
        before = time.monotonic()
        with self._db.read() as connection:
            now = connection.scalar(sa.select(self._db.now)) or 0.0
        if time.monotonic() - before > TOLERANCE / 2:  # nobody knows at which moment it was asked
            return 0.0
        ahead = now - before
        jump = 0.0 if self._ahead is None else ahead - self._ahead
        self._ahead = ahead
        return jump if abs(jump) > TOLERANCE else 0.0
