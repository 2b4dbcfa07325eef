"""Clocks that are wrong, by libfaketime: the database's, which can be set while it runs, and those of programs.

Only the time of day is changed. What processes measure their pauses by stays as it is, as on a machine whose clock is
set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from servers import INSTALL, Postgres

HOUR = 3600


def library() -> Path | None:
    """Where Debian has it; None where it is not installed."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def off_by(seconds: int) -> dict[str, str]:
    """The environment of a program in Python whose clock is so far ahead, or behind if negative."""
    paths = f"{Path(__file__).parent / 'waking'}{os.pathsep}{Path(__file__).parent.parent}"
    return {**_preloaded(), "FAKETIME": f"{seconds:+d}s", "PYTHONPATH": paths}


class SetPostgres(Postgres):
    """PostgreSQL whose clock can be set while it runs."""

    NAME = "PostgreSQL under libfaketime"

    @classmethod
    def missing(cls) -> str:
        return super().missing() or ("" if library() else f"libfaketime is not installed; {INSTALL}")

    def set(self, seconds: int) -> None:
        """From now on it is so far ahead of this machine, or behind if negative."""
        offset = self.folder / "offset"
        fresh = offset.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}s\n")
        fresh.chmod(0o644)
        fresh.rename(offset)

    def _prepare(self) -> None:
        super()._prepare()
        self.set(0)

    def _spawn(self, name: str, *command: object, **options: Any) -> None:
        told = {"FAKETIME_TIMESTAMP_FILE": str(self.folder / "offset"), "FAKETIME_NO_CACHE": "1"}
        super()._spawn(name, *command, env={**os.environ, **_preloaded(), **told}, **options)


def _preloaded() -> dict[str, str]:
    found = library()
    assert found is not None
    return {"LD_PRELOAD": str(found), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
