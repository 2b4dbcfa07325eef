"""The models that one process holds in memory, least recently used first to go.

A model in use is never closed. Several that ask for the same one at once wait for a single load.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """What a pool holds."""

    def close(self) -> None:
        """Give its memory back."""
        ...


T = TypeVar("T", bound=Closable)


@dataclass
class _Place(Generic[T]):
    loading: threading.Lock = field(default_factory=threading.Lock)
    model: T | None = None
    users: int = 0


class ModelPool(Generic[T]):
    """Loaded models by name; to be used by many threads."""

    def __init__(self, load: Callable[[str], T], *, max_models: int = 1) -> None:
        """`load` is called outside the pool's lock, once at a time for a name."""
        self._load = load
        self._max = max_models
        self._lock = threading.Lock()
        self._places: dict[str, _Place[T]] = {}  # in the order of their last use

    @contextmanager
    def use(self, name: str) -> Iterator[T]:
        """The model of that name, loaded if need be, kept at least until the end of the `with`.

        Raises what loading raises; the next to ask tries again.
        """
        place = self._enter(name)
        try:
            with place.loading:
                if place.model is None:
                    self._make_room()
                    place.model = self._load(name)
            yield place.model
        finally:
            self._leave(name, place)

    def loaded(self) -> list[str]:
        """The names of what is in memory, the latest used last."""
        with self._lock:
            return [name for name, place in self._places.items() if place.model is not None]

    def close(self) -> None:
        """Close what nobody uses."""
        self._evict(0)

    def _enter(self, name: str) -> _Place[T]:
        with self._lock:  # found and counted in one step: nobody can close it in between
            place = self._places.pop(name, None) or _Place()
            self._places[name] = place
            place.users += 1
            return place

    def _leave(self, name: str, place: _Place[T]) -> None:
        with self._lock:
            place.users -= 1
            if place.model is None and not place.users:
                self._places.pop(name, None)  # it could not be loaded
        self._evict(self._max)

    def _make_room(self) -> None:
        self._evict(self._max - 1)

    def _evict(self, most: int) -> None:
        with self._lock:
            held = [name for name, place in self._places.items() if place.model is not None]
            idle = [name for name in held if not self._places[name].users]
            gone = [self._places.pop(name) for name in idle[: max(len(held) - most, 0)]]
        for place in gone:
            assert place.model is not None
            place.model.close()
