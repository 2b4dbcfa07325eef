"""Starts the worker processes, restarts those that die, and sees that no job is lost with them."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from stenograf.errors import DatabaseError
from stenograf.jobs import dispatch
from stenograf.jobs.dispatch import Event
from stenograf.jobs.job import LANES, NEEDS
from stenograf.jobs.lease import Leases
from stenograf.jobs.post import HUNG, RECYCLE, REST, Post

log = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0
"""How long workers may take to finish their running chunks when the service stops."""

LOOK_SECONDS = 0.5
"""How often the supervisor looks around, if nothing happens."""

SILENT_LEASES = 3
"""A worker that gave no sign for so many leases is frozen: it is killed and replaced."""

YOUNG_SECONDS = 10.0
"""A worker that dies younger than this is restarted after a growing pause, up to `LONGEST_PAUSE`."""

LONGEST_PAUSE = 30.0
"""Seconds."""

QUARANTINE = "quarantine"
"""The worker that takes jobs over which another died."""


Work = Callable[[Connection, Post], None]
"""To be pickled: it goes to a fresh process, which loads what the process that starts workers must not."""


@dataclass
class _Hand:
    """One worker process, and its end of the pipe."""

    post: Post
    process: BaseProcess
    pipe: Connection
    born: float = field(default_factory=time.monotonic)
    last_sign: float = field(default_factory=time.monotonic)


class Supervisor:
    """The workers of a service."""

    def __init__(self, leases: Leases, posts: list[Post], *, work: Work, on_event: Callable[[Event], None]) -> None:
        """`work` is what each process runs; `on_event` is called in the supervisor's thread, with what workers tell."""
        self._work = work
        self._leases = leases
        needs = posts[0].needs if posts else NEEDS
        quarantine = Post(QUARANTINE, 1, LANES, needs=needs, suspects=True, nice=10, on_demand=True)
        mark = secrets.token_hex(3)
        self._posts = [replace(post, service=mark) for post in (*posts, quarantine)]
        self._on_event = on_event
        self._context = multiprocessing.get_context("spawn")
        self._hands: dict[str, _Hand] = {}
        self._pauses: dict[str, float] = {}
        self._resting: dict[str, bool] = {}
        self._due: dict[str, float] = {}
        self._filled = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._bell_out, self._bell = self._context.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the workers and watch over them."""
        for post in self._posts:
            if not post.on_demand:
                self._hire(post)
        self._thread.start()

    def wake(self) -> None:
        """Tell the workers that there may be work."""
        with self._lock:  # a pipe that was closed meanwhile could be another file by now
            for hand in self._hands.values():
                dispatch.hint(hand.pipe)

    def processes(self) -> dict[str, int]:
        """Name -> pid of the workers that live."""
        with self._lock:
            return {name: hand.process.pid or 0 for name, hand in self._hands.items() if hand.process.is_alive()}

    def stop(self, seconds: float = DRAIN_SECONDS) -> None:
        """Let running chunks finish, send the rest back to the queue, and end the workers."""
        self._stopping.set()
        self._bell.send(None)
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            hands = list(self._hands.values())
        for hand in hands:
            _signal(hand, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        left = hands
        while left and time.monotonic() < deadline:
            wait([hand.process.sentinel for hand in left], timeout=0.2)
            for hand in left:
                self._listen(hand)
            left = [hand for hand in left if hand.process.is_alive()]
        for hand in left:
            log.warning("%s did not end in time and is killed; its work goes back to the queue", hand.post.name)
            hand.process.kill()
            hand.process.join()
        for hand in hands:
            self._release(hand, blame=False)
        with self._lock:
            self._hands.clear()
            for hand in hands:
                hand.pipe.close()

    def _hire(self, post: Post) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=self._work,
            args=(theirs, post),
            name=f"stenograf {post.name}",
            daemon=True,  # a service that fails without a `stop` must not wait for its workers for ever
        )
        try:
            with _uninterrupted():
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # else we would not learn that the worker is gone
        with self._lock:
            self._hands[post.name] = _Hand(post, process, ours)
        log.info("worker %s started", post.name, extra={"worker_pid": process.pid})

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look_around()
                if time.monotonic() - self._filled > LOOK_SECONDS / 2:  # not after each word of a worker
                    self._filled = time.monotonic()
                    self._fill()
            except DatabaseError as error:
                log.error("%s", error)
                self._stopping.wait(1.0)
            except Exception:  # such as no memory for a new process: that is when workers are needed most
                log.exception("the supervisor could not go on")
                self._stopping.wait(1.0)

    def _look_around(self) -> None:
        with self._lock:
            hands = list(self._hands.values())
        began = time.monotonic()
        ready = wait(
            [self._bell_out, *(hand.pipe for hand in hands), *(hand.process.sentinel for hand in hands)],
            timeout=LOOK_SECONDS,
        )
        slept = time.monotonic() - began > 10 * LOOK_SECONDS  # all of us did, as when a container is paused
        for hand in hands:
            if slept:
                hand.last_sign = time.monotonic()
            if hand.pipe in ready:
                self._listen(hand)
            if not hand.process.is_alive():
                self._bury(hand)
            elif time.monotonic() - hand.last_sign > max(SILENT_LEASES * self._leases.seconds, 10.0):
                log.error("worker %s gives no sign: it is killed", hand.post.name)
                hand.process.kill()
                hand.process.join(1.0)  # else it would be found alive again, and said again

    def _listen(self, hand: _Hand) -> None:
        try:
            for event in dispatch.events(hand.pipe):
                hand.last_sign = time.monotonic()
                if event["event"] != "worker_hung":
                    self._tell(event)
        except EOFError:
            hand.process.join(1.0)  # its end of the pipe closes a moment before it is gone

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # whoever listens must not end the watch over the workers
            log.exception("an event was not understood: %s", event)

    def _bury(self, hand: _Hand) -> None:
        hand.process.join()
        self._listen(hand)
        status = hand.process.exitcode
        reason = {0: "stopped", RECYCLE: "recycled", REST: "recycled", HUNG: "hung"}.get(status or 0, "crashed")
        if reason in ("crashed", "hung"):
            log.error("worker %s %s", hand.post.name, reason, extra={"status": status})
        with self._lock:
            del self._hands[hand.post.name]
            hand.pipe.close()
        self._resting[hand.post.name] = status == REST
        self._release(hand, blame=reason != "recycled")
        self._tell({"event": "worker_gone", "worker": hand.post.name, "reason": reason})
        young = time.monotonic() - hand.born < YOUNG_SECONDS and reason == "crashed"
        pause = min(self._pauses.get(hand.post.name, 0.25) * 2, LONGEST_PAUSE) if young else 0.0
        self._pauses[hand.post.name] = pause
        self._due[hand.post.name] = time.monotonic() + pause

    def _release(self, hand: _Hand, *, blame: bool) -> None:
        try:
            if self._leases.abandon(hand.post.worker(hand.process.pid or 0), blame=blame):
                self._leases.reap()
        except DatabaseError as error:  # the reaper will see to it when the leases run out
            log.error("%s", error)

    def _fill(self) -> None:
        """Replace who is gone, and start who is needed."""
        for post in self._posts:
            due = post.name not in self._hands and time.monotonic() >= self._due.get(post.name, 0.0)
            if due and (not post.on_demand or self._waits_for(post)):
                self._hire(replace(post, preload=False) if self._resting.get(post.name) else post)

    def _waits_for(self, post: Post) -> bool:
        return self._leases.waiting(post.lanes, needs=post.needs, suspects=post.suspects)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process that is started within it knows no Ctrl-C, not even in its first moments."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it starts with the first process, and would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal(hand: _Hand, number: int) -> None:
    pid = hand.process.pid
    if pid and hand.process.is_alive():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
