"""What is done to a service: SIGKILL and SIGSTOP, by a schedule that a seed decides."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

import psutil

from chaos.service import Service

Deck = Mapping[str, int]
"""What is done, and how often."""

TWO_HUNDRED: Deck = {
    "kill a worker": 19,
    "kill the API": 6,
    "kill all": 3,
    "freeze a worker": 8,
    "freeze the API": 3,
    "freeze a worker for good": 1,
}
"""For 200 jobs: 28 kills and 12 freezes."""

GAPS = (0.6, 2.2)
"""Seconds between one and the next."""

FREEZES = (1.6, 2.4)
"""How long a freeze lasts, in leases: it must be seen that the lease ran out, and that takes up to a second."""

AIMED = 0.8
"""So large a share of the blows to workers goes to one that is at work, if there is any."""


class Trouble:
    """Works a deck off; one use."""

    def __init__(self, service: Service, seed: int, deck: Deck, *, lease: float) -> None:
        self.counts: Counter[str] = Counter()
        """What was done; `of them at work` counts the workers that had a recording in their hands."""
        self._service = service
        self._random = random.Random(seed)
        self._lease = lease
        self._deck = [name for name, count in sorted(deck.items()) for _ in range(count)]
        self._random.shuffle(self._deck)
        self._frozen: dict[psutil.Process, float] = {}
        """Process -> when it wakes."""

    @property
    def seconds(self) -> float:
        """How long it will take, about."""
        return len(self._deck) * sum(GAPS) / 2

    def run(self) -> None:
        """Do it all; at the end nothing is frozen."""
        try:
            while self._deck:
                self._wait(self._random.uniform(*GAPS))
                if self._do(self._deck[-1]):
                    self._deck.pop()
            while self._frozen:
                self._wait(0.1)
        finally:
            self._wake(float("inf"))

    def _do(self, what: str) -> bool:
        """Whether there was someone to do it to."""
        match what:
            case "kill the API":
                self._service.kill()
            case "kill all":
                self.counts["processes killed at once"] += self._service.kill_all()
            case "freeze the API":
                return self._freeze(psutil.Process(self._service.pid), what)
            case _:
                worker, busy = self._worker()
                if worker is None:
                    return False
                if what == "kill a worker":
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
                elif not self._freeze(worker, what):
                    return False
                self.counts["of them at work"] += busy
        if what.startswith("kill"):
            self.counts[what] += 1
        return True

    def _freeze(self, process: psutil.Process, what: str) -> bool:
        if process in self._frozen:
            return False
        try:
            process.send_signal(signal.SIGSTOP)
        except psutil.NoSuchProcess:
            return False
        # For good: its supervisor kills it after 10 s.
        seconds = 14.0 if what.endswith("for good") else self._lease * self._random.uniform(*FREEZES)
        self._frozen[process] = time.monotonic() + seconds
        self.counts[what] += 1
        return True

    def _worker(self) -> tuple[psutil.Process | None, bool]:
        """A worker that is not frozen, and whether it has a recording in its hands."""
        workers = [worker for worker in self._service.workers() if worker not in self._frozen]
        with suppress(sqlite3.OperationalError):  # a frozen process may hold its lock
            owners = self._service.ask("SELECT lease_owner FROM jobs WHERE state = 'processing'", seconds=1.0)
            pids = {int(owner["lease_owner"].rpartition("-")[2]) for owner in owners}
            busy = [worker for worker in workers if worker.pid in pids]
            if busy and self._random.random() < AIMED:
                return self._random.choice(busy), True
        return (self._random.choice(workers), False) if workers else (None, False)

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
