"""`stenograf doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import click
from rich.console import Console
from rich.text import Text

from stenograf import engines
from stenograf._version import __version__
from stenograf.cli.console import size
from stenograf.engines import cuda
from stenograf.errors import EngineMissingError, StenografError
from stenograf.models.choice import is_auto
from stenograf.runtime import Runtime, require_cluster
from stenograf.setting_sources import load
from stenograf.settings import Settings

HUB_SECONDS = 3.0
"""How long the hub may take to answer."""

USUAL_SHARE = 0.4
"""A model that is smaller than this share of what the catalog says is looked at twice; int8 files have a half."""

FREE_SPACE = 2_000_000_000
"""Bytes: less than this hardly takes one good model."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    ok: bool | None
    """None: worth knowing, but neither good nor bad."""
    text: str
    hint: str = ""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> int:
    """Tell what works on this machine: devices, models, disk, hub.

    The exit status is 1 where something is missing without which nothing can be transcribed.
    """
    findings = list(examine())
    if as_json:
        click.echo(json.dumps([asdict(item) for item in findings], ensure_ascii=False, indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for item in findings:
            mark = {True: Text("✓ ", "green"), False: Text("✗ ", "red"), None: Text("· ", "dim")}[item.ok]
            console.print(mark + Text(f"{item.topic}: ", "bold") + Text(item.text))
            if item.hint:
                console.print(Text(f"  {item.hint}", "yellow"))
    return int(any(item.ok is False for item in findings))


def examine() -> Iterator[Finding]:
    """Look at everything, in the order in which a person would ask; what cannot be looked at is a finding too."""
    yield _program()
    yield from _engines()
    settings = Settings()
    try:
        loaded = load()
    except StenografError as error:
        yield Finding("settings", False, error.message, error.hint)
    else:
        settings = loaded.settings
        for warning in loaded.warnings:
            yield Finding("settings", None, warning)
    runtime = Runtime(settings)
    yield from _runtimes()
    yield _device(settings)
    try:
        yield from _models(runtime)
    except StenografError as error:
        yield Finding("models", False, error.message, error.hint)
    yield _default_model(runtime)
    yield _disk(runtime.store.models_dir)
    yield _hub(settings)
    yield from _fleet(runtime)


def _fleet(runtime: Runtime) -> Iterator[Finding]:
    """What several machines share, where there is anything."""
    settings = runtime.settings
    looks = {
        "database": (settings.database_url, _look_at_database),
        "broker": (settings.broker, _look_at_broker),
        "storage": (settings.storage_url or settings.database_url, _look_at_storage),
    }
    for topic, (address, look) in looks.items():
        if address is None:
            continue
        try:
            yield Finding(topic, True, look(runtime))
        except StenografError as error:
            yield Finding(topic, False, error.message, error.hint)


def _look_at_database(runtime: Runtime) -> str:
    is_new = runtime.database.is_new()
    runtime.database.close()
    return f"{runtime.database.shown} answers{'; the first stenograf serve makes its tables' if is_new else ''}"


def _look_at_broker(runtime: Runtime) -> str:
    require_cluster()
    from stenograf.jobs.broker import look

    return f"{look(runtime.settings)} answers"


def _look_at_storage(runtime: Runtime) -> str:
    runtime.files.check()
    if not runtime.database.is_new():  # the first service marks the files with it
        runtime.check_files()
    return f"{runtime.files.shown} answers"


def _program() -> Finding:
    import av

    names = ("faster-whisper", "ctranslate2", "onnx-asr", "onnxruntime", "av")
    versions = ", ".join(f"{name} {_version(name)}" for name in names)
    ffmpeg = ".".join(str(part) for part in av.ffmpeg_version_info.split("-")[:1])
    return Finding(
        "program",
        None,
        f"stenograf {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores; {versions}; FFmpeg libraries {ffmpeg}",
    )


def _version(package: str) -> str:
    for name in (package, f"{package}-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "(not installed)"


def _engines() -> Iterator[Finding]:
    for name in engines.ENGINES:
        try:
            devices = engines.engine(name).devices()
        except EngineMissingError as error:  # an extra need not be there
            yield Finding(f"engine {name}", None if name in engines.EXTRAS else False, error.message, error.hint)
        except StenografError as error:
            yield Finding(f"engine {name}", False, error.message, error.hint)
        else:
            yield Finding(f"engine {name}", True, f"runs on {', '.join(devices)}")


def _runtimes() -> Iterator[Finding]:
    if engines.engine("onnx-asr").both_installed() and cuda.present():  # type: ignore[attr-defined]
        yield Finding(
            "ONNX Runtime",
            False,
            "onnxruntime and onnxruntime-gpu are both installed and share a folder: one has overwritten the other",
            "Run: pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'. "
            "See docs/gpu.md.",
        )


def _device(settings: Settings) -> Finding:
    asked = settings.device
    usable = {}
    for name in engines.ENGINES:
        with contextlib.suppress(StenografError):  # an engine that lacks is told of above
            usable[name] = engines.engine(name).devices()
    wanted = "cuda:0" if asked == "cuda" else asked
    without = [name for name, devices in usable.items() if asked != "auto" and wanted not in devices]
    if without:
        return Finding(
            "device",
            False,
            f"{asked} is set, but cannot be used by {', '.join(without)}",
            "Set STENOGRAF_DEVICE=auto, or mend the drivers: docs/gpu.md.",
        )
    best = sorted({devices[0] for devices in usable.values()}, reverse=True)
    return Finding("device", True, asked + (f": {', '.join(best)}" if asked == "auto" else ""))


def _models(runtime: Runtime) -> Iterator[Finding]:
    installed = runtime.store.installed()
    if not installed:
        yield Finding("models", None, f"none in {runtime.store.models_dir}")
    for item in installed:
        if item.problem:
            hint = f"Run: stenograf models pull {item.name}" if item.entry else "Remove the folder, or complete it."
            yield Finding(f"model {item.name}", False, item.problem, hint)
        elif unreadable := [file.name for file in (item.path, *item.path.rglob("*")) if not os.access(file, os.R_OK)]:
            text = f"{', '.join(unreadable)} in {item.path} may not be read by this user"
            yield Finding(f"model {item.name}", False, text, "Change the permissions.")
        elif item.entry is not None and item.bytes < item.entry.size * USUAL_SHARE:
            text = f"{size(item.bytes)} in {item.path}, though about {size(item.entry.size)} are usual"
            hint = f"If it was not made smaller on purpose, a part is missing: stenograf models pull {item.name}"
            yield Finding(f"model {item.name}", None, text, hint)
        else:
            yield Finding(f"model {item.name}", True, f"{size(item.bytes)}, {item.engine}, in {item.path}")


def _default_model(runtime: Runtime) -> Finding:
    name = runtime.settings.default_model
    if is_auto(name):
        return _auto(runtime)
    try:
        files = runtime.store.resolve(name, allow_path=True)
    except StenografError as error:
        known = error.code == "model_not_installed" and not runtime.settings.offline
        text = f"{name} is not here yet; it is downloaded at its first use" if known else error.message
        return Finding(
            "default model",
            None if known else False,
            text,
            f"Run: stenograf models pull {name}" if known else error.hint,
        )
    return Finding("default model", True, f"{name}, in {files.path}")


def _auto(runtime: Runtime) -> Finding:
    reader, told, hint, fine = runtime.reader, [], "", True
    for purpose, language in (("Russian", "ru"), ("other languages", None)):
        try:
            choice = reader.available.choose(language)
        except StenografError as error:
            told.append(f"nothing for {purpose}")
            hint, fine = hint or f"{error.message} {error.hint}", False
            continue
        where = "here" if reader.is_here(choice.name) else "downloaded at its first use"
        told.append(f"{choice.name} for {purpose} ({where})")
        hint = hint or choice.second_best
    return Finding("default model", (True if not hint else None) if fine else False, f"auto: {', '.join(told)}", hint)


def _disk(models_dir: Path) -> Finding:
    place = next(folder for folder in (models_dir, *models_dir.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    hint = "Free some space, or set STENOGRAF_MODELS_DIR to another disk." if free < FREE_SPACE else ""
    writable = "" if os.access(place, os.W_OK) else "; it may not be written, so nothing can be downloaded into it"
    return Finding("disk", None if hint else True, f"{size(free)} free for models in {models_dir}{writable}", hint)


def _hub(settings: Settings) -> Finding:
    address = settings.hub_endpoint or "https://huggingface.co"
    if settings.offline:
        return Finding("model hub", None, "not asked: STENOGRAF_OFFLINE is set")
    try:
        with urlopen(Request(address, method="HEAD"), timeout=HUB_SECONDS) as answer:  # noqa: S310
            status = answer.status
    except HTTPError as error:
        status = error.code  # it answered, and that was the question
    except (OSError, ValueError) as error:
        return Finding(
            "model hub",
            None,
            f"{address} is not reached ({getattr(error, 'reason', error)})",
            "Models cannot be downloaded. Set a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT), or copy a model's "
            "folder into the models folder from a machine that has it.",
        )
    return Finding("model hub", True, f"{address} answers ({status})")
