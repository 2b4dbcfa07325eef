"""How much memory a model takes, and how much of this machine's may be taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from stenograf.engines import cuda
from stenograf.models.layout import files_of

if TYPE_CHECKING:
    from stenograf.models.found import ModelFiles

SHARE = 0.75
"""Of a machine's memory, what models may take; the rest is for the system, the recordings and the work itself."""

GPU_SHARE = 0.9
"""Of a GPU's memory."""

RUNNING = 150_000_000
"""Bytes that a running engine adds to the weights: its own code and the buffers of a 30 s chunk."""

ON_DISK = {"faster-whisper": 1.0, "onnx-asr": 1.35, "openai-whisper": 2.2}
"""Bytes of memory for a byte of weights on the disk, for models of which the catalog knows nothing: int8 weights are
about half the file of float16 and the buffers of the encoder as much again; ONNX Runtime copies and packs them;
openai-whisper's files hold float16, which becomes float32 on a processor. Seen in docs/models.md."""

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine() -> int:
    """Bytes of memory that this process may use: the machine's, or what its container is given."""
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text("ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def budget(limit_mb: int, *, processes: int = 1) -> int:
    """Bytes that the models of one process may take on a processor; `limit_mb` 0: a share of the machine's."""
    return limit_mb * 1_000_000 if limit_mb else int(machine() * SHARE / max(processes, 1))


def gpu_budget(limit_mb: int, index: int = 0) -> int | None:
    """The same on a GPU; None where the driver does not tell how much there is."""
    if limit_mb:
        return limit_mb * 1_000_000
    total = cuda.memory(index)
    return int(total * GPU_SHARE) if total else None


def needed(files: ModelFiles, *, gpu: bool = False) -> int:
    """Bytes that a model takes once it is loaded, approximately."""
    weights = sum(files_of(files.path).values())
    if gpu:  # most files hold float16, and so do GPUs; openai-whisper keeps float32 there too
        return weights * (2 if files.engine == "openai-whisper" else 1) + 2 * RUNNING
    if files.entry is not None:
        return files.entry.memory
    return int(weights * ON_DISK[files.engine]) + RUNNING
