"""The models that one process holds: loaded once, never closed in use, the least recently used goes first."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from stenograf.models.pool import ModelPool


class Model:
    """Stands for a loaded model, and tells whether it is still there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Loader:
    """Loads models and counts them; `before` may wait or fail."""

    def __init__(self) -> None:
        self.loaded: list[Model] = []
        self.before: Callable[[str], None] = lambda _name: None

    def __call__(self, name: str) -> Model:
        self.before(name)
        self.loaded.append(Model(name))
        return self.loaded[-1]

    def names(self) -> list[str]:
        return [model.name for model in self.loaded]

    def open(self) -> list[str]:
        return [model.name for model in self.loaded if not model.closed]


def use(pool: ModelPool[Model], *names: str) -> None:
    for name in names:
        with pool.use(name) as model:
            assert model.name == name
            assert not model.closed


def test_a_model_is_loaded_once_and_kept() -> None:
    load = Loader()
    pool = ModelPool(load)
    use(pool, "a", "a")
    with pool.use("a") as first, pool.use("a") as second:
        assert first is second
    assert load.names() == ["a"]
    assert pool.loaded() == ["a"]


def test_the_least_recently_used_goes_first() -> None:
    load = Loader()
    pool = ModelPool(load, max_models=2)
    use(pool, "a", "b", "a", "c")
    assert load.open() == ["a", "c"]
    assert pool.loaded() == ["a", "c"]
    use(pool, "b")
    assert load.open() == ["c", "b"]
    assert load.names() == ["a", "b", "c", "b"]


def test_room_is_made_before_the_next_is_loaded() -> None:
    load = Loader()
    pool = ModelPool(load)
    use(pool, "a")
    load.before = lambda _name: seen.extend(load.open())
    seen: list[str] = []
    use(pool, "b")
    assert seen == []


def test_what_is_in_use_is_never_closed() -> None:
    load = Loader()
    pool = ModelPool(load)
    with pool.use("a") as model:
        use(pool, "b", "c")
        pool.close()
        assert not model.closed
        assert load.open() == ["a"]
        use(pool, "a")
        assert load.names().count("a") == 1
    assert pool.loaded() == ["a"]
    pool.close()
    assert load.open() == []
    assert pool.loaded() == []


def test_too_many_in_use_go_as_soon_as_they_are_not() -> None:
    load = Loader()
    pool = ModelPool(load)
    with pool.use("a"), pool.use("b"), pool.use("c"):
        assert load.open() == ["a", "b", "c"]
    assert len(load.open()) == 1


def test_several_that_ask_at_once_wait_for_one_load() -> None:
    load = Loader()
    pool = ModelPool(load)
    started, go_on = threading.Event(), threading.Event()

    def wait(_name: str) -> None:
        started.set()
        go_on.wait(20)

    load.before = wait
    got: list[Model] = []

    def ask() -> None:
        with pool.use("a") as model:
            got.append(model)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    assert started.wait(20)
    assert pool.loaded() == []
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert load.names() == ["a"]
    assert len(got) == 6


def test_another_model_is_not_waited_for() -> None:
    load = Loader()
    pool = ModelPool(load, max_models=2)
    use(pool, "quick")
    started, go_on = threading.Event(), threading.Event()

    def wait(_name: str) -> None:
        started.set()
        go_on.wait(20)

    load.before = wait
    slow = threading.Thread(target=use, args=(pool, "slow"))
    slow.start()
    assert started.wait(20)
    use(pool, "quick")  # it would hang here
    go_on.set()
    slow.join(20)
    assert load.names() == ["quick", "slow"]


def test_a_load_that_failed_is_tried_again_by_the_next() -> None:
    load = Loader()
    pool = ModelPool(load)

    def fail(name: str) -> None:
        raise ValueError(name)

    load.before = fail
    for _ in range(2):
        with pytest.raises(ValueError, match="a"):
            use(pool, "a")
    assert pool.loaded() == []
    load.before = lambda _name: None
    use(pool, "a")
    assert load.names() == ["a"]


def test_a_load_that_failed_while_others_wait() -> None:
    load = Loader()
    pool = ModelPool(load)
    all_there, tries = threading.Barrier(4), []

    def fail_once(name: str) -> None:
        tries.append(name)
        if len(tries) == 1:
            raise ValueError(name)

    load.before = fail_once
    results: list[str] = []

    def ask() -> None:
        all_there.wait(20)
        try:
            use(pool, "a")
            results.append("ok")
        except ValueError:
            results.append("failed")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == ["failed", "ok", "ok", "ok"]
    assert load.names() == ["a"]


def test_a_failure_of_the_user_is_not_the_pools() -> None:
    load = Loader()
    pool = ModelPool(load)
    with pytest.raises(ZeroDivisionError), pool.use("a"):
        raise ZeroDivisionError
    use(pool, "a", "b")
    assert load.names() == ["a", "b"]
    assert load.open() == ["b"]


def test_many_threads_and_few_places() -> None:
    load = Loader()
    pool = ModelPool(load, max_models=2)
    failures: list[BaseException] = []

    def ask(seed: int) -> None:
        try:
            for n in range(200):
                use(pool, "abcd"[(seed * 7 + n * (seed + 1)) % 4])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(load.open()) == 2
    assert sorted(load.open()) == sorted(pool.loaded())
