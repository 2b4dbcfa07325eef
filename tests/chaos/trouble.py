"""What is done to a service: SIGKILL, SIGSTOP and SIGTERM, by a schedule that a seed decides."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Protocol

import psutil

from chaos.service import Service

Deck = Mapping[str, int]
"""What is done, and how often."""

TWO_HUNDRED: Deck = {
    "kill a worker": 22,
    "kill the API": 4,
    "kill all": 2,
    "freeze a worker": 8,
    "freeze the API": 2,
    "restart the service": 1,
}
"""For 200 jobs: 28 kills, 10 freezes, a restart."""

GAP = 0.3
"""Seconds between two blows, at least."""

PATIENCE = 5.0
"""Seconds that a blow waits, at most, for the jobs that are to be done before it: a worker takes some of them to start,
and one that is killed before it has begun proves little."""

PATIENCE_FROZEN = 1.5
"""The same while something is frozen, when not much gets done."""

FREEZES = (1.2, 3.0)
"""A freeze lasts so many seconds longer than a lease: that it ran out is seen after a second at most, and one or two
more pass until another worker reads what the frozen one has in its hands."""

AIMED = 0.8
"""So large a share of the blows to workers goes to one that is at work."""

AIM_SECONDS = 2.0
"""So long such a blow waits for one."""


class Target(Protocol):
    """Whom it happens to."""

    def ask(self, query: str, *values: object, seconds: float) -> Any: ...
    def done(self, *, seconds: float) -> int: ...
    def hurry(self, *, seconds: float) -> None: ...


class Trouble(ABC):
    """Works a deck off, spread over the jobs; one use."""

    AWAY: ClassVar[tuple[type[Exception], ...]]
    """What a database raises that does not answer."""
    PATIENCE: ClassVar[float] = PATIENCE

    def __init__(self, target: Target, seed: int, deck: Deck, *, jobs: int, lease: float) -> None:
        self.counts: Counter[str] = Counter()
        """What was done; `of them at work` counts the workers that had a recording in their hands."""
        self._target = target
        self._random = random.Random(seed)
        self._lease = lease
        blows = [name for name, count in sorted(deck.items()) for _ in range(count)]
        self._random.shuffle(blows)
        moments = sorted(self._random.uniform(0, 0.95 * jobs) for _ in blows)
        self._plan = list(zip(moments, blows, strict=True))
        self._hurry_at = 0.0
        self._frozen: dict[psutil.Process, float] = {}
        """Process -> when it wakes."""

    def run(self) -> None:
        """Do it all; at the end nothing is frozen."""
        try:
            for moment, blow in self._plan:
                self._await(moment)
                while not self._do(blow):
                    self._wait(GAP)
            while self._frozen:
                self._wait(GAP)
        finally:
            self._wake(float("inf"))

    def _await(self, moment: float) -> None:
        """Wait until so many jobs are done, or there is no more patience."""
        end = time.monotonic() + (PATIENCE_FROZEN if self._frozen else self.PATIENCE)
        self._wait(GAP)
        while time.monotonic() < end:
            with suppress(*self.AWAY):
                if self._target.done(seconds=0.2) >= moment:
                    return
                self._hurry()
            self._wait(0.2)

    def _hurry(self) -> None:
        if time.monotonic() >= self._hurry_at:
            self._target.hurry(seconds=0.2)
            self._hurry_at = time.monotonic() + 2.0

    def _do(self, what: str) -> bool:
        done = self._strike(what)
        self.counts[what] += done
        return done

    @abstractmethod
    def _strike(self, what: str) -> bool:
        """Whether there was someone to do it to."""

    @abstractmethod
    def _workers(self) -> list[psutil.Process]:
        """Those that read recordings, and live."""

    def _strike_worker(self, what: str) -> bool:
        worker, busy = self._worker()
        if worker is None:
            return False
        if what == "kill a worker":
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        elif not self._freeze(worker):
            return False
        self.counts["of them at work"] += busy
        return True

    def _freeze(self, process: psutil.Process) -> bool:
        if process in self._frozen:
            return False
        try:
            process.send_signal(signal.SIGSTOP)
        except psutil.NoSuchProcess:
            return False
        self._frozen[process] = time.monotonic() + self._lease + self._random.uniform(*FREEZES)
        return True

    def _worker(self) -> tuple[psutil.Process | None, bool]:
        """A worker that is not frozen, and whether it has a recording in its hands."""
        end = time.monotonic() + (AIM_SECONDS if self._random.random() < AIMED else 0.0)
        while True:
            workers = [worker for worker in self._workers() if worker not in self._frozen]
            at_work = self._at_work()
            if busy := [worker for worker in workers if worker.pid in at_work and time.monotonic() < end]:
                return self._random.choice(busy), True
            if time.monotonic() >= end:
                worker = self._random.choice(workers) if workers else None
                return worker, worker is not None and worker.pid in at_work
            self._wait(0.1)

    def _at_work(self) -> set[int]:
        """The processes that have a recording in their hands, as far as can be told."""
        try:
            owners = self._target.ask("SELECT lease_owner FROM jobs WHERE state = 'processing'", seconds=0.5)
        except self.AWAY:
            return set()
        return {int(owner["lease_owner"].rpartition("-")[2]) for owner in owners}

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            self._wake(now)
            time.sleep(min(0.05, end - now))

    def _wake(self, now: float) -> None:
        for process in [process for process, until in self._frozen.items() if until <= now]:
            del self._frozen[process]
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


class ServiceTrouble(Trouble):
    """What happens to a service on one machine."""

    AWAY = (sqlite3.OperationalError,)  # a frozen process holds the lock

    def __init__(self, service: Service, seed: int, deck: Deck, *, jobs: int, lease: float) -> None:
        super().__init__(service, seed, deck, jobs=jobs, lease=lease)
        self._service = service

    def _strike(self, what: str) -> bool:
        match what:
            case "kill the API":
                self._service.kill()
            case "kill all":
                self.counts["processes killed at once"] += self._service.kill_all()
            case "restart the service":
                self._service.restart()
            case "freeze the API":
                return self._freeze(psutil.Process(self._service.pid))
            case _:
                return self._strike_worker(what)
        return True

    def _workers(self) -> list[psutil.Process]:
        return self._service.workers()
