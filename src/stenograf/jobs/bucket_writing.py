"""Recordings on their way into a bucket: whole ones, and those that come in pieces."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Full, Queue
from typing import IO

from stenograf.errors import StorageError
from stenograf.jobs.bucket_client import PART, Client
from stenograf.jobs.copies import Copies
from stenograf.jobs.files import beyond, disk_errors, too_large

AHEAD = 4
"""Blocks that a client may be ahead of what was sent on."""

log = logging.getLogger(__name__)


class _GivenUpError(Exception):
    """Nobody wants the object any more."""


class BucketIncoming:
    """An `Incoming`. A small one goes out with one request, a larger one part by part while it comes in."""

    def __init__(self, client: Client, name: str, path: str, max_bytes: int) -> None:
        self._client = client
        self._name = name
        self._path = path
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._pending = bytearray()
        self._stream: _Stream | None = None
        self._may_be_there = self._is_aborted = False
        self.size = 0

    def write(self, data: bytes) -> None:
        if self._max_bytes and self.size + len(data) > self._max_bytes:
            raise too_large(self._max_bytes)
        self._hash.update(data)
        self.size += len(data)
        if self._stream is not None:
            self._stream.send(data)
            return
        self._pending += data
        if len(self._pending) > PART:
            self._stream = _Stream(lambda blocks: self._client.put_stream(self._path, blocks, self._max_bytes))
            if self._is_aborted:  # a request that was broken off left this thread behind
                self._stream.give_up()
            block, self._pending = bytes(self._pending), bytearray()
            self._stream.send(block)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def commit(self) -> str:
        self._may_be_there = True
        if self._stream is not None:
            self._stream.end()
        else:
            self._client.put(self._path, bytes(self._pending))
        return self._name

    def abort(self) -> None:
        self._is_aborted = True
        # What is under way is only told to stop: a thread that still sends must not hold the caller up.
        if self._stream is not None:
            self._stream.give_up()
        if self._may_be_there:
            try:
                self._client.delete(self._path)
            except StorageError as error:
                log.warning("a recording that nobody needs stays until the sweep finds it: %s", error)


class _Stream:
    """Blocks that are handed to a thread, which sends them."""

    def __init__(self, put: Callable[[Iterator[bytes]], None]) -> None:
        self._put = put
        self._queue: Queue[bytes | None] = Queue(AHEAD)
        self._is_given_up = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="to the bucket", daemon=True)
        self._thread.start()

    def send(self, block: bytes | None) -> None:
        """Hand a block over, None for the end; waits while too many are ahead. Raises what sending raised."""
        while self._thread.is_alive():
            try:
                self._queue.put(block, timeout=0.2)
            except Full:
                continue
            return
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """No more blocks come: once this returns, the object is there. Raises what sending raised."""
        self.send(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Send nothing more, and leave no object; returns at once."""
        self._is_given_up = True
        with contextlib.suppress(Full):  # then the thread is not waiting for a block
            self._queue.put_nowait(None)

    def _blocks(self) -> Iterator[bytes]:
        while True:
            block = self._queue.get()
            if self._is_given_up:
                raise _GivenUpError
            if block is None:
                return
            yield block

    def _run(self) -> None:
        try:
            self._put(self._blocks())
        except _GivenUpError as error:
            self._error = error
        except BaseException as error:
            self._error = error
            log.debug("sending ended", exc_info=True)


def send(client: Client, path: str, blocks: Iterable[bytes], size: int) -> None:
    """Write an object of `size` bytes, a few parts at a time; `blocks` may come from the same store.

    What they raise comes out of this, and nothing stays behind.
    """
    stream = _Stream(lambda taken: client.put_stream(path, taken, size))
    try:
        for block in blocks:
            stream.send(block)
    except BaseException:
        stream.give_up()
        raise
    stream.end()


class BucketPiece:
    """A `Piece`.

    It becomes objects of `PART` bytes at most, named by where they begin and end in the file. Two processes that write
    the same stretch, as one of them has not noticed yet that its client is gone, do each other no harm: they write the
    same bytes, and no object takes the place of a longer one. A piece that is to be held against a checksum is kept on
    this machine until it has passed.
    """

    def __init__(
        self, client: Client, copies: Copies, folder: str, offset: int, most: int, algorithm: str | None
    ) -> None:
        self._client = client
        self._copies = copies
        self._folder = folder
        self._at = self._sent = offset
        self._most = most
        self._hash = hashlib.new(algorithm, usedforsecurity=False) if algorithm else None
        self._pending = bytearray()
        self._aside: IO[bytes] | None = copies.nameless() if algorithm else None
        self._lock = threading.Lock()  # a request that is broken off may leave a thread behind that still writes
        self._is_closed = False

    def write(self, data: bytes) -> None:
        if self._at + len(data) > self._most:
            raise beyond(self._most)
        with self._held():
            if self._is_closed:
                return
            self._at += len(data)
            if self._hash is not None and self._aside is not None:
                self._hash.update(data)
                with disk_errors(self._copies.folder):
                    self._aside.write(data)
            else:
                self._take(data)

    def end(self, digest: bytes | None = None) -> int | None:
        with self._held():
            if self._hash is not None and self._aside is not None:
                if not hmac.compare_digest(self._hash.digest(), digest or b""):
                    return None
                self._aside.seek(0)
                while block := self._aside.read(PART):
                    self._take(block)
            self._send()
            return self._at

    def break_off(self) -> None:
        if self._hash is None:
            self.end()
        self.close()

    def close(self) -> None:
        self._is_closed = True
        if self._lock.acquire(blocking=False):  # whoever holds it may be waiting for the network, and closes it then
            try:
                self._drop()
            finally:
                self._lock.release()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            finally:
                if self._is_closed:
                    self._drop()

    def _drop(self) -> None:
        if self._aside is not None:
            self._aside.close()

    def _take(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) >= PART and not self._is_closed:
            self._send()

    def _send(self) -> None:
        if self._pending and not self._is_closed:
            block = bytes(self._pending[:PART])
            self._client.put(f"{self._folder}/{self._sent}-{self._sent + len(block)}", block)
            del self._pending[: len(block)]
            self._sent += len(block)
