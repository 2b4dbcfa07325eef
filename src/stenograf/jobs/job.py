"""What a job is: one file to transcribe, with its options. On the wire it is a task.

    queued ──claim──▶ processing ──finish──▶ done
       ▲                  │ ├──fail────────▶ error
       │                  │ └──cancel──────▶ cancelled
       ├─release, reap────┘                     │
       └──────────────────retry─────────────────┴ (also from error)

`docs/jobs.md` tells each arrow: who takes it, and what holds it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

State = Literal["queued", "processing", "done", "error", "cancelled"]
STATES: tuple[State, ...] = ("queued", "processing", "done", "error", "cancelled")
FINAL: frozenset[State] = frozenset({"done", "error", "cancelled"})
"""A job in one of these is at rest: only a retry or a removal touches it."""

Lane = Literal["short", "long"]
LANES: tuple[Lane, ...] = ("short", "long")

Need = Literal["cpu", "gpu"]
NEEDS: tuple[Need, ...] = ("cpu", "gpu")
"""What a job needs of the machine that reads it: `gpu` for the models of the setting `gpu_models`, else `cpu`, which
every machine has."""

SHORT_SECONDS = 120.0
"""A recording up to this length goes to the lane `short`: messengers' voice notes are shorter, meetings longer."""

SYNC_PRIORITY = 0
"""Priority of a job that a client waits for with an open connection."""

UNATTENDED = "unattended"
"""The stage of a job that was cancelled because every client that waited for it hung up: who asks again, revives it."""

DEFAULT_PRIORITY = 5
"""Where none is named; 1 is the most urgent that a client may name, 9 the least."""

_BYTES_PER_SECOND = {
    ".wav": (8_000, 192_000), ".aif": (8_000, 192_000), ".aiff": (8_000, 192_000), ".flac": (10_000, 120_000),
    ".ogg": (2_000, 40_000), ".oga": (2_000, 40_000), ".opus": (2_000, 40_000), ".mp3": (4_000, 40_000),
    ".m4a": (4_000, 40_000), ".aac": (4_000, 40_000), ".amr": (600, 4_000), ".wma": (4_000, 48_000),
}  # fmt: skip
"""Suffix -> the fewest and the most bytes that a second of such a file takes; others may hold pictures."""


def new_id() -> str:
    """An id that sorts by time: a UUID of version 7 (RFC 9562), in its usual form."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return str(uuid.UUID(int=value))


def _suffix(filename: str) -> str:
    return PurePath(filename).suffix.lower()


def guess_seconds(filename: str, size: int) -> float:
    """A guess of a recording's length, from its name and its size in bytes: for the order of the queue, no more."""
    low, high = _BYTES_PER_SECOND.get(_suffix(filename), (4_000, 40_000))
    return float(size / (low * high) ** 0.5)


def guess_lane(filename: str, size: int) -> Lane:
    """The lane a new file goes to. In doubt it is `short`: the worker that opens it sees better, and moves it."""
    high = _BYTES_PER_SECOND.get(_suffix(filename), (0, 250_000))[1]
    return "long" if size > SHORT_SECONDS * high else "short"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is handed in; the store does the rest."""

    owner: str
    """Who may see it."""
    options: Mapping[str, Any]
    """What the caller asked, by the option's name, JSON types only; what is not here is as the settings say."""
    filename: str
    """What the caller calls the recording; shown, never used as a path."""
    file: str | None = None
    """The name of its audio in the `FileStore`; None where it is to be fetched from `url` first."""
    size: int = 0
    """Bytes of the file."""
    digest: str | None = None
    """SHA-256 of the file, in hexadecimal."""
    url: str | None = None
    """Where the worker fetches the recording."""
    lane: Lane = "short"
    need: Need = "cpu"
    priority: int = DEFAULT_PRIORITY
    """0 is the most urgent; see `SYNC_PRIORITY`."""
    sync: bool = False
    """Whether a client waits with an open connection."""
    retention: float | None = None
    """Seconds that file and result are kept after the end; 0: for ever; None: as the settings say."""
    webhook_url: str | None = None
    webhook_secret: str | None = None
    """`whsec_...`; None: the service's own."""
    request_id: str | None = None
    """The request that brought it, for the logs."""
    idempotency_key: str | None = None
    fingerprint: str | None = None
    """SHA-256 over bytes and options: tells whether two requests ask for the same."""
    id: str = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job ended in `error`."""

    code: str
    """A code of `stenograf.errors`."""
    message: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        """The error as JSON has it."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the table `jobs`, as it was when it was read. Times are seconds since 1970 by the database's clock."""

    id: str
    owner: str
    state: State
    lane: Lane
    need: Need
    priority: int
    options: Mapping[str, Any]
    filename: str
    file: str | None
    size: int
    digest: str | None
    url: str | None
    sync: bool
    created_at: float
    run_at: float
    """Not to be claimed before; later than `created_at` after a failure, or while a retry waits."""
    started_at: float | None
    """When the latest attempt was claimed."""
    finished_at: float | None
    expires_at: float | None
    """When retention removes it; None: never, or not at rest yet."""
    retention: float | None
    attempt: int
    """How often it was claimed: the number that fences a worker's writes."""
    failures: int
    """How many attempts ended badly; those that were released on purpose do not count."""
    suspect: bool
    """Whether a worker died over it: then it is read in a process of its own."""
    lease_owner: str | None
    lease_until: float | None
    progress: float
    """0 to 1."""
    stage: str
    """`waiting`, `fetching`, `loading`, `transcribing`, or the state itself once it is at rest;
    `UNATTENDED` where it was cancelled because nobody waited any more."""
    audio_seconds: float | None
    """Length of the recording; a guess until a worker has opened it."""
    model: str | None
    """The model that reads it, as it is called here; None until it is loaded."""
    engine: str | None
    device: str | None
    compute_type: str | None
    language: str | None
    error: JobError | None
    webhook_url: str | None
    webhook_secret: str | None
    request_id: str | None
    fingerprint: str | None

    @property
    def at_rest(self) -> bool:
        """Whether it is done, in error or cancelled."""
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to write to a job until the lease runs out."""

    job: Job
    attempt: int

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id
