"""Where recordings are kept: whole or not at all, and nothing that a job names is ever swept away."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from stenograf.errors import DiskFullError, FileMissingError, OutputForbiddenError, UploadTooLargeError
from stenograf.jobs import files as module
from stenograf.jobs.folder import LocalFiles


@pytest.fixture
def store(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path / "files")


def all_files(store: LocalFiles) -> list[Path]:
    return [path for path in store.folder.rglob("*") if path.is_file()]


def bring(store: LocalFiles, data: bytes = b"abc", *, age: float = 0.0) -> str:
    incoming = store.create()
    incoming.write(data)
    name = incoming.commit()
    when = time.time() - age
    os.utime(store.path(name), (when, when))
    return name


def test_a_file_comes_in(store: LocalFiles) -> None:
    incoming = store.create()
    for part in (b"abc", b"", b"def" * 100_000):
        incoming.write(part)
    data = b"abc" + b"def" * 100_000
    assert len(all_files(store)) == 1
    name = incoming.commit()
    assert (incoming.size, incoming.digest) == (len(data), hashlib.sha256(data).hexdigest())
    assert all_files(store) == [store.path(name)]
    assert b"".join(store.read(name)) == data


def test_names_are_never_given_twice(store: LocalFiles) -> None:
    names = {bring(store, b"same") for _ in range(20)}
    assert len(names) == 20
    assert all(name.isalnum() for name in names)


def test_a_file_that_is_given_up_leaves_nothing(store: LocalFiles) -> None:
    incoming = store.create()
    incoming.write(b"abc")
    incoming.abort()
    assert all_files(store) == []
    whole = store.create()
    whole.write(b"abc")
    whole.commit()
    whole.abort()  # its job could not be written
    assert all_files(store) == []


def test_a_file_that_is_gone(store: LocalFiles) -> None:
    name = bring(store)
    store.remove(name)
    store.remove(name)
    store.remove(None)
    assert all_files(store) == []
    with pytest.raises(FileMissingError) as caught:
        next(store.read(name))
    assert str(store.folder) not in str(caught.value)


# Limits


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    store = LocalFiles(tmp_path / "files", max_bytes=10)
    exact = store.create()
    exact.write(b"12345")
    exact.write(b"67890")
    exact.commit()
    more = store.create()
    more.write(b"12345")
    with pytest.raises(UploadTooLargeError):
        more.write(b"678901")
    more.abort()
    assert len(all_files(store)) == 1


def test_a_disk_that_is_nearly_full_takes_nothing_in(store: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(store)
    monkeypatch.setattr(module, "RESERVE", 1 << 60)
    with pytest.raises(DiskFullError) as caught:
        store.create()
    assert caught.value.retryable
    assert len(all_files(store)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_disk_that_fills_up_while_a_file_comes_in(store: LocalFiles) -> None:
    incoming = store.create()
    os.dup2(os.open("/dev/full", os.O_WRONLY), incoming._file.fileno())
    with pytest.raises(DiskFullError):
        incoming.write(b"x" * 1_000_000)
    incoming.abort()
    assert all_files(store) == []


def test_a_folder_that_may_not_be_written(tmp_path: Path, unprivileged: None) -> None:
    store = LocalFiles(tmp_path / "files")
    incoming = store.create()
    incoming.write(b"abc")
    for folder in (store.folder / "incoming", store.folder):
        folder.chmod(0o500)
    with pytest.raises(OutputForbiddenError):
        store.create()
    with pytest.raises(OutputForbiddenError):
        incoming.commit()
    with pytest.raises(OutputForbiddenError, match="deeper"):
        LocalFiles(store.folder / "deeper")
    for folder in (store.folder, store.folder / "incoming"):
        folder.chmod(0o700)
    incoming.abort()
    assert all_files(store) == []


# Sweeping


def test_what_no_job_names_is_removed_once_it_is_old(store: LocalFiles) -> None:
    orphan, named = bring(store, age=7200), bring(store, age=7200)
    young = bring(store, age=1800)
    broken_off, going_on = store.create(), store.create()
    broken_off.write(b"abc")
    old = time.time() - 7200
    paths = [path for path in all_files(store) if path.parent.name == "incoming"]
    os.utime(paths[0], (old, old))
    assert store.sweep(lambda: {named}) == 2
    left = {path.name for path in all_files(store)}
    assert left == {named, young, paths[1].name}
    assert orphan not in left
    assert store.sweep(lambda: {named}) == 0
    broken_off.abort()
    going_on.abort()


def test_a_job_that_is_written_while_files_are_listed_keeps_its_file(store: LocalFiles) -> None:
    names: set[str] = set()
    late = bring(store, age=7200)

    def named() -> set[str]:
        names.add(late)  # its job was written after the list of files was made
        return names

    assert store.sweep(named) == 0
    assert store.look(late).size == 3


def test_a_file_that_comes_in_while_names_are_asked_for_is_kept(store: LocalFiles) -> None:
    names: set[str] = set()
    bring(store, age=7200)

    def named() -> set[str]:
        written_by_now = set(names)
        names.add(bring(store, age=7200))
        return written_by_now

    assert store.sweep(named) == 1
    assert {path.name for path in all_files(store)} == names


def test_nobody_is_asked_for_names_where_nothing_is_old(store: LocalFiles) -> None:
    bring(store)

    def named() -> set[str]:
        raise AssertionError

    assert store.sweep(named) == 0


def test_two_sweep_at_once(store: LocalFiles) -> None:
    first = bring(store, age=7200)

    def named() -> set[str]:
        store.remove(first)  # another process was faster
        return set()

    store.sweep(named)
    assert all_files(store) == []
