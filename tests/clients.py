"""Other people's clients, unchanged: each in an environment of its own, pinned, and run as a program of its own.

`requirements/clients/NAME.txt` says what is in the environment NAME, which is made in `.cache/clients/NAME` at its
first use: that takes a network and some seconds. What cannot be made fails the test that wanted it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements" / "clients"
ENVIRONMENTS = ROOT / ".cache" / "clients"
INSTALL_SECONDS = 600
_BIN = "Scripts" if os.name == "nt" else "bin"


def client(name: str) -> Path:
    """The Python that has the client `name`; the client's own commands lie beside it."""
    requirements = REQUIREMENTS / f"{name}.txt"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    folder = ENVIRONMENTS / name
    stamp = folder / "stamp"
    python = folder / _BIN / ("python.exe" if os.name == "nt" else "python")
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=3 * INSTALL_SECONDS):
        if not stamp.is_file() or stamp.read_text("ascii") != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], "no environment", name)
            # All that they need is in the file.
            what = ["--quiet", "--require-hashes", "--no-deps", "-r", str(requirements)]
            # By uv, which is quicker; only pip knows of a mirror that pip was told of.
            uv = [sys.executable, "-m", "uv", "pip", "install", "--python", str(python)]
            if _end([*uv, *what]).returncode:
                pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install"]
                _run([*pip, "--no-compile", *what], "not installed", name)
            stamp.write_text(wanted, "ascii")
    return python


def run_client(
    name: str, script: Path, *arguments: str, environment: Mapping[str, str] | None = None, seconds: float = 120
) -> Any:
    """What a script prints as JSON when the client's Python runs it; its failure is the test's."""
    done = subprocess.run(
        [str(client(name)), str(script), *arguments],
        env={**_outside(), "NO_PROXY": "127.0.0.1,localhost", "PYTHONIOENCODING": "utf-8", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{script.name} failed under {name}:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
    return json.loads(done.stdout)


def _end(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=_outside(), stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False,
        timeout=INSTALL_SECONDS,
    )  # fmt: skip


def _run(command: list[str], what: str, name: str) -> None:
    done = _end(command)
    assert done.returncode == 0, f"{name}: {what}:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"


def _outside() -> dict[str, str]:
    """The environment without this project's settings, without what the tests set, and without anybody's keys."""
    strange = ("STENOGRAF_", "XDG_", "PYTHON", "OPENAI_", "LITELLM_", "VIRTUAL_ENV", "PYTEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(strange)}
