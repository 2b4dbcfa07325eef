"""One job, from its claim to its end: what every kind of worker does, be it ours or Celery's."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeVar

from stenograf import logs
from stenograf.audio import AudioReader
from stenograf.chunk import ChunkResult
from stenograf.errors import (
    CancelledError,
    DatabaseError,
    DeviceUnavailableError,
    DiskFullError,
    EngineMissingError,
    LeaseLostError,
    ModelNotInstalledError,
    NoRoomError,
    OutOfMemoryError,
    OutputForbiddenError,
    StenografError,
    StorageError,
    unexpected,
)
from stenograf.jobs.dispatch import Event
from stenograf.jobs.files import FileStore
from stenograf.jobs.job import NEEDS, SHORT_SECONDS, Claim, Job, Lane, Need
from stenograf.jobs.keeping import Keeping
from stenograf.jobs.lease import Leases
from stenograf.jobs.outbound import Outbound
from stenograf.options import Options
from stenograf.reader import Reader
from stenograf.transcriber import Progress, Transcriber
from stenograf.transcript import Transcript

T = TypeVar("T")

log = logging.getLogger(__name__)

REST_SECONDS = 10.0
"""A job goes back to the queue for so long where the memory has no room for its model, or the object store is away."""

MACHINES = 10
"""A job that no machine could read in so many attempts, for want of a model or a device, ends in error."""

OUTAGE_SECONDS = 600.0
"""How long a worker holds on to what it has read while the database cannot take it."""

FETCH_SECONDS = 3600.0
"""How long the download of a recording may take."""


class Models(Protocol):
    """Where a runner gets its models and options from; `Runtime` is one."""

    @property
    def reader(self) -> Reader:
        """What reads."""
        ...

    def options_of(self, asked: Mapping[str, Any]) -> Options:
        """The options of a job; what was not asked is as the settings say."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a runner refuses."""

    duration: float | None = None
    """Seconds of a recording."""
    stall: float = 900.0
    """Seconds without headway after which the worker is taken for hung."""


_THE_MACHINES = (
    DiskFullError,
    OutputForbiddenError,
    EngineMissingError,
    DeviceUnavailableError,
    ModelNotInstalledError,
)
"""What is wrong with a machine, and not with a job."""

_NOT_THE_JOBS = (NoRoomError, StorageError, *_THE_MACHINES)


class _Moved(Exception):  # noqa: N818 - no error
    """The job belongs to another lane."""


class Runner:
    """Claims jobs and works on them; to be used by several threads, a job each."""

    def __init__(
        self,
        leases: Leases,
        files: FileStore,
        models: Models,
        outbound: Outbound,
        *,
        worker: str,
        limits: Limits,
        needs: Sequence[Need] = NEEDS,
        tell: Callable[[Event], None] = lambda _event: None,
        on_stall: Callable[[], None] = lambda: None,
        lets_short_in: bool = False,
        has_others: bool = False,
        files_are_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        """`worker` is the name that claims carry, `needs` what its machine has.

        `tell` hears of everything that changes.

        With `lets_short_in` a long job lets short ones in between two of its chunks: for a worker with one slot.
        `has_others` tells that workers of other machines may do what this one cannot, `files_are_ours` whether the
        recordings of this database are where this machine looks for them.
        """
        self._leases = leases
        self._files = files
        self._models = models
        self._outbound = outbound
        self._worker = worker
        self._limits = limits
        self._needs = needs
        self._tell = tell
        self._on_stall = on_stall
        self._lets_short_in = lets_short_in
        self._stopping = threading.Event()
        self._has_others = has_others
        self._files_are_ours = files_are_ours
        self.is_able = True
        """Whether this machine could read anything when it was last asked to."""
        self._rests_until = float("-inf")
        self._full_since = float("-inf")
        """When it was last said that the disk is full."""

    def stop(self) -> None:
        """Claim nothing more; jobs under way end after their running chunks and go back to the queue."""
        self._stopping.set()

    def run_one(
        self,
        lanes: Sequence[Lane],
        *,
        needs: Sequence[Need] | None = None,
        suspects: bool | None = False,
        patience: float | None = None,
    ) -> bool:
        """Claim the most urgent job of these lanes and work on it to its end; False where there was none.

        `needs` narrows what is claimed to some of the runner's own. `patience`: how long its model may wait for room in
        the memory; None: as long as the reader sees fit.
        """
        if self._stopping.is_set():
            return False
        self.is_able = self._can_read()
        if not self.is_able:
            return False
        claim = self._leases.claim(
            self._worker, lanes, needs=self._needs if needs is None else needs, suspects=suspects
        )
        if claim is None:
            return False
        with logs.bind(request_id=claim.job.request_id, task_id=claim.id):
            self._changed(claim)
            self._run(claim, patience)
            self._changed(claim)
        return True

    def _may_suit_another(self, claim: Claim) -> bool:
        """Whether another machine may be better off. Where none was in so many attempts, the job is told so."""
        return self._has_others and claim.attempt < MACHINES

    def _can_read(self) -> bool:
        """Whether this machine can: one that cannot would be the quickest to take all jobs."""
        if time.monotonic() < self._rests_until:
            return False
        try:
            self._files.expect_room_to_read()
            if not self._files_are_ours():
                raise StorageError(
                    f"{self._files.shown} does not hold the recordings of this database.",
                    "See that it is mounted, and that STENOGRAF_UPLOAD_DIR or STENOGRAF_STORAGE_URL is the service's; "
                    "stenograf doctor tells more.",
                )
        except (DiskFullError, StorageError) as error:
            if time.monotonic() - self._full_since > REST_SECONDS:
                self._full_since = time.monotonic()
                log.error("nothing is read here: %s", error)
            return False
        return True

    def _run(self, claim: Claim, patience: float | None) -> None:
        log.info("begun", extra={"attempt": claim.attempt, "lane": claim.job.lane, "file": claim.job.filename})
        keeping = Keeping(
            self._leases,
            claim,
            stall=self._limits.stall,
            on_stall=self._on_stall,
            notify=lambda: self._changed(claim),
        )
        started = time.monotonic()
        try:
            with keeping:
                state = self._to_its_end(claim, keeping, started, patience)
        except LeaseLostError:
            state = self._fate(claim)
        log.info(state, extra={"attempt": claim.attempt, "seconds": round(time.monotonic() - started, 3)})

    def _to_its_end(self, claim: Claim, keeping: Keeping, started: float, patience: float | None) -> str:
        try:
            transcript = self._transcribe(claim, keeping, patience)
        except _Moved:
            _, learnt = keeping.rest()
            self._insist(claim, lambda: self._leases.release(claim, **{**learnt, "lane": "long"}))
            return "moved"
        except CancelledError:
            read, learnt = keeping.rest()
            if keeping.lost:
                raise LeaseLostError("cancelled, removed or taken over") from None
            self._insist(claim, lambda: self._leases.release(claim, read, **learnt))
            return "released"
        except _NOT_THE_JOBS as error:
            if isinstance(error, _THE_MACHINES) and not self._may_suit_another(claim):
                return self._failed(claim, keeping, error, started)
            read, learnt = keeping.rest()
            if keeping.lost:
                raise LeaseLostError("cancelled, removed or taken over") from None
            log.info("put back for %g s: %s", REST_SECONDS, error)
            self._insist(claim, lambda: self._leases.release(claim, read, rest=REST_SECONDS, **learnt))
            if isinstance(error, _THE_MACHINES):
                log.error("nothing is read here for %g s: %s", REST_SECONDS, error)
                self._rests_until = time.monotonic() + REST_SECONDS
            return "released"
        except LeaseLostError:
            raise
        except Exception as error:
            return self._failed(claim, keeping, error, started)
        read, learnt = keeping.rest()
        if keeping.lost:
            raise LeaseLostError("cancelled, removed or taken over")
        self._insist(claim, lambda: self._leases.finish(claim, transcript, read, **learnt))
        self._changed(claim)  # at once: somebody may be waiting for this very word
        self._tell(
            {
                "event": "job_finished",
                "promised": claim.job.webhook_url is not None,
                "state": "done",
                "lane": claim.job.lane,
                "model": transcript.model,
                "wait": max((claim.job.started_at or 0) - claim.job.run_at, 0.0),
                "run": time.monotonic() - started,
                "audio": transcript.duration,
                "attempt": claim.attempt,
            }
        )
        return "done"

    def _fate(self, claim: Claim) -> str:
        try:
            return self._leases.fate(claim)
        except DatabaseError:
            return "lost"

    def _insist(self, claim: Claim, write: Callable[[], T]) -> T:
        """Write the last word, again and again where the database fails: what was read may be an hour's work."""
        until = time.monotonic() + (self._leases.seconds / 2 if self._stopping.is_set() else OUTAGE_SECONDS)
        while True:
            try:
                return write()
            except DatabaseError:
                if time.monotonic() > until:
                    raise
                with contextlib.suppress(DatabaseError):
                    self._leases.append(claim, [])  # a disk may be too full for a result and not for a heartbeat
                if self._stopping.wait(0.5):
                    until = min(until, time.monotonic() + self._leases.seconds / 2)
                    time.sleep(0.5)

    def _failed(self, claim: Claim, keeping: Keeping, error: Exception, started: float) -> str:
        if isinstance(error, MemoryError):
            told: StenografError = OutOfMemoryError(
                f"There is not enough memory to read {claim.job.filename}.", "Choose a smaller model."
            )
        elif isinstance(error, StenografError):
            told = error
        else:
            log.exception("something unexpected happened")
            told = unexpected(claim.job.filename, error)
        read, learnt = keeping.rest()
        if keeping.lost:
            raise LeaseLostError("cancelled, removed or taken over") from None
        if read or learnt:
            self._insist(claim, lambda: self._leases.append(claim, read, **learnt))
        state = self._insist(claim, lambda: self._leases.fail(claim, told))
        log.warning("failed: %s", told, extra={"code": told.code, "next": state})
        if state == "error":
            self._tell(
                {
                    "event": "job_finished",
                    "promised": claim.job.webhook_url is not None,
                    "state": "error",
                    "lane": claim.job.lane,
                    "model": learnt.get("model") or claim.job.model or "none",
                    "run": time.monotonic() - started,
                    "attempt": claim.attempt,
                }
            )
        return "failed"

    def _transcribe(self, claim: Claim, keeping: Keeping, patience: float | None) -> Transcript:
        def headway() -> None:
            """Of a download, and of the wait for room in the memory."""
            if self._asked_to_stop(keeping) or self._stopping.is_set():
                raise CancelledError("The transcription was cancelled.", "Start it again when you want it.")

        file = claim.job.file or self._fetch(claim, keeping)
        with self._files.local(file, headway) as path:
            return self._read(claim, keeping, path, headway, patience)

    def _read(
        self, claim: Claim, keeping: Keeping, path: Path, headway: Callable[[], None], patience: float | None
    ) -> Transcript:
        job = claim.job
        options = self._models.options_of(job.options)
        with AudioReader(path, trim=options.trim, name=job.filename, longest=self._limits.duration) as reader:
            length = reader.duration
        if length is not None:
            keeping.learn(audio_seconds=length)
        if job.lane == "short" and (length or _least_seconds(job)) > SHORT_SECONDS:
            raise _Moved
        keeping.learn(stage="loading")
        before = self._leases.chunks(claim) if claim.attempt > 1 else []

        def on_model(transcriber: Transcriber) -> None:
            keeping.learn(
                stage="transcribing",
                model=transcriber.model,
                engine=transcriber.engine,
                device=transcriber.device,
                compute_type=transcriber.compute_type,
            )

        def on_chunk(chunk: ChunkResult) -> None:
            done = chunk.end / length if length else job.progress
            keeping.keep(chunk, progress=min(done, 0.999), **({"language": chunk.language} if chunk.language else {}))
            if self._lets_short_in and job.lane == "long" and not job.suspect:
                self._let_short_in(keeping)

        return self._models.reader.read(
            path,
            options,
            model=job.options.get("model"),
            earlier=job.model,
            on_model=on_model,
            headway=headway,
            patience=patience,
            on_chunk=on_chunk,
            on_progress=lambda progress: self._progress(keeping, progress),
            cancelled=lambda: self._asked_to_stop(keeping),
            draining=self._stopping.is_set,
            longest=self._limits.duration,
            done=before,
            name=job.filename,
        )

    def _let_short_in(self, keeping: Keeping) -> None:
        try:
            with keeping.aside():
                # Without patience: it would wait for the model that this very thread holds.
                while not keeping.lost and self.run_one(("short",), patience=0.0):
                    pass
        except StenografError as error:  # the long one can go on
            log.warning("no short recording could be let in: %s", error)
        except Exception:
            log.exception("no short recording could be let in")

    @staticmethod
    def _progress(keeping: Keeping, progress: Progress) -> None:
        if progress.fraction is not None:
            keeping.learn(progress=min(progress.fraction, 0.999))

    @staticmethod
    def _asked_to_stop(keeping: Keeping) -> bool:
        keeping.headway()  # it is asked after each block of sound: even hours of silence are headway
        return keeping.lost

    def _fetch(self, claim: Claim, keeping: Keeping) -> str:
        """Bring the recording from its address; returns its name in the file store."""
        assert claim.job.url is not None
        keeping.learn(now=True, stage="fetching")
        incoming = self._files.create()
        try:
            fetched = self._outbound.download(
                claim.job.url,
                incoming.write,
                max_bytes=self._files.max_bytes,
                timeout_seconds=FETCH_SECONDS,
                on_progress=lambda *_: keeping.headway(),
                cancelled=lambda: keeping.lost or self._stopping.is_set(),
            )
            name = incoming.commit()
            columns = {"file": name, "size": incoming.size, "digest": incoming.digest}
            if not PurePath(claim.job.filename).suffix:
                columns |= {"filename": fetched.filename, "search": fetched.filename.casefold()}
        except BaseException:
            incoming.abort()
            raise
        try:
            self._leases.renew(claim, **columns)
        except LeaseLostError:
            incoming.abort()
            raise
        return name  # where the database failed instead, the row may name the file: the sweep knows

    def _changed(self, claim: Claim) -> None:
        self._tell({"event": "job", "job": claim.id})


def _least_seconds(job: Job) -> float:
    """For a recording that does not tell its length: as long as it is if each second takes 32 kB."""
    return job.size / 32_000
