"""How much memory a model takes, and how much of this machine's may be taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from stenograf.engines import cuda
from stenograf.models.layout import files_of

if TYPE_CHECKING:
    from stenograf.models.catalog import CatalogEntry
    from stenograf.models.found import ModelFiles

SHARE = 0.75
"""Of a machine's memory, what models may take; the rest is for the system, the recordings and the work itself."""

GPU_SHARE = 0.9
"""Of a GPU's memory."""

RUNNING = {"faster-whisper": 150_000_000, "onnx-asr": 150_000_000, "openai-whisper": 450_000_000}
"""Bytes that a running engine adds to the weights: its own code, PyTorch's being the largest, and the buffers of its
chunks."""

ON_DISK = {"faster-whisper": 1.6, "onnx-asr": 1.35, "openai-whisper": 2.2}
"""Bytes of memory for a byte of weights on the disk, for models of which the catalog knows nothing: for float16 files
of faster-whisper, which become int8, with the buffers of two windows; for float32 files of onnx-asr; for float16 files
of openai-whisper, which become float32. From `benchmarks/engines.py` (docs/benchmarks.md), on a processor."""

_CGROUPS = Path("/sys/fs/cgroup")


def machine() -> int:
    """Bytes of memory that this process may use: the machine's, or what its container is given."""
    total = int(psutil.virtual_memory().total)
    for path in _limits():
        try:
            text = path.read_text("ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def _limits() -> Iterator[Path]:
    """Files that may hold a limit: of the container, or of the systemd unit and the slices that it is in."""
    yield _CGROUPS / "memory" / "memory.limit_in_bytes"
    try:
        own = Path("/proc/self/cgroup").read_text("ascii").strip().rpartition("::")[2].lstrip("/")
    except (OSError, ValueError):
        own = ""
    folder = _CGROUPS / own
    for place in (folder, *folder.parents):
        yield place / "memory.max"
        if place == _CGROUPS:
            return


def budget(limit_mb: int, *, processes: int = 1) -> int:
    """Bytes that the models of one process may take on a processor; `limit_mb` 0: a share of the machine's."""
    return limit_mb * 1_000_000 if limit_mb else int(machine() * SHARE / max(processes, 1))


def gpu_budget(limit_mb: int, index: int = 0, *, processes: int = 1) -> int | None:
    """The same on a GPU; None where the driver does not tell how much there is."""
    if limit_mb:
        return limit_mb * 1_000_000
    total = cuda.memory(index)
    return int(total * GPU_SHARE / max(processes, 1)) if total else None


def expected(entry: CatalogEntry, *, gpu: bool = False) -> int:
    """Bytes that a model of the catalog takes once it is loaded, approximately."""
    return _on_gpu(entry.size, entry.engine) if gpu else entry.memory


def needed(files: ModelFiles, *, gpu: bool = False) -> int:
    """Bytes that a model takes once it is loaded, approximately."""
    if files.entry is not None:
        return expected(files.entry, gpu=gpu)
    weights = sum(files_of(files.path).values())
    if gpu:
        return _on_gpu(weights, files.engine)
    return int(weights * ON_DISK[files.engine]) + RUNNING[files.engine]


def _on_gpu(weights: int, engine: str) -> int:
    # Most files hold float16, and so do GPUs; openai-whisper keeps float32 there too.
    return weights * (2 if engine == "openai-whisper" else 1) + RUNNING[engine]
