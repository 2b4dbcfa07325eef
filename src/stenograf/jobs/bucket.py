"""Recordings in an object store that speaks S3: Amazon's, or any other.

    <folder>/audio/<id>                      whole, and (soon) named by a job
    <folder>/uploads/<id>/<start>-<end>      a stretch of a file that comes in pieces

An object is there whole or not at all, so nothing is moved. What is under way shows only among the store's unfinished
uploads in parts. `sweep` removes those too, and whatever nobody names.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stenograf.errors import FileMissingError, StorageError
from stenograf.jobs.bucket_client import PART, Client
from stenograf.jobs.bucket_writing import BucketIncoming, BucketPiece, send
from stenograf.jobs.copies import Copies
from stenograf.jobs.files import MARK, ORPHAN_SECONDS, Stored, expect_room, missing
from stenograf.settings import Settings

if TYPE_CHECKING:
    from obstore import ObjectMeta

READ = 4 * 1024 * 1024
"""Bytes that are asked for at once. Each is a request of its own: none lasts long, and a broken one is repeated."""

UNFINISHED_AGES = 24
"""An unfinished upload in parts is removed at so many times the age of other files.

Its age counts from its beginning, and a recording may come in over a slow connection for hours.
"""

log = logging.getLogger(__name__)


class BucketFiles:
    """A `FileStore` in a bucket."""

    def __init__(self, settings: Settings, *, max_bytes: int = 0) -> None:
        """Asks the object store for nothing yet. Raises `SettingInvalidError` where obstore is not installed."""
        self.max_bytes = max_bytes
        self._client = Client(settings)
        self._copies = Copies(settings.data_dir / "work")
        self._is_told = False
        self._mark: str | None = None

    @property
    def shown(self) -> str:
        return self._client.shown

    @property
    def folder(self) -> Path:
        return self._copies.folder

    def check(self) -> None:
        self._client.check()

    def create(self) -> BucketIncoming:
        name = uuid.uuid4().hex
        return BucketIncoming(self._client, name, _place(name), self.max_bytes)

    def expect_room(self, size: int = 0) -> None:
        """An object store has no end."""

    def belongs_to(self, mark: str, *, claim: bool = False) -> bool:
        if self._mark is None:
            self._mark = self._client.read_small(MARK)
        if self._mark is None and claim:
            self._client.put_new(MARK, mark.encode())
            self._mark = self._client.read_small(MARK)
        return self._mark == mark

    def expect_room_to_read(self) -> None:
        expect_room(self._copies.folder)

    def piece(self, name: str, offset: int, most: int, algorithm: str | None = None) -> BucketPiece:
        return BucketPiece(self._client, self._copies, _pieces(name), offset, most, algorithm)

    def received(self, name: str) -> int:
        found = self._client.head(_place(name))
        return found["size"] if found else _reach(self._parts(name))[0]

    def admit(self, name: str) -> bool:
        place = _place(name)
        if self._client.head(place) is None:
            parts = self._parts(name)
            size, whole = _reach(parts)
            if not parts or not whole:
                return self._client.head(place) is not None
            try:
                if size <= PART:
                    self._client.put(place, b"".join(self._joined(name, parts)))
                else:
                    send(self._client, place, self._joined(name, parts), size)
            except FileMissingError:  # another process was faster, or it was removed
                return self._client.head(place) is not None
        self._client.delete(*(_part(name, start, end) for start, end in self._parts(name)))
        return True

    def look(self, name: str) -> Stored:
        found = self._client.head(_place(name))
        if found is None:
            self._client.check()  # an answer to HEAD does not tell whether there is a bucket at all
            raise missing()
        return Stored(found["size"], found["last_modified"].timestamp(), (found["e_tag"] or "").strip('"'))

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        yield from self._blocks(_place(name), start, self.look(name).size if end is None else end)

    @contextlib.contextmanager
    def local(self, name: str, headway: Callable[[], None] = lambda: None) -> Iterator[Path]:
        size = self.look(name).size
        with self._copies.of(self._blocks(_place(name), 0, size), size, headway) as path:
            yield path

    def link(self, name: str, disposition: str, media_type: str, seconds: float) -> str | None:
        return self._client.link(_place(name), disposition, media_type, seconds)

    def remove(self, name: str | None) -> None:
        if name:
            parts = (_part(name, start, end) for start, end in self._parts(name))
            self._client.delete(_place(name), *parts)

    def sweep(self, named: Callable[[], Iterable[str]], *, age: float = ORPHAN_SECONDS) -> int:
        self._copies.sweep()
        limit = time.time() - age
        old = [
            found["path"]
            for folder in ("audio", "uploads")
            for found in self._client.list(folder)
            if found["last_modified"].timestamp() < limit
        ]
        kept = set(named()) if old else set()
        gone = [path for path in old if path.split("/")[1] not in kept]
        self._client.delete(*gone)
        return len(gone) + self._give_up_unfinished(time.time() - age * UNFINISHED_AGES)

    def _give_up_unfinished(self, limit: float) -> int:
        if self._client.keys is None:
            if not self._is_told:
                self._is_told = True
                log.warning(
                    "uploads that broke off cannot be removed from %s without STENOGRAF_S3_ACCESS_KEY: give the bucket "
                    "a lifecycle rule with AbortIncompleteMultipartUpload",
                    self.shown,
                )
            return 0
        return self._client.give_up_unfinished("audio", limit)

    def _parts(self, name: str) -> list[tuple[int, int]]:
        """The stretches that are here of a file that comes in pieces, in their order."""
        return sorted(_stretch(found) for found in self._client.list(_pieces(name)))

    def _joined(self, name: str, parts: list[tuple[int, int]]) -> Iterator[bytes]:
        at = 0
        for start, end in parts:
            if end > at:
                yield from self._blocks(_part(name, start, end), at - start, end - start)
                at = end

    def _blocks(self, path: str, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            block = self._client.get(path, start, min(end, start + READ))
            if not block:
                raise StorageError(f"{self.shown} has less of a file than it says.", "Try again.")
            start += len(block)
            yield block


def _place(name: str) -> str:
    return f"audio/{name}"


def _pieces(name: str) -> str:
    return f"uploads/{name}"


def _part(name: str, start: int, end: int) -> str:
    return f"{_pieces(name)}/{start}-{end}"


def _stretch(found: ObjectMeta) -> tuple[int, int]:
    start, _, end = found["path"].rpartition("/")[2].partition("-")
    return int(start), int(end)


def _reach(parts: list[tuple[int, int]]) -> tuple[int, bool]:
    """How far these stretches go from the beginning without a hole, and whether that is all of them."""
    at = 0
    for start, end in parts:
        if start > at:
            return at, False
        at = max(at, end)
    return at, True
