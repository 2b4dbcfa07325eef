"""What a worker process is for, and how many there are."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from stenograf.engines import cuda
from stenograf.jobs.job import LANES, NEEDS, Lane, Need
from stenograf.settings import Settings

RECYCLE = 75
"""Exit status of a worker that wants to be replaced by a fresh one; sysexits calls it a temporary failure."""

REST = 76
"""Exit status of a worker whose models went after a time without use: the fresh one loads none until it is asked."""

HUNG = 70
"""Exit status of a worker that found itself hung."""


@dataclass(frozen=True)
class Post:
    """What a worker is for."""

    name: str
    slots: int
    lanes: tuple[Lane, ...] = LANES
    needs: tuple[Need, ...] = NEEDS
    suspects: bool = False
    """Whether it takes only jobs over which another worker died, one at a time."""
    on_demand: bool = False
    """Whether it is started when there is work for it, and ends after a while without: its memory is not held idle."""
    nice: int = 5
    """How far it gives way to other processes, 0 to 19: the service must answer while all processors compute."""
    hinted: bool = True
    """Whether the process that started it takes jobs in and tells of them."""
    service: str = ""
    """A mark of the service that it belongs to."""
    preload: bool = False
    """Whether it loads the default model at once, if that is here."""

    def worker(self, pid: int) -> str:
        """The name that the claims of a process at this post carry: no two share one.

        Containers may have the same host name, and the same few pids: so the service has a mark of its own in it.
        """
        return f"{socket.gethostname()}-{self.service}-{self.name}-{pid}"

    def lanes_of(self, slot: int) -> tuple[Lane, ...]:
        """The lanes of a slot: where there are several, the first is kept for short recordings."""
        return ("short",) if slot == 0 and self.slots > 1 and len(self.lanes) > 1 else self.lanes


def posts(settings: Settings, *, hinted: bool) -> list[Post]:
    """The workers that a service has, and what each is for.

    With two or more, some are kept for long recordings. They give way to the others, so that a voice note is hardly
    slower beside a meeting: `benchmarks/service.py` has the figures.
    """
    needs = needs_of(settings)
    workers = settings.workers or (1 if on_gpu(settings) or settings.slots == 1 else 2)
    if workers == 1:
        return [Post("worker-1", settings.slots, needs=needs, hinted=hinted, preload=True)]
    long = workers // 2
    long_slots = max(settings.slots // 3, long)
    short_slots = max(settings.slots - long_slots, workers - long)
    short = [
        Post(f"short-{n + 1}", slots, ("short",), needs=needs, hinted=hinted, preload=True)
        for n, slots in enumerate(_shares(short_slots, workers - long))
    ]
    return short + [
        Post(f"long-{n + 1}", slots, ("long",), needs=needs, nice=15, hinted=hinted, on_demand=True)
        for n, slots in enumerate(_shares(long_slots, long))
    ]


def needs_of(settings: Settings) -> tuple[Need, ...]:
    """What the workers of this machine take. Where it is the only one, that is everything."""
    if settings.needs:
        return tuple(need for need in NEEDS if need in settings.needs)
    is_alone = settings.database.startswith("sqlite")
    return NEEDS if is_alone or on_gpu(settings) else ("cpu",)


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (n < total % parts) for n in range(parts)]


def on_gpu(settings: Settings) -> bool:
    """Whether the models will likely run on a GPU; asked without loading an engine."""
    return cuda.present() if settings.device == "auto" else settings.device.startswith("cuda")
