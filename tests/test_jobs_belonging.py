"""Recordings know their database: what belongs to another is neither swept nor taken for lost."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from servers import Postgres
from stenograf.errors import OutputForbiddenError, SettingInvalidError
from stenograf.jobs.belonging import Belonging
from stenograf.jobs.database import Database
from stenograf.jobs.folder import LocalFiles
from stenograf.jobs.maintenance import Maintenance
from stenograf.runtime import Runtime
from stenograf.settings import Settings


def test_the_first_replica_claims_and_another_folder_is_another(database: Database, tmp_path: Path) -> None:
    shared, private = LocalFiles(tmp_path / "shared"), LocalFiles(tmp_path / "private")
    worker = Belonging(database, shared)
    assert not worker.holds()
    assert Belonging(database, shared).holds(claim=True)
    assert worker.holds()
    assert Belonging(database, LocalFiles(tmp_path / "shared")).holds(claim=True)
    stranger = Belonging(database, private)
    assert not stranger.holds(claim=True)
    (private.folder / ".stenograf").write_text(stranger.hint.split("write ")[1].split()[0])
    assert stranger.holds()


def test_a_database_claims_no_files_of_another(database: Database, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / ".stenograf").write_text("somebody's")
    assert not Belonging(database, LocalFiles(tmp_path / "files")).holds(claim=True)


def test_a_claim_that_fails_can_be_made_again(database: Database, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "files")
    (files.folder / ".stenograf").mkdir()  # in the way
    first = Belonging(database, files)
    with pytest.raises(OutputForbiddenError):
        first.holds(claim=True)
    (files.folder / ".stenograf").rmdir()
    assert Belonging(database, files).holds(claim=True)


def test_a_file_system_without_hard_links(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    files = LocalFiles(tmp_path / "share")
    assert Belonging(database, files).holds(claim=True)
    assert not files.belongs_to("another", claim=True)
    assert Belonging(database, LocalFiles(tmp_path / "share")).holds()


def test_nothing_of_another_database_is_swept(postgres: Postgres, tmp_path: Path) -> None:
    with postgres.database() as ours, postgres.database() as theirs:
        settings = Settings(data_dir=tmp_path, database_url=ours)
        fleet, laptop = Runtime(settings), Runtime(replace(settings, database_url=theirs))
        for runtime in (fleet, laptop):
            runtime.database.migrate()
        fleet.check_files(claim=True)
        with pytest.raises(SettingInvalidError, match="does not hold the recordings"):
            laptop.check_files(claim=True)  # its row is written, and the mark is another's
        incoming = fleet.files.create()
        incoming.write(b"sound")
        name = incoming.commit()
        for runtime, gone in ((laptop, 0), (fleet, 1)):
            swept = Maintenance(
                runtime.jobs, runtime.leases, runtime.files, runtime.uploads,
                on_event=lambda _event: None, files_are_ours=runtime.files_are_ours,
            )  # fmt: skip
            runtime.files.look(name)
            file = tmp_path / "files" / "audio" / name[:2] / name

            os.utime(file, (1, 1))
            assert swept.sweep() == gone
        for runtime in (fleet, laptop):
            runtime.database.close()


def test_one_machine_has_no_mark(tmp_path: Path) -> None:
    runtime = Runtime(Settings(data_dir=tmp_path))
    runtime.database.migrate()
    assert runtime.files_are_ours()
    runtime.check_files(claim=True)
    assert not (tmp_path / "files" / ".stenograf").exists()
    runtime.database.close()
