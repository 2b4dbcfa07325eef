"""What the service needs to do its work, looked at: for `/ready`."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath

from pydantic import Field, PrivateAttr
from starlette.concurrency import run_in_threadpool

from stenograf.api.schemas import Wire
from stenograf.api.service import Service
from stenograf.engines import cuda
from stenograf.errors import ModelNotInstalledError, StenografError
from stenograf.jobs.files import RESERVE
from stenograf.jobs.post import on_gpu
from stenograf.languages import language_name
from stenograf.models import catalog
from stenograf.models.choice import is_auto

CACHE_SECONDS = 1.0
"""How long an answer is good: however many ask, the service looks at itself once a second."""

ANSWER_SECONDS = 5.0
"""Who asks is answered after so long, whatever the database or the bucket does."""

_log = logging.getLogger(__name__)


class Check(Wire):
    """One thing that the service needs."""

    ok: bool
    detail: str = Field(examples=["2 processes"])
    _reason: str = PrivateAttr("")
    """What the log is told, and not just anyone."""


class Readiness:
    """Looks at what the service needs; one for an application, to be used in its event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asking = asyncio.Lock()
        self._looking: asyncio.Future[dict[str, Check]] | None = None
        self._checks: Mapping[str, Check] = {}
        self._good_until = 0.0

    async def checks(self) -> Mapping[str, Check]:
        """Each thing and how it is, at most `CACHE_SECONDS` old."""
        async with self._asking:
            if time.monotonic() < self._good_until:
                return self._checks
            # One thread at a time, however slow the database is: who is not answered in time does not start another.
            self._looking = self._looking or asyncio.ensure_future(run_in_threadpool(examine, self._service))
            done, _ = await asyncio.wait((self._looking,), timeout=ANSWER_SECONDS)
            if not done:
                self._log_failures({"answer": _silent()})
                return {"answer": _silent()}
            checks, self._looking = self._looking.result(), None
            self._log_failures(checks)
            self._good_until = time.monotonic() + CACHE_SECONDS
            return checks

    def _log_failures(self, checks: Mapping[str, Check]) -> None:
        """Say what is wrong, and what is well again; once each."""
        for name, check in checks.items():
            before = self._checks.get(name)
            if not check.ok and (before is None or before.ok):
                _log.warning("not ready: %s: %s", name, check._reason or check.detail)
            elif check.ok and before is not None and not before.ok:
                _log.info("well again: %s: %s", name, check.detail)
        self._checks = checks


def _silent() -> Check:
    return Check(ok=False, detail=f"Something that the service needs gives no answer for {ANSWER_SECONDS:g} s.")


def examine(service: Service) -> dict[str, Check]:
    """Look at everything, now. Anyone may read the details: no folder of the server is named in them."""
    checks = {"database": _database, "disk": _disk, "storage": _storage}
    if service.hints is not None:
        checks["broker"] = _broker
    if service.settings.transcribes:  # else these are matters of the workers' machines
        checks |= {"model": _model, "device": _device}
    if service.workers is not None:
        checks["workers"] = _workers
    return {name: _looked(check, service) for name, check in checks.items()}


def _looked(check: Callable[[Service], Check], service: Service) -> Check:
    try:
        return check(service)
    except (StenografError, OSError) as error:
        failed = Check(ok=False, detail="It cannot be used; the log tells why.")
        failed._reason = str(error)
        return failed


def _database(service: Service) -> Check:
    with service.database.read() as connection:
        connection.exec_driver_sql("SELECT id FROM jobs LIMIT 1").all()
    return Check(ok=True, detail="It answers.")


def _disk(service: Service) -> Check:
    folders = [service.files.folder]
    if not service.database.is_shared:
        folders.append(Path(service.database.url.database or "").parent)
    free = min(shutil.disk_usage(folder).free for folder in folders)
    return Check(ok=free >= RESERVE, detail=f"{free / 1e9:.1f} GB are free.")


def _storage(service: Service) -> Check:
    service.files.check()
    service.runtime.check_files()
    return Check(ok=True, detail="It answers.")


def _broker(service: Service) -> Check:
    """Tasks are taken in without it too, but no worker hears of them."""
    assert service.hints is not None
    if service.hints.failure is None:
        return Check(ok=True, detail="It answers.")
    failed = Check(ok=False, detail="It cannot be used just now; tasks are taken in and begin when it can.")
    failed._reason = f"{service.hints.shown}: {service.hints.failure}"
    return failed


def _workers(service: Service) -> Check:
    count = len(service.workers()) if service.workers else 0
    return Check(ok=count > 0, detail="1 process" if count == 1 else f"{count} processes")


def _model(service: Service) -> Check:
    name, shown = service.settings.default_model, shown_model(service)
    needed = {PurePath(name).name for name in service.reader.available.needed_by_default()}
    for model, code in dict(service.load_errors).items():
        if model not in needed:  # one that was to be loaded first and is not needed, such as one misspelt
            continue
        return Check(ok=False, detail=f"{model} could not be loaded ({code}).")
    if is_auto(name):
        return _auto(service)
    try:
        service.models.resolve(name, allow_path=True)
    except ModelNotInstalledError:
        if catalog.find(name) is None or service.settings.offline:
            return Check(ok=False, detail=f"{shown} is not here, and nothing is downloaded.")
        return Check(ok=True, detail=f"{shown} is downloaded at its first use.")
    except StenografError as error:
        return Check(ok=False, detail=f"{shown} cannot be used ({error.code}).")
    return Check(ok=True, detail=f"{shown} is here.")


def _auto(service: Service) -> Check:
    language = service.settings.default_language or "ru"
    choice = service.reader.available.choose(language)
    where = "is here" if service.reader.is_here(choice.name) else "is downloaded at its first use"
    return Check(ok=True, detail=f"auto: {choice.name} for {language_name(language)} {where}.")


def _device(service: Service) -> Check:
    """Models on the processor of a machine whose GPU should read them would go unnoticed for long."""
    used = sorted(set(service.devices.values()))
    if service.settings.device.startswith("cuda") and not cuda.present():
        return Check(ok=False, detail=f"{service.settings.device} is asked for, and there is no GPU that can be used.")
    if "cpu" in used and on_gpu(service.settings):
        return Check(ok=False, detail="There is a GPU, but models run on the processor: see stenograf doctor.")
    shown = ", ".join(used) if used else f"{service.settings.device}; no model is loaded yet"
    return Check(ok=True, detail=shown)


def shown_model(service: Service) -> str:
    """The default model, without the folder that it lies in."""
    return PurePath(service.settings.default_model).name
