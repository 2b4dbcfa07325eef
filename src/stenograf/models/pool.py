"""The models that one process holds in memory, least recently used first to go.

A model in use is never closed. Several that ask for the same one at once wait for a single load. A model for which
there is no room waits until others are not used any more, up to a deadline; one that can never fit fails at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from stenograf.errors import ModelTooLargeError, NoRoomError

PATIENCE_SECONDS = 300.0
"""How long a model waits for room."""

LOOK_SECONDS = 0.5
"""How often who waits is asked whether to go on."""


class Closable(Protocol):
    """What a pool holds."""

    def close(self) -> None:
        """Give its memory back."""
        ...


T = TypeVar("T", bound=Closable)


@dataclass(frozen=True, slots=True)
class Held:
    """A model in memory."""

    name: str
    size: int
    """Bytes, approximately."""
    users: int


@dataclass
class _Place(Generic[T]):
    loading: threading.Lock = field(default_factory=threading.Lock)
    model: T | None = None
    users: int = 0
    size: int = 0
    """Bytes that are taken, or kept for it while it is loaded."""
    room: bool = False
    """Whether it counts: it is loaded, or being loaded."""
    used: float = 0.0
    """When it was last let go of, by the clock of `time.monotonic`."""


class ModelPool(Generic[T]):
    """Loaded models by name; to be used by many threads."""

    def __init__(
        self,
        load: Callable[[str], T],
        *,
        size_of: Callable[[str], int] = lambda _name: 0,
        max_models: int = 1,
        max_bytes: int | None = None,
        patience: float = PATIENCE_SECONDS,
        on_evict: Callable[[str, str], None] = lambda _name, _reason: None,
    ) -> None:
        """`load` is called outside the pool's lock, once at a time for a name.

        `size_of` tells the bytes that a model will take; all together take at most `max_bytes`. `on_evict` is told of
        each model that is closed, and why: `room`, `idle` or `closed`.
        """
        self._load = load
        self._size_of = size_of
        self._max = max_models
        self._max_bytes = max_bytes
        self._patience = patience
        self._on_evict = on_evict
        self._changed = threading.Condition()
        self._places: dict[str, _Place[T]] = {}  # in the order of their last use

    @contextmanager
    def use(
        self, name: str, headway: Callable[[], None] = lambda: None, *, patience: float | None = None
    ) -> Iterator[T]:
        """The model of that name, loaded if need be, kept at least until the end of the `with`.

        `headway` is called again and again while it waits for room, `patience` seconds at most; what it raises ends
        the waiting. Raises `ModelTooLargeError`, `NoRoomError`, and what loading raises; the next to ask tries again.
        """
        deadline = time.monotonic() + (self._patience if patience is None else patience)
        place = self._enter(name)
        try:
            while not place.loading.acquire(timeout=LOOK_SECONDS):
                headway()
            try:
                if place.model is None:
                    self._make_room(name, place, headway, deadline)
                    place.model = self._loaded(name, place)
            finally:
                place.loading.release()
            yield place.model
        finally:
            self._leave(name, place)

    def loaded(self) -> list[Held]:
        """What is in memory, the latest used last."""
        with self._changed:
            return [
                Held(name, place.size, place.users) for name, place in self._places.items() if place.model is not None
            ]

    def close_idle(self, seconds: float) -> list[str]:
        """Close what nobody has used for so long; returns the names."""
        latest = time.monotonic() - seconds
        return self._close("idle", lambda place: place.used <= latest)

    def close(self) -> None:
        """Close what nobody uses."""
        self._close("closed", lambda _place: True)

    def _enter(self, name: str) -> _Place[T]:
        with self._changed:  # found and counted in one step: nobody can close it in between
            place = self._places.pop(name, None) or _Place()
            self._places[name] = place
            place.users += 1
            return place

    def _leave(self, name: str, place: _Place[T]) -> None:
        with self._changed:
            place.users -= 1
            place.used = time.monotonic()
            if place.model is None and not place.users:
                self._places.pop(name, None)  # it could not be loaded
            self._changed.notify_all()

    def _loaded(self, name: str, place: _Place[T]) -> T:
        try:
            return self._load(name)
        except BaseException:
            with self._changed:
                place.room = False
            raise

    def _make_room(self, name: str, place: _Place[T], headway: Callable[[], None], deadline: float) -> None:
        size = self._size_of(name)
        if self._max_bytes is not None and size > self._max_bytes:
            raise too_large(name, size, self._max_bytes)
        while True:
            with self._changed:
                held = [other for other in self._places.values() if other.room]
                taken = sum(other.size for other in held)
                if len(held) < self._max and (self._max_bytes is None or taken + size <= self._max_bytes):
                    place.room, place.size = True, size
                    return
                oldest = next((n for n, p in self._places.items() if p.model is not None and not p.users), None)
                gone = self._places.pop(oldest) if oldest is not None else None
                if gone is None:
                    self._changed.wait(max(0.0, min(LOOK_SECONDS, deadline - time.monotonic())))
            if gone is not None and oldest is not None:
                self._end(oldest, gone, "room")
                continue
            headway()
            if time.monotonic() > deadline:
                raise NoRoomError(
                    f"There was no room for the model {name}: others are in use.",
                    "Try again later, or let more models be held (STENOGRAF_MAX_MODELS, STENOGRAF_MODEL_MEMORY).",
                )

    def _close(self, reason: str, which: Callable[[_Place[T]], bool]) -> list[str]:
        with self._changed:
            names = [
                name
                for name, place in self._places.items()
                if place.model is not None and not place.users and which(place)
            ]
            gone = [(name, self._places.pop(name)) for name in names]
        for name, place in gone:
            self._end(name, place, reason)
        return names

    def _end(self, name: str, place: _Place[T], reason: str) -> None:
        assert place.model is not None
        place.model.close()
        self._on_evict(name, reason)


def too_large(name: str, size: int, most: int) -> ModelTooLargeError:
    """The error for a model that takes more memory than there is for models."""
    return ModelTooLargeError(
        f"The model {name} takes about {size / 1e6:,.0f} MB of memory, and models may take {most / 1e6:,.0f} MB here.",
        "Choose a smaller one (stenograf models list shows what each takes), or raise STENOGRAF_MODEL_MEMORY, on a GPU "
        "STENOGRAF_GPU_MEMORY.",
    )
