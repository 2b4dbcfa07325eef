"""The hashes of files that other programs brought: each is read once, and known as long as the file stays as it is."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from stenograf.models.download import OnBytes, digest_of
from stenograf.models.layout import read_json

if TYPE_CHECKING:
    from pathlib import Path

NAME = ".hashes.json"
"""The file in the models folder where they are kept: path -> size, time of the last change in nanoseconds, sha256."""


class Digests:
    """Remembers hashes in the models folder; where that cannot be written, as long as the object lives."""

    def __init__(self, models_dir: Path) -> None:
        self._file = models_dir / NAME
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}

    def sha256(self, path: Path, on_bytes: OnBytes | None = None) -> str:
        """A file's hash; it is read if it is new or was changed since, by its length and its time."""
        facts = path.stat()
        state = [facts.st_size, facts.st_mtime_ns]
        with self._lock:
            known = self._known.get(str(path)) or read_json(self._file).get(str(path))
        if isinstance(known, list) and known[:2] == state and len(known) == 3:
            return str(known[2])
        digest = digest_of(path, like="0" * 64, on_bytes=on_bytes)
        with self._lock:
            self._known[str(path)] = [*state, digest]
            self._keep()
        return digest

    def _keep(self) -> None:
        unfinished = self._file.with_name(f"{NAME}.{os.getpid()}")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # Of two processes that write at once one loses a line, and reads that file once more.
            unfinished.write_text(json.dumps(read_json(self._file) | self._known, indent=2) + "\n", encoding="utf-8")
            unfinished.replace(self._file)
