"""`stenograf serve`: the whole service in one command."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING

import click

from stenograf import logs
from stenograf.cli.patience import opened
from stenograf.errors import ModelNotInstalledError, SettingInvalidError, StorageError
from stenograf.models.choice import is_auto
from stenograf.setting_sources import LoadedSettings, load
from stenograf.settings import Settings

if TYPE_CHECKING:
    from types import FrameType

    from stenograf.runtime import Runtime

log = logging.getLogger("stenograf.serve")

SHUTDOWN_SECONDS = 5
"""How long open requests may take to end when the service stops."""


@click.command("serve")
@click.option("--host", help="The address to listen on; 0.0.0.0: all of this machine's. Default: 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port to listen on; 0: a free one. Default: 8000.")
@click.option("-m", "--model", help="The model to use where a request names none.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
@click.option("--compute-type", metavar="TYPE", help="auto, int8, float16, float32, ...")
@click.option("--workers", type=click.IntRange(0, 64), help="Processes that transcribe; 0: by the machine.")
@click.option("--slots", type=click.IntRange(1, 256), help="Recordings worked on at once, over all processes.")
@click.option("--no-workers", is_flag=True, help="Transcribe nothing here: workers on other machines do.")
@click.option("--no-auth", is_flag=True, help="Ask nobody for a key. Whoever reaches the port may do anything.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="How to log.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    host: str | None,
    port: int | None,
    model: str | None,
    device: str | None,
    compute_type: str | None,
    workers: int | None,
    slots: int | None,
    no_workers: bool,
    no_auth: bool,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Run the service: the REST API, OpenAI's audio API, and the workers, on one machine without other servers.

    SIGTERM and Ctrl-C end it: running chunks finish, the rest goes back to the queue and goes on at the next start.
    """
    loaded = load(
        overrides={
            "host": host,
            "port": port,
            "default_model": model,
            "device": device,
            "compute_type": compute_type,
            "workers": workers,
            "slots": slots,
            "serve_workers": "no" if no_workers else None,
            "auth": "false" if no_auth else None,
            "log_format": log_format,
            "log_level": "debug" if verbose else None,
        }
    )
    run(_with_info(loaded), loaded.warnings)


def run(settings: Settings, warnings: tuple[str, ...] = ()) -> None:
    """Serve until told to stop."""
    import uvicorn

    from stenograf.api.app import create_app
    from stenograf.api.patience import PatientProtocol
    from stenograf.api.service import Service
    from stenograf.jobs.post import posts
    from stenograf.keys import check_exposure
    from stenograf.runtime import Runtime

    logs.setup(level=settings.log_level, json=settings.log_format == "json", file=settings.log_path, process="api")
    for warning in warnings:
        log.warning("%s", warning)
    _take_all_descriptors()
    runtime = Runtime(settings, processes=len(posts(settings, hinted=True)))
    hints = runtime.hints  # a wrong address ends the start, and not the first request
    listening = _listen(settings)
    opened(runtime)
    try:
        runtime.check_files(claim=True)
    except StorageError as error:  # it may come back; until then /ready tells
        log.error("%s", error)
    check_exposure(settings, runtime.keys)
    if settings.transcribes:
        _expect_model(runtime)
    service = Service(runtime)
    crew = runtime.crew(hinted=True, on_event=service.heard)
    service.wake = crew.wake
    service.workers = crew.processes if settings.transcribes else None
    service.hints = hints
    service.promised = crew.promised

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if not self.should_exit:
                log.info("stopping: running chunks finish, the rest goes back to the queue")
                service.watcher.stopping()  # who waits for a result would hold the stop up
            super().handle_exit(sig, frame)

    server = Server(
        uvicorn.Config(
            create_app(service),
            http=PatientProtocol,
            log_config=None,
            access_log=settings.log_level == "debug",
            proxy_headers=False,  # api/security.py knows which proxies to believe
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            timeout_keep_alive=30,
            lifespan="on",
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal once more when it is done; by then the workers have yet to stop.
        signal.signal(number, lambda *_: None)
    crew.start()
    address = _address(settings, listening)
    log.info("Stenograf listens on %s, its API is described at %s/docs", address, address)
    try:
        server.run(sockets=[listening])
    finally:
        crew.stop()
        service.close()


def _expect_model(runtime: Runtime) -> None:
    """A default model that nobody can have is a mistake of whoever starts the service, and not of its first client."""
    name = runtime.settings.default_model
    try:
        if is_auto(name):
            name = runtime.reader.available.choose(runtime.settings.default_language or "ru").name
        runtime.store.resolve(name, allow_path=True)
    except ModelNotInstalledError as error:
        if runtime.settings.offline or is_auto(name):
            log.warning("the default model is not here: %s", error)
        else:
            log.warning("the default model %s is not here: it is downloaded at its first use, or now by "
                        "stenograf models pull %s", name, name)  # fmt: skip


def _with_info(loaded: LoadedSettings) -> Settings:
    """A service that says nothing at all would be hard to look after."""
    if loaded.origins["log_level"].kind == "default":
        return dataclasses.replace(loaded.settings, log_level="info")
    return loaded.settings


def _listen(settings: Settings) -> socket.socket:
    """The socket, bound before anything is started: a port that is taken is the commonest mistake."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise _cannot_listen(settings, error) from error
    listening.set_inheritable(False)
    return listening


def _cannot_listen(settings: Settings, error: OSError) -> SettingInvalidError:
    where = f"{settings.host} port {settings.port}"
    if error.errno == errno.EADDRINUSE:
        return SettingInvalidError(f"{where} is used by another program.", "Choose another with --port.")
    if error.errno == errno.EACCES:
        return SettingInvalidError(f"{where} may not be used by this user.", "Choose a port above 1023 with --port.")
    return SettingInvalidError(f"{where} cannot be listened on: {error.strerror or error}.", "Choose another --host.")


def _take_all_descriptors() -> None:
    """Each connection and each file takes a descriptor; systems allow 1024 at first, and many more if asked."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _address(settings: Settings, listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return settings.public_url or f"http://{shown}:{port}"
