"""`stenograf worker`: workers alone, on the database that a service uses, on this machine or another.

Where a message broker is set, they are Celery's; else they look into the database by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import signal
import sys

import click

from stenograf import logs
from stenograf.cli.patience import opened
from stenograf.errors import SettingInvalidError
from stenograf.jobs.dispatch import Event
from stenograf.metrics import Metrics
from stenograf.runtime import Runtime, require_cluster
from stenograf.setting_sources import load

log = logging.getLogger("stenograf.worker")

SIGNAL_SECONDS = 0.5
"""How late a signal may be heard, at most."""


@click.command("worker")
@click.option("--workers", type=click.IntRange(0, 64), help="Processes that transcribe; 0: by the machine.")
@click.option("--slots", type=click.IntRange(1, 256), help="Recordings worked on at once, over all processes.")
@click.option("--metrics-port", type=click.IntRange(1, 65_535), help="Give Prometheus metrics on 127.0.0.1 here.")
def command(workers: int | None, slots: int | None, metrics_port: int | None) -> None:
    """Run workers without an API, on the same database as a `stenograf serve`; end them with Ctrl-C or SIGTERM.

    With a message broker (STENOGRAF_BROKER_URL) this is `celery -A stenograf.celery_app worker`, and each of --workers
    reads one recording at a time.
    """
    loaded = load(overrides={"workers": workers, "slots": slots})
    settings = loaded.settings
    if loaded.origins["log_level"].kind == "default":
        settings = dataclasses.replace(settings, log_level="info")
    logs.setup(
        level=settings.log_level, json=settings.log_format == "json", file=settings.log_path, process="supervisor"
    )
    for warning in loaded.warnings:
        log.warning("%s", warning)
    runtime = Runtime(settings)
    if settings.broker is not None:
        sys.exit(_by_celery(runtime, workers, metrics_port))
    opened(runtime)
    metrics = Metrics(counts=runtime.jobs.counts)
    crew = runtime.crew(hinted=False, on_event=lambda event: _heard(metrics, event))
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()  # unlike an Event it may be told by a handler at any moment
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: ended.put(number))
    if metrics_port:
        from prometheus_client import start_http_server

        try:
            start_http_server(metrics_port, addr="127.0.0.1", registry=metrics.registry)
        except OSError as error:
            raise SettingInvalidError(
                f"127.0.0.1 port {metrics_port} cannot be used for metrics: {error.strerror}.",
                "Choose another --metrics-port.",
            ) from error
    crew.start()
    while True:
        with contextlib.suppress(queue.Empty):
            # Python calls no handler for a signal that comes just before it waits, until it has waited.
            ended.get(timeout=SIGNAL_SECONDS)
            break
    log.info("stopping: running chunks finish, the rest goes back to the queue")
    crew.stop()


def _by_celery(runtime: Runtime, workers: int | None, metrics_port: int | None) -> int:
    """Run Celery's worker in this process until it ends; its exit status."""
    if metrics_port:
        raise SettingInvalidError(
            "With a message broker the workers are Celery's, which give no metrics of their own.",
            "Leave --metrics-port out: /metrics of the service counts all tasks.",
        )
    require_cluster()
    from stenograf.jobs.broker import check_url

    check_url(runtime.settings)
    runtime.expect_service()
    opened(runtime)
    runtime.database.close()  # the processes of the pool must not share a connection
    from celery.bin.celery import celery as program

    from stenograf import celery_app

    # Not `worker_main`, which forgets the status.
    program.params[0].default = celery_app.app
    return int(program.main(args=celery_app.command(workers), standalone_mode=False) or 0)


def _heard(metrics: Metrics, event: Event) -> None:
    if event["event"] not in ("job", "model_failed"):  # these are for an API, and there is none here
        metrics.observe(event)
