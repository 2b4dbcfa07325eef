"""`stenograf`, with points at which it kills itself: `python -m fleet.failpoints serve`, or `worker`.

A point is armed by a file of its name in the folder FAILPOINTS. The process that reaches it first takes the file away
and is dead at once, as after SIGKILL; the process that is started in its stead lives. There are points before and after
each call of the methods below (`JobStore.add:begin`, `:end`), before and after each COMMIT within them (`:commit`,
`:committed`), after each part of what streams to the object store or from it, and after the last of them
(`Client.put_stream:part`, `:end`).
"""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil


def arm(folder: Path, point: str, *, after: int = 0, node: bool = False) -> None:
    """Let the next process that reaches `point`, after it has passed it so often, be killed there.

    With `node` its parent is killed with it.
    """
    written = folder / f"{point}.new"
    written.write_text(json.dumps({"after": after, "node": node}))
    written.rename(folder / point)


def is_armed(folder: Path, point: str) -> bool:
    """Whether nobody has come by yet."""
    return (folder / point).exists()


def _patched(folder: Path) -> None:
    """Put the points in."""
    from sqlalchemy.engine import Connection

    from stenograf.jobs.bucket import BucketFiles
    from stenograf.jobs.bucket_client import PART, Client
    from stenograf.jobs.hints import Hints
    from stenograf.jobs.lease import Leases
    from stenograf.jobs.store import JobStore
    from stenograf.jobs.uploads import Uploads
    from stenograf.jobs.webhooks import Webhooks

    watched: dict[type, tuple[str, ...]] = {
        BucketFiles: ("admit",),
        Client: ("delete",),
        Hints: ("_send",),
        JobStore: ("add", "cancel", "remove", "remove_expired"),
        Leases: ("claim", "append", "finish", "reap"),
        Uploads: ("finish",),
        Webhooks: ("_mark",),
    }
    passed: Counter[str] = Counter()
    within = threading.local()

    def reach(point: str) -> None:
        try:
            told = json.loads((folder / point).read_text())
            passed[point] += 1
            if passed[point] <= told["after"]:
                return
            (folder / point).unlink()
        except FileNotFoundError:
            return
        if told["node"]:
            psutil.Process().parent().kill()
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(owner: type, name: str) -> None:
        method = getattr(owner, name)
        point = f"{owner.__name__}.{name}"

        @functools.wraps(method)
        def reaching(*arguments: Any, **options: Any) -> Any:
            reach(f"{point}:begin")
            outer = getattr(within, "points", ())
            within.points = (*outer, point)
            try:
                found = method(*arguments, **options)
            finally:
                within.points = outer
            reach(f"{point}:end")
            return found

        setattr(owner, name, reaching)

    def blocks(point: str, passing: Iterator[bytes]) -> Iterator[bytes]:
        sent = 0
        for block in passing:
            yield block
            for _ in range(sent // PART, (sent := sent + len(block)) // PART):
                reach(f"{point}:part")
        reach(f"{point}:end")

    def commits(statement: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(statement)
        def reaching(connection: Connection, text: str, *more: Any, **options: Any) -> Any:
            points = getattr(within, "points", ()) if text == "COMMIT" else ()
            for point in points:
                reach(f"{point}:commit")
            found = statement(connection, text, *more, **options)
            for point in points:
                reach(f"{point}:committed")
            return found

        return reaching

    for owner, names in watched.items():
        for name in names:
            watch(owner, name)
    sending, joining = Client.put_stream, BucketFiles._joined
    patches: list[tuple[type, str, Any]] = [
        (Connection, "exec_driver_sql", commits(Connection.exec_driver_sql)),
        (
            Client,
            "put_stream",
            lambda self, path, taken, size: sending(self, path, blocks("Client.put_stream", taken), size),
        ),
        (
            BucketFiles,
            "_joined",
            lambda self, name, parts: blocks("BucketFiles._joined", joining(self, name, parts)),
        ),
    ]
    for owner, name, patch in patches:
        setattr(owner, name, patch)


if __name__ == "__main__":
    from stenograf.cli import main

    _patched(Path(os.environ["FAILPOINTS"]))
    main()
