"""What is done to a fleet: its processes killed and frozen, its servers killed, emptied, frozen and set."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
from redis import Redis as RedisClient
from redis import RedisError

from chaos.trouble import Deck, Trouble
from fleet.clocks import HOUR, SetPostgres
from servers import Server

if TYPE_CHECKING:
    from fleet.fleet import Fleet

FOR_ALL: Deck = {
    "kill a worker": 12,
    "kill a parent": 3,
    "kill a replica": 3,
    "freeze a worker": 4,
    "freeze a parent": 2,
    "freeze a replica": 2,
    "restart a replica": 1,
    "restart a node": 1,
    "kill PostgreSQL": 2,
    "kill the broker": 3,
    "drop all hints": 2,
    "kill S3": 1,
    "freeze S3": 2,
    "set the clock on": 1,
    "set the clock back": 1,
    "fill a disk": 2,
}
"""For 200 jobs, with Redis and S3."""

FOR_RABBITMQ: Deck = {
    "kill a worker": 3,
    "kill a parent": 1,
    "kill a replica": 1,
    "freeze a worker": 1,
    "freeze a replica": 1,
    "kill PostgreSQL": 1,
    "kill the broker": 2,
}
"""For 40 jobs, with RabbitMQ and a folder that all share."""

AWAY_SECONDS = (0.3, 1.5)
"""A server that was killed stays away for so long, and the time of its start."""

DROPPING_SECONDS = 2.5
"""So long every hint is lost; a job without a hint gets another after 5 s."""

FULL_SECONDS = 3.0
"""So long a disk stays full."""


class FleetTrouble(Trouble):
    """Works a deck off; one use."""

    AWAY = (psycopg.Error,)
    PATIENCE = 2.5  # there are more blows to come, and more workers to survive them

    def __init__(
        self, fleet: Fleet, seed: int, deck: Deck, *, jobs: int, lease: float, disk: Path | None = None
    ) -> None:
        """`disk` is the small one that a node has, where it has one."""
        super().__init__(fleet, seed, deck, jobs=jobs, lease=lease)
        self._fleet = fleet
        self._disk = disk
        self._offset = 0

    def _strike(self, what: str) -> bool:
        fleet = self._fleet
        match what.split(" "):
            case ["kill" | "freeze", "a", "worker"]:
                return self._strike_worker(what)
            case ["kill", "a", "parent"]:
                return self._kill(fleet.parents())
            case ["kill", "a", "replica"]:
                return self._kill(self._replicas())
            case ["freeze", "a", "parent"]:
                return self._freeze_one(fleet.parents())
            case ["freeze", "a", "replica"]:
                return self._freeze_one(self._replicas())
            case ["restart", "a", whom]:
                programs = fleet.workers if whom == "node" else fleet.api
                with suppress(ProcessLookupError):
                    self._random.choice(programs).restart()
            case ["kill", "PostgreSQL"]:
                self._away(fleet.postgres)
            case ["kill", "the", "broker"]:
                self._away(fleet.broker)
            case ["kill", "S3"]:
                self._away(fleet.s3)
            case ["freeze", "S3"]:
                self._hold_s3()
            case ["drop", *_]:
                self._drop_hints()
            case ["set", "the", "clock", direction]:
                self._offset += HOUR if direction == "on" else -HOUR
                assert isinstance(fleet.postgres, SetPostgres)
                fleet.postgres.set(self._offset)
            case ["fill", *_]:
                self._fill()
            case _:
                raise ValueError(what)
        return True

    def _workers(self) -> list[psutil.Process]:
        return self._fleet.children()

    def _replicas(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [psutil.Process(program.pid) for program in self._fleet.api]
        return []

    def _kill(self, processes: list[psutil.Process]) -> bool:
        if not processes:
            return False
        with suppress(psutil.NoSuchProcess):
            self._random.choice(processes).kill()
        return True

    def _freeze_one(self, processes: list[psutil.Process]) -> bool:
        return bool(processes) and self._freeze(self._random.choice(processes))

    def _away(self, server: Server | None) -> None:
        assert server is not None
        server.kill()
        self._wait(self._random.uniform(*AWAY_SECONDS))
        server.start()

    def _hold_s3(self) -> None:
        assert self._fleet.s3 is not None
        # Its gateway alone, which looks the same from outside: the disks behind it may not recover from a freeze.
        gateway = self._fleet.s3._processes[-1]
        gateway.send_signal(signal.SIGSTOP)
        try:
            self._wait(self._lease + self._random.uniform(0.5, 1.5))
        finally:
            gateway.send_signal(signal.SIGCONT)

    def _drop_hints(self) -> None:
        end = time.monotonic() + DROPPING_SECONDS
        with RedisClient.from_url(self._fleet.broker.url, socket_timeout=2) as client:
            while time.monotonic() < end:
                with suppress(RedisError):
                    self.counts["hints dropped"] += sum(
                        client.llen(name) for name in client.scan_iter("stenograf.*", _type="list")
                    )
                    client.flushall()
                self._wait(0.05)

    def _fill(self) -> None:
        if self._disk is None:
            return
        filler = self._disk / "filler"
        with suppress(OSError), filler.open("wb") as file:  # no space is left in the end
            while True:
                file.write(bytes(1 << 20))
        try:
            self._wait(FULL_SECONDS)
        finally:
            filler.unlink()
