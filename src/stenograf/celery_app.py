"""The Celery worker's entry: `celery -A stenograf.celery_app worker`, or `stenograf worker` where a broker is set.

A message is a hint that there may be work. What a task does is what every worker does, `Runner.run_one`: claim the best
job, work on it to its end. So a message that is lost or comes twice changes nothing. Each process of the pool has its
own models. The settings come from where all of Stenograf's come from: the environment, `.env`, the TOML file.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import warnings
from functools import cached_property
from typing import Any

from celery import Celery, bootsteps, signals
from celery.exceptions import WorkerShutdown
from celery.platforms import SecurityWarning
from celery.worker import consumer

from stenograf import allocation, logs
from stenograf.errors import DatabaseUnreachableError, StenografError
from stenograf.jobs.broker import TASK, broker_app, is_another_kind, queue_name, shown, why
from stenograf.jobs.job import LANES, NEEDS, Lane, Need
from stenograf.jobs.post import HUNG, needs_of, on_gpu
from stenograf.jobs.preload import preload
from stenograf.jobs.runner import Limits, Runner
from stenograf.jobs.worker import most_memory
from stenograf.runtime import Runtime
from stenograf.setting_sources import load
from stenograf.settings import Settings

log = logging.getLogger("stenograf.celery")

PROCESSES = 2
"""Of a pool on a processor, where neither the setting `workers` nor --concurrency says otherwise; on a GPU: 1."""

LOOK_SECONDS = 10.0
"""How often a process looks for models that nobody used for long."""

INIT_SECONDS = 60.0
"""How long a process may take to begin on a busy machine; Celery's 4 s would kill it."""

REFUSED_SECONDS = 3.0
"""The pause before what the broker refused is tried again."""

UNABLE_SECONDS = 2.0
"""How long a process that cannot read takes no hint: its database or its folder is away or wrong, its disk full."""

STOP_SECONDS = 30.0
"""How long running chunks may take to end when the worker is stopped; then their jobs go back to the queue."""


def _settings() -> Settings:
    loaded = load()
    for text in loaded.warnings:
        log.warning("%s", text)
    if loaded.origins["log_level"].kind == "default":
        return dataclasses.replace(loaded.settings, log_level="info")
    return loaded.settings


try:
    settings = _settings()
    app: Celery = broker_app(settings)
except StenografError as error:  # Celery would show a traceback
    raise SystemExit(f"Error: {error.message}\nHint: {error.hint}") from None
"""What `celery -A stenograf.celery_app` finds."""

# Celery warns of root, in ten lines that are no log: it may take Python objects from the broker. Ours takes none.
warnings.filterwarnings("ignore", category=SecurityWarning)

app.conf.update(
    worker_consumer=f"{__name__}:Consumer",
    worker_concurrency=settings.workers or (1 if on_gpu(settings) else PROCESSES),
    worker_proc_alive_timeout=INIT_SECONDS,
    worker_soft_shutdown_timeout=STOP_SECONDS,
    worker_enable_remote_control=True,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)


class Consumer(consumer.Consumer):
    """Celery's, without its delayed delivery.

    With quorum queues that makes 28 queues and exchanges for tasks that begin later, and binds every queue of the
    application to them, also those that nobody made yet. A hint is for now; when a job may run is in its row.
    """

    class Blueprint(consumer.Consumer.Blueprint):
        """The steps of its start."""

        default_steps = tuple(
            step for step in consumer.Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        )

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """The connection is lost, or the broker refused something, such as to wait any longer for a hint."""
        if is_another_kind(exc):
            told, hint = why(exc)
            log.critical("The broker %s %s: %s. %s", shown(settings.broker or ""), told, exc, hint)
            children.stop()
            raise WorkerShutdown(1) from None
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, self.channel_errors):
            time.sleep(REFUSED_SECONDS)


class OwnQueues(bootsteps.Step):
    """Consume what this machine can do, where --queues names nothing else."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        queues = parent.app.amqp.queues
        if queues._consume_from is None:
            queues.select([queue_name(settings, lane, need) for lane in LANES for need in needs_of(settings)])
        log.info("takes hints from %s; processes: %d", ", ".join(sorted(queues.consume_from)), parent.concurrency)
        self._check()
        parent.app.conf.worker_concurrency = parent.concurrency  # the children share the machine's memory by it
        # In KiB. The settings were read into the worker before this step is made.
        parent.max_memory_per_child = most_memory(Runtime(settings, processes=parent.concurrency)) // 1024

    @staticmethod
    def _check() -> None:
        """Do not begin with a database that will never do."""
        runtime = Runtime(settings)
        try:
            runtime.expect_service()
            runtime.database.migrate()
        except DatabaseUnreachableError as error:  # it may come
            log.error("%s", error)
        except StenografError as error:
            raise SystemExit(f"Error: {error.message}\nHint: {error.hint}") from None
        finally:
            runtime.database.close()  # no connection is to be shared with the processes of the pool


app.steps["worker"].add(OwnQueues)


class Child:
    """What a process of the pool has."""

    def __init__(self, *, processes: int) -> None:
        self._name = f"{socket.gethostname()}-celery-{os.getpid()}"
        self.runtime = Runtime(settings, processes=processes)
        self._stopping = threading.Event()
        self._failure: str | None = None
        """Why the last hint could not be followed."""

    @cached_property
    def runner(self) -> Runner:
        """Works on jobs; made at the first task, as it needs the database's files. Raises `StenografError`."""
        consumed = app.amqp.queues.consume_from
        lets_short_in = any(queue_name(settings, "short", need) in consumed for need in NEEDS)
        return Runner(
            self.runtime.leases,
            self.runtime.files,
            self.runtime,
            self.runtime.outbound,
            worker=self._name,
            tell=self.runtime.tell_others,
            limits=Limits(settings.max_duration or None, settings.stall),
            needs=tuple(need for need in NEEDS if any(queue_name(settings, lane, need) in consumed for lane in LANES)),
            on_stall=self._hung,
            # However many processes there are, all may have a meeting in their hands when a voice note comes.
            lets_short_in=lets_short_in,
            has_others=self.runtime.is_fleet,
            files_are_ours=self.runtime.files_are_ours,
        )

    def begin(self) -> None:
        """Load models, and look after them."""
        threading.Thread(target=self._look_after, name="look-after", daemon=True).start()

    def follow(self, lane: Lane, need: Need) -> bool:
        """Follow a hint; False where there was no job, or where this machine cannot read."""
        try:
            # Suspects too, and first: this process reads one job at a time, so that no other is in danger.
            runner = self.runner
            if self._stopping.is_set():  # it was told while there was no runner that could have heard it
                return False
            worked = runner.run_one((lane,), needs=(need,), suspects=None)
            if worked or runner.is_able:
                self._failure = None
                return worked
        except StenografError as error:  # such as a database that is out of reach
            if str(error) != self._failure:
                self._failure = str(error)
                log.error("no hint can be followed here: %s", error)
        self._hand_on(lane, need)
        return False

    def _hand_on(self, lane: Lane, need: Need) -> None:
        """Give the hint to another machine, and take no other for a while: who cannot read is quick to take all."""
        hint = {"lane": lane, "need": need}
        place = queue_name(settings, lane, need)
        try:
            app.send_task(TASK, kwargs=hint, exchange="", routing_key=place, ignore_result=True, retry=False)
        except Exception as error:  # the job is told of again in some seconds
            log.debug("a hint could not be handed on: %s", error)
        self._stopping.wait(UNABLE_SECONDS)

    def stop(self) -> None:
        """End after the running chunk; the job goes back to the queue."""
        self._stopping.set()
        if "runner" in vars(self):
            self.runner.stop()

    def _look_after(self) -> None:
        preload(self.runtime.reader)
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                if gone := self.runtime.reader.close_idle():
                    allocation.give_back()
                    log.info("%s left the memory: nobody used it for a while", ", ".join(gone))
            except Exception:
                log.exception("models could not be looked after")

    def _hung(self) -> None:
        log.critical("no headway for %g s: this process is hung and ends itself", settings.stall)
        os._exit(HUNG)


class _Children:
    """The one `Child` of a process, and how its parent tells it to stop: by closing a pipe, as its death does."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._making = threading.Lock()
        self._reading, self._writing = os.pipe()
        self._is_forked = False

    @property
    def child(self) -> Child:
        with self._making:
            if self._child is None:
                self._child = Child(processes=app.conf.worker_concurrency if self._is_forked else 1)
                self._child.begin()
        return self._child

    def is_made(self) -> bool:
        return self._child is not None

    def forked(self) -> None:
        """This is a new process of the pool."""
        self._is_forked = True
        if self._writing < 0:  # begun while the parent was told to stop
            self.child.stop()
            return
        os.close(self._writing)  # only the parent has it now
        threading.Thread(target=self._listen, name="parent", daemon=True).start()
        # Who stops a service may signal all of its processes at once; Celery's children would die of it.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=self.child.stop, daemon=True).start())
        assert self.child

    def stop(self) -> None:
        """Tell all processes of the pool, in their parent."""
        if self._writing >= 0:
            writing, self._writing = self._writing, -1
            os.close(writing)
        if self.is_made():  # a pool without processes of its own
            self.child.stop()

    def _listen(self) -> None:
        while os.read(self._reading, 1):
            pass
        self.child.stop()


children = _Children()


@app.task(name=TASK, acks_late=True, ignore_result=True)
def run_one(lane: Lane, need: Need) -> bool:
    """Work on the most urgent job of a lane and a need; False where there was none."""
    return children.child.follow(lane, need)


@signals.setup_logging.connect
def _log(**_: Any) -> None:
    for name in ("celery.worker.strategy", "celery.app.trace"):  # what the runner says is enough
        logging.getLogger(name).setLevel(logging.WARNING if settings.log_level == "info" else logging.NOTSET)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)  # Celery's words to its programmers
    logs.setup(level=settings.log_level, json=settings.log_format == "json", file=settings.log_path, process="worker")


@signals.worker_process_init.connect
def _forked(**_: Any) -> None:
    allocation.spare()
    children.forked()


@signals.worker_shutting_down.connect
def _stopping(**_: Any) -> None:
    log.info("stopping: running chunks finish, the rest goes back to the queue")
    children.stop()


def command(concurrency: int | None = None) -> list[str]:
    """The arguments of `celery worker` that suit this application, for `stenograf worker`."""
    kind = "prefork" if sys.platform.startswith("linux") else "threads"  # elsewhere processes are not forked
    pool = ["--pool", kind, "--without-gossip", "--without-mingle"]
    chosen = ["--concurrency", str(concurrency)] if concurrency else []
    return [
        "--quiet",  # its banner would stand between the lines of a log in JSON
        "worker",
        *pool,
        *chosen,
        "--hostname",
        f"{settings.queue_name}-{secrets.token_hex(2)}@%h",
        "--loglevel",
        settings.log_level,
    ]
