"""A disk that is small enough to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEGABYTES = 320
"""More than the product keeps free (`files.RESERVE`), so that it can work until the disk is filled."""


@contextmanager
def small_disk(folder: Path, megabytes: int = MEGABYTES) -> Iterator[Path | None]:
    """A folder on a disk of its own; None where this user may mount none."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
