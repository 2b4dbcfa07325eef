"""A worker process: a few slots, each a thread that claims a job, works on it to its end, and claims the next."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import PurePath
from typing import Protocol

import psutil

from stenograf import allocation, logs
from stenograf.errors import StenografError
from stenograf.jobs.dispatch import Event, Uplink
from stenograf.jobs.files import FileStore
from stenograf.jobs.job import LANES
from stenograf.jobs.lease import Leases
from stenograf.jobs.outbound import Outbound
from stenograf.jobs.post import HUNG, RECYCLE, REST, Post
from stenograf.jobs.preload import preload
from stenograf.jobs.runner import Limits, Models, Runner
from stenograf.models import memory
from stenograf.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
"""How often an idle slot looks for work that no hint told of: of other processes, or jobs whose rest is over."""

POLL_SECONDS_HINTED = 0.25
"""The same where hints come."""

SIGN_SECONDS = 1.0
"""How often a worker shows that it lives and how much memory it takes."""

IDLE_SECONDS = 120.0
"""A worker on demand that had nothing to do for so long ends, and its memory is free."""

QUARANTINE_SECONDS = 5.0
"""The same for the one that takes suspects: they are rare, and have had their rest when it is started."""

BESIDE_BYTES = 1_000_000_000
"""What a worker may take beside its models."""

KEPT_BYTES = 400_000_000
"""A worker without a model that still takes so much more than at its start is replaced: libraries keep memory, and only
the end of a process surely gives it back."""

TRIM_SECONDS = 0.9
"""Without work for so long, a worker gives memory that was freed back to the system."""


class Equipment(Models, Protocol):
    """What a worker works with; `Runtime` is one."""

    settings: Settings

    @property
    def leases(self) -> Leases: ...
    @property
    def files(self) -> FileStore: ...
    @property
    def outbound(self) -> Outbound: ...
    @property
    def is_fleet(self) -> bool:
        """Whether other machines may work on the same jobs."""
        ...

    def files_are_ours(self) -> bool:
        """Whether the recordings belong to the database."""
        ...

    def tell_others(self, event: Event) -> None:
        """Tell the services of other machines what changed."""


def most_memory(runtime: Equipment) -> int:
    """The bytes that a worker process may take before a fresh one takes over."""
    # More than its models may take, or it would be replaced again and again for holding them.
    available = runtime.reader.available
    models = 0 if available.on_gpu else available.budget
    return runtime.settings.worker_memory * 1_000_000 or max(memory.machine() // 2, models + BESIDE_BYTES)


class Worker:
    """The slots of one process."""

    def __init__(self, post: Post, runtime: Equipment, uplink: Uplink, hints: threading.Event) -> None:
        """`hints` is set when there may be work."""
        settings = runtime.settings
        self._post = post
        self._runtime = runtime
        self._uplink = uplink
        self._hints = hints
        self._name = post.worker(os.getpid())
        self._memory = most_memory(runtime)
        self._working = 0
        self._used = time.monotonic()
        self._has_worked = False
        self._recycle = False
        self._rest = False
        self._let_go = False
        self._at_start = psutil.Process().memory_info().rss
        self._ended = threading.Event()
        self._preloading = threading.Thread(target=self._preload, daemon=True, name="preload")
        self._wakers = [threading.Event() for _ in range(post.slots)]
        self._runner = Runner(
            runtime.leases,
            runtime.files,
            runtime,
            runtime.outbound,
            worker=self._name,
            limits=Limits(settings.max_duration or None, settings.stall),
            tell=self._tell,
            on_stall=self._hung,
            needs=post.needs,
            has_others=runtime.is_fleet,
            files_are_ours=runtime.files_are_ours,
            lets_short_in=post.slots == 1 and post.lanes == LANES and not post.suspects,
        )

    def run(self) -> int:
        """Work until told to stop; returns the exit status."""
        threads = [
            threading.Thread(target=self._serve_slot, args=(slot,), name=f"slot-{slot}", daemon=True)
            for slot in range(self._post.slots)
        ]
        for thread in threads:
            thread.start()
        threading.Thread(target=self._pass_hints_on, daemon=True, name="hints-on").start()
        if self._post.preload:
            self._preloading.start()
        while any(thread.is_alive() for thread in threads):
            self._show_signs()
            self._ended.wait(SIGN_SECONDS)
            if self._ended.is_set():
                for thread in threads:
                    thread.join(SIGN_SECONDS)
        return REST if self._rest else RECYCLE if self._recycle else 0

    @property
    def is_loading(self) -> bool:
        """Whether the default model is still being loaded."""
        return self._preloading.is_alive()

    def stop(self) -> None:
        """End after the running chunks; jobs that are not done go back to the queue."""
        self._runner.stop()
        self._ended.set()
        self._hints.set()

    def _tell(self, event: Event) -> None:
        self._uplink.tell(event)
        self._runtime.tell_others(event)

    def _serve_slot(self, slot: int) -> None:
        lanes = self._post.lanes_of(slot)
        poll = POLL_SECONDS_HINTED if self._post.hinted else POLL_SECONDS
        waker = self._wakers[slot]
        while not self._ended.is_set():
            waker.clear()
            try:
                if self._recycle:
                    return
                self._working += 1
                try:
                    worked = self._runner.run_one(lanes, suspects=self._post.suspects)
                finally:
                    self._working -= 1
            except StenografError as error:  # the database is out of reach: it may come back
                log.error("a slot could not go on: %s", error)
                self._ended.wait(SIGN_SECONDS)
                continue
            except Exception:
                log.exception("a slot could not go on")
                self._ended.wait(SIGN_SECONDS)
                continue
            if worked:
                self._used, self._has_worked = time.monotonic(), True
                self._watch_memory()
            else:
                waker.wait(poll)

    def _pass_hints_on(self) -> None:
        while not self._ended.is_set():
            self._hints.wait()
            self._hints.clear()
            for waker in self._wakers:
                waker.set()

    def _show_signs(self) -> None:
        held = {PurePath(model.name).name: model.size for model in self._runtime.reader.loaded()}
        taken = psutil.Process().memory_info().rss
        self._uplink.tell({"event": "worker_memory", "worker": self._post.name, "bytes": taken, "models": held})
        if gone := self._runtime.reader.close_idle():
            allocation.give_back()
            log.info("%s left the memory: nobody used it for a while", ", ".join(gone))
            self._let_go = True
        if self._working:
            return
        if self._let_go and not held:
            self._rest_if_memory_is_kept()
        idle = time.monotonic() - self._used
        if self._has_worked and idle > TRIM_SECONDS:
            self._has_worked = False
            allocation.give_back()
        patience = QUARANTINE_SECONDS if self._post.suspects else IDLE_SECONDS
        if self._post.on_demand and idle > patience:
            log.info("nothing to do: this worker ends until it is needed again")
            self.stop()

    def _rest_if_memory_is_kept(self) -> None:
        self._let_go = False
        kept = psutil.Process().memory_info().rss - self._at_start
        if kept > KEPT_BYTES:
            log.info("%d MB did not come back: a fresh worker takes over", kept // 1_000_000)
            self._rest = True
            self.stop()

    def _watch_memory(self) -> None:
        taken = psutil.Process().memory_info().rss
        if taken > self._memory and not self._recycle:
            log.warning(
                "takes %d MB, more than %d: a fresh worker takes over", taken // 1_000_000, self._memory // 1_000_000
            )
            self._recycle = True

    def _preload(self) -> None:
        preload(
            self._runtime.reader,
            lambda name, error: self._uplink.tell({"event": "model_failed", "model": name, "code": error.code}),
        )
        self._used, self._has_worked = time.monotonic(), True

    def _hung(self) -> None:
        log.critical("no headway for %g s: this worker is hung and ends itself", self._runtime.settings.stall)
        self._uplink.tell({"event": "worker_hung", "worker": self._post.name})
        os._exit(HUNG)


def main(pipe: Connection, post: Post, runtime: Equipment) -> None:
    """What a worker process runs."""
    settings = runtime.settings
    allocation.spare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent says what to do
    logs.setup(level=settings.log_level, json=settings.log_format == "json", file=settings.log_path, process=post.name)
    if post.nice and hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(post.nice)
    hints = threading.Event()
    stops: list[Callable[[], None]] = []
    gone = threading.Event()

    def end() -> None:
        gone.set()
        for stop in stops:
            stop()

    uplink = Uplink(pipe, on_hint=hints.set, on_gone=end)
    runtime.reader.on_load = lambda name, seconds, device: uplink.tell(
        {"event": "model_loaded", "model": name, "seconds": seconds, "device": device}
    )
    runtime.reader.on_evict = lambda name, reason: uplink.tell(
        {"event": "model_evicted", "model": PurePath(name).name, "reason": reason}
    )
    worker = Worker(post, runtime, uplink, hints)
    stops.append(worker.stop)
    told: queue.SimpleQueue[None] = queue.SimpleQueue()

    def listen() -> None:
        told.get()
        end()

    threading.Thread(target=listen, name="stop", daemon=True).start()
    # The handler runs in the midst of anything, also of what holds the locks that `end` needs.
    signal.signal(signal.SIGTERM, lambda *_: told.put(None))
    if gone.is_set():
        return
    status = worker.run()
    if worker.is_loading:  # a thread in the engine's own code would crash a slower end
        logging.shutdown()
        os._exit(status)
    sys.exit(status)
