"""Careful clients: they repeat what got no answer, under the key of the first try."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2

from chaos.recordings import Recording, without_timings

TIMEOUT = httpx2.Timeout(1.5, connect=1.0)
"""Shorter than a freeze, so that there are answers that come too late."""

GIVE_UP_SECONDS = 90.0
PAUSE = 0.3
"""Seconds before the next try, whatever the service asks for: this is a test of the service."""

AT_ONCE = 4
"""So many clients there are."""

AHEAD = 24
"""They send no more than so many before the first of them is done: the sending is to last as long as the storm."""


@dataclass(frozen=True)
class Sent:
    """A recording that was answered with 202."""

    recording: Recording
    filename: str
    task: str
    tries: int
    replayed: bool
    """Whether an earlier try had been taken, and its answer was lost."""


class Client:
    """One client, for one thread; each of its tries goes to any of the replicas."""

    def __init__(self, *urls: str) -> None:
        self._urls = urls
        self._client = httpx2.Client(trust_env=False, timeout=TIMEOUT)
        self.tries = 0
        """Of the latest request."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def submit(self, recording: Recording, filename: str, **options: str) -> Sent:
        """Send a recording, once."""
        answer = self._insist(
            "POST",
            "/api/v1/transcribe",
            headers={"Idempotency-Key": f"chaos {filename}"},
            files={"file": (filename, recording.path.read_bytes())},
            data={**recording.options, **options},
        )
        assert answer.status_code == 202, answer.text
        replayed = answer.headers.get("Idempotency-Replayed") == "true"
        return Sent(recording, filename, answer.json()["task_id"], self.tries, replayed)

    def look(self, task: str) -> dict[str, Any]:
        """The task as it is now."""
        answer = self._insist("GET", f"/api/v1/tasks/{task}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def result(self, task: str) -> dict[str, Any]:
        """The transcript of a task that is done, without `timings`."""
        answer = self._insist("GET", f"/api/v1/tasks/{task}/result")
        assert answer.status_code == 200, answer.text
        return without_timings(answer.json())

    def _insist(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        self.tries = 0
        while True:
            self.tries += 1
            reason = ""
            try:
                url = random.choice(self._urls)
                answer = self._client.request(method, url + path, **arguments)
                # 503: stopping, or what it needs is away or held by a process that is frozen; 409: an earlier try is
                # under way.
                if answer.status_code not in (409, 503):
                    return answer
                reason = answer.text
            except httpx2.TransportError as error:
                reason = repr(error)
            assert time.monotonic() < deadline, f"{method} {path} came to nothing: {reason}"
            time.sleep(PAUSE)


class Clients:
    """Several clients that share a pile of recordings."""

    def __init__(
        self, urls: Sequence[str], recordings: Sequence[Recording], *, done: Callable[[], int], **options: str
    ) -> None:
        """`urls` are those of the replicas. `done` tells how many jobs are done; `options` go with each recording."""
        self.sent: list[Sent] = []
        """The order is that of the answers."""
        self.seen: dict[str, dict[str, Any]] = {}
        """Task -> its transcript, as it was when a client first saw the task done."""
        self._urls = urls
        self._pile = list(enumerate(recordings))[::-1]
        self._done = done
        self._options = options
        self._failures: list[BaseException] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(AT_ONCE)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until the pile is sent; raises what went wrong."""
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _run(self) -> None:
        own: list[Sent] = []
        try:
            with Client(*self._urls) as client:
                while (following := self._take()) is not None:
                    number, recording = following
                    own.append(client.submit(recording, f"{number:04}-{recording.path.name}", **self._options))
                    with self._lock:
                        self.sent.append(own[-1])
                    self._look_back(client, own)
        except BaseException as error:
            self._failures.append(error)

    def _take(self) -> tuple[int, Recording] | None:
        with self._lock:  # held while it waits: the others' turn comes after
            while self._pile and not self._failures:
                if len(self.sent) - self._done() < AHEAD:
                    return self._pile.pop()
                time.sleep(0.2)
        return None

    def _look_back(self, client: Client, own: list[Sent]) -> None:
        """Look at one that was sent before; one that is done must stay so, with the same result."""
        earlier = own[len(own) // 2].task
        if client.look(earlier)["status"] == "done":
            result = client.result(earlier)
            with self._lock:
                first = self.seen.setdefault(earlier, result)
            assert first == result
