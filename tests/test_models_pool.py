"""The models that one process holds: loaded once, never closed in use, the least recently used goes first."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from stenograf.errors import ModelTooLargeError, NoRoomError
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


def names(pool: ModelPool[Model]) -> list[str]:
    return [held.name for held in pool.loaded()]


def test_a_model_is_loaded_once_and_kept() -> None:
    load = Loader()
    pool = ModelPool(load)
    use(pool, "a", "a")
    with pool.use("a") as first, pool.use("a") as second:
        assert first is second
    assert load.names() == ["a"]
    assert names(pool) == ["a"]


def test_the_least_recently_used_goes_first() -> None:
    load = Loader()
    pool = ModelPool(load, max_models=2)
    use(pool, "a", "b", "a", "c")
    assert load.open() == ["a", "c"]
    assert names(pool) == ["a", "c"]
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
    pool = ModelPool(load, patience=0.1)
    with pool.use("a") as model:
        with pytest.raises(NoRoomError, match="no room for the model b"):
            use(pool, "b")
        pool.close()
        assert pool.close_idle(0) == []
        assert not model.closed
        assert load.open() == ["a"]
        use(pool, "a")
        assert load.names().count("a") == 1
    assert names(pool) == ["a"]
    pool.close()
    assert load.open() == []
    assert names(pool) == []


def test_who_finds_no_room_waits_until_others_are_done() -> None:
    load = Loader()
    pool = ModelPool(load)
    asked = threading.Event()
    waiting = threading.Thread(target=lambda: use_when(pool, "b", asked.set))
    with pool.use("a"):
        waiting.start()
        assert asked.wait(20)
        assert load.open() == ["a"]
    waiting.join(20)
    assert load.open() == ["b"]


def use_when(pool: ModelPool[Model], name: str, headway: Callable[[], None]) -> None:
    with pool.use(name, headway):
        pass


def test_who_waits_for_room_can_be_called_off() -> None:
    load = Loader()
    pool = ModelPool(load)

    def stop() -> None:
        raise KeyError("stop")

    with pool.use("a"), pytest.raises(KeyError), pool.use("b", stop):
        pass
    use(pool, "b", "a")


SIZES = {"small": 400, "base": 200, "large": 3000, "gigaam": 900}


def test_models_together_take_no_more_memory_than_is_allowed() -> None:
    load, gone = Loader(), list[tuple[str, str]]()
    pool = ModelPool(
        load, size_of=SIZES.__getitem__, max_models=9, max_bytes=1300, on_evict=lambda *told: gone.append(told)
    )
    use(pool, "small", "base")
    assert [(held.name, held.size, held.users) for held in pool.loaded()] == [("small", 400, 0), ("base", 200, 0)]
    load.before = lambda _name: seen.extend(load.open())
    seen: list[str] = []
    use(pool, "gigaam")
    assert seen == ["base"]  # the oldest went first, and before the new one came
    assert names(pool) == ["base", "gigaam"]
    assert gone == [("small", "room")]


def test_what_can_never_fit_fails_at_once_and_costs_nothing() -> None:
    load = Loader()
    pool = ModelPool(load, size_of=SIZES.__getitem__, max_models=9, max_bytes=1300, patience=1000)
    use(pool, "small")
    with pytest.raises(ModelTooLargeError, match="large"), pool.use("large"):
        pass
    assert load.open() == ["small"]
    assert not ModelTooLargeError.retryable


def test_a_load_that_failed_gives_its_room_back() -> None:
    load = Loader()
    pool = ModelPool(load, size_of=SIZES.__getitem__, max_models=9, max_bytes=1000, patience=0.1)

    def fail(name: str) -> None:
        raise ValueError(name)

    load.before = fail
    with pytest.raises(ValueError, match="gigaam"):
        use(pool, "gigaam")
    load.before = lambda _name: None
    use(pool, "small", "base")
    assert names(pool) == ["small", "base"]


def test_idle_models_go_after_a_time() -> None:
    load, gone = Loader(), list[tuple[str, str]]()
    pool = ModelPool(load, max_models=3, on_evict=lambda *told: gone.append(told))
    use(pool, "a", "b")
    assert pool.close_idle(60) == []
    with pool.use("b"):
        assert pool.close_idle(0) == ["a"]
    assert gone == [("a", "idle")]
    assert load.open() == ["b"]


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
    assert names(pool) == []
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
    assert names(pool) == []
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
    assert sorted(load.open()) == sorted(names(pool))
