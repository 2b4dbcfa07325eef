"""The steps from a request to a job, each on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api_server import settings_for
from stenograf.api.intake import Checked, Recording, Submission, check, fingerprint, in_flight, submit
from stenograf.api.parameters import Parameters, read
from stenograf.api.service import Service
from stenograf.errors import (
    DatabaseError,
    LanguageUnknownError,
    ModelNotInstalledError,
    OptionInvalidError,
    QueueFullError,
    RequestInFlightError,
)
from stenograf.jobs.job import Job, NewJob
from stenograf.jobs.store import JobStore
from stenograf.runtime import Runtime
from work import place


def service_of(folder: Path, **changes: Any) -> Service:
    runtime = Runtime(settings_for(folder, **changes))
    runtime.database.migrate()
    return Service(runtime)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = service_of(tmp_path)
    yield service
    service.close()


def incoming(service: Service, data: bytes = b"sound") -> Recording:
    file = service.files.create()
    file.write(data)
    return Recording("a.ogg", incoming=file, size=file.size, digest=file.digest)


def files(service: Service) -> list[Path]:
    return [path for path in service.files.folder.rglob("*") if path.is_file()]


def checked(**options: Any) -> Checked:
    return Checked(Parameters(options), "small")


class TestCheck:
    def test_the_default_model(self, service: Service) -> None:
        assert asyncio.run(check(service, Parameters({}))) == Checked(Parameters({}), "whisper-test")

    def test_the_operator_may_name_a_folder_and_nobody_else(self, tmp_path: Path) -> None:
        service = service_of(tmp_path, default_model="./tests/models/whisper-test")
        path = str(service.settings.models_path / "whisper-test")
        service.settings = replace(service.settings, default_model=path)
        assert asyncio.run(check(service, Parameters({}))).model == "whisper-test"
        with pytest.raises(Exception, match="There is no model"):
            asyncio.run(check(service, Parameters({"model": path})))
        service.close()

    def test_a_model_of_the_catalog_that_is_not_here(self, tmp_path: Path) -> None:
        online = service_of(tmp_path / "a", offline=False)
        assert asyncio.run(check(online, read([("model", "Whisper-Large")]))).parameters.options == {
            "model": "large-v3"
        }
        online.close()
        offline = service_of(tmp_path / "b")
        with pytest.raises(ModelNotInstalledError, match="large-v3"):
            asyncio.run(check(offline, read([("model", "large")])))
        offline.close()

    def test_what_the_model_cannot_do(self, tmp_path: Path) -> None:
        service = service_of(tmp_path, offline=False)
        with pytest.raises(LanguageUnknownError, match="'en'"):
            asyncio.run(check(service, read([("model", "gigaam"), ("language", "en")])))
        with pytest.raises(OptionInvalidError, match="translate"):
            asyncio.run(check(service, read([("model", "turbo"), ("task", "translate")])))
        asyncio.run(check(service, read([("model", "gigaam"), ("language", "auto"), ("task", "transcribe")])))
        asyncio.run(check(service, read([("model", "large-v3"), ("language", "ru"), ("task", "translate")])))
        service.close()


class TestSubmit:
    def test_a_new_job_has_its_file(self, service: Service) -> None:
        submission = Submission("me", incoming(service), checked(vad=False), sync=True, request_id="r")
        job, is_new = asyncio.run(submit(service, submission))
        assert is_new
        assert job.file is not None
        assert place(service.files, job.file).read_bytes() == b"sound"
        assert (job.priority, job.sync, job.request_id, job.options) == (0, True, "r", {"vad": False})
        assert job.fingerprint == submission.fingerprint
        assert service.store.same_request("me", submission.fingerprint) == job

    def test_a_file_that_is_in_its_place_already(self, tmp_path: Path) -> None:
        service = service_of(tmp_path, max_queued=1)
        for number in range(2):
            whole = service.files.create()
            whole.write(b"sound")
            name = whole.commit()
            submission = Submission("me", Recording("a.ogg", file=name, size=5, digest="d"), checked())
            if number == 0:
                assert asyncio.run(submit(service, submission))[0].file == name
            else:
                with pytest.raises(QueueFullError):
                    asyncio.run(submit(service, submission))
                assert place(service.files, name).exists()  # the caller's: who sent it in pieces may try again
        service.close()

    def test_a_commit_of_which_nobody_knows(self, service: Service) -> None:
        """The answer of the database is lost: the job may be there, so its file has to stay."""

        class Unsure(JobStore):
            def add(self, new: NewJob) -> tuple[Job, bool]:
                super().add(new)
                raise DatabaseError("Gone.")

        service.store = Unsure(service.database)
        with pytest.raises(DatabaseError):
            asyncio.run(submit(service, Submission("me", incoming(service), checked())))
        (job,) = service.store.page().items
        assert [path.name for path in files(service)] == [job.file]


def test_fingerprints_tell_apart_what_is_not_the_same() -> None:
    one = Recording("a.ogg", digest="1")
    base = fingerprint(one, checked(vad=True, trim=1.0))
    assert base == fingerprint(Recording("b.mp3", digest="1"), checked(trim=1.0, vad=True))
    others = [
        (Recording("a.ogg", digest="2"), checked(vad=True, trim=1.0)),
        (Recording("a.ogg", url="1"), Checked(Parameters({"vad": True, "trim": 1.0}), "base")),
        (one, checked(vad=True)),
        (one, Checked(Parameters({"vad": True, "trim": 1.0}), "base")),
        (one, Checked(Parameters({"vad": True, "trim": 1.0}, webhook_url="https://a.example"), "small")),
    ]
    assert len({base, *(fingerprint(*other) for other in others)}) == len(others) + 1


def test_naming_the_default_model_is_the_same_as_leaving_it_out() -> None:
    named = Checked(Parameters({"model": "small"}), "small")
    assert fingerprint(Recording("a", digest="1"), named) == fingerprint(Recording("a", digest="1"), checked())


def test_one_request_at_a_time_with_a_key(service: Service) -> None:
    with in_flight(service, "me", "k"), in_flight(service, "you", "k"), in_flight(service, "me", None):
        with pytest.raises(RequestInFlightError), in_flight(service, "me", "k"):
            pass
        assert len(service.in_flight) == 2
    assert not service.in_flight
