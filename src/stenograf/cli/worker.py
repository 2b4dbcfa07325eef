"""`stenograf worker`: workers alone, on the database that a service of this machine uses."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading

import click

from stenograf import logs
from stenograf.errors import SettingInvalidError
from stenograf.jobs.dispatch import Event
from stenograf.metrics import Metrics
from stenograf.runtime import Runtime
from stenograf.setting_sources import load

log = logging.getLogger("stenograf.worker")


@click.command("worker")
@click.option("--workers", type=click.IntRange(0, 64), help="Processes that transcribe; 0: by the machine.")
@click.option("--slots", type=click.IntRange(1, 256), help="Recordings worked on at once, over all processes.")
@click.option("--metrics-port", type=click.IntRange(1, 65_535), help="Give Prometheus metrics on 127.0.0.1 here.")
def command(workers: int | None, slots: int | None, metrics_port: int | None) -> None:
    """Run workers without an API, on the same database as a `stenograf serve`; end them with Ctrl-C or SIGTERM."""
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
    runtime.database.migrate()
    metrics = Metrics(counts=runtime.jobs.counts)
    crew = runtime.crew(hinted=False, on_event=lambda event: _heard(metrics, event))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
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
    ended.wait()
    log.info("stopping: running chunks finish, the rest goes back to the queue")
    crew.stop()


def _heard(metrics: Metrics, event: Event) -> None:
    if event["event"] not in ("job", "model_failed"):  # these are for an API, and there is none here
        metrics.observe(event)
