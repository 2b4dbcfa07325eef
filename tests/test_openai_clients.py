"""OpenAI's own client, of three generations, and LiteLLM, as they are, against a service as people start it.

Each client is a program in an environment of its own (`clients.py`), goes through its calls once, and tells what it
got.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api_server import Server, serve, settings_for, until
from clients import run_client
from conftest import clips
from live_server import LiveServer
from stenograf.chunk import ChunkResult
from stenograf.errors import EngineFailedError
from stenograf.jobs.job import LANES, Claim, Job
from stenograf.transcript import Segment
from transcripts import GOLDEN

TESTS = Path(__file__).parent
AUDIO = TESTS / "audio"
VERSIONS = ("openai1", pytest.param("openai2", marks=pytest.mark.by_hand), "openai3")
SAID = "Код шесть четыре ноль восемь."
TRANSLATED = "The code is six four zero eight."

Found = dict[str, Any]


def run(name: str, urls: dict[str, str], **environment: str) -> Found:
    """What a client gets from these scenarios, each at its URL."""
    script = TESTS / ("litellm_calls.py" if name == "litellm" else "openai_calls.py")
    scenarios = [f"{scenario}={url}" for scenario, url in urls.items()]
    found: Found = run_client(name, script, str(AUDIO), *scenarios, environment=environment)
    return found


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that takes one recording a minute of each of its keys, and reads them at once."""
    keys = tuple(number * 16 for number in "1234")
    settings = settings_for(tmp_path_factory.mktemp("keyed"), auth=True, api_keys=keys, rate_uploads=1)
    with serve(settings) as server, worker(server, lambda claim: server.service.leases.finish(claim, GOLDEN)):
        yield server


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that takes 1 MB, and reads as a recording's name says."""
    folder = tmp_path_factory.mktemp("played")
    seen = folder / "seen"
    with serve(settings_for(folder, max_upload=1)) as server:

        def slow(claim: Claim) -> None:
            until(lambda: waiting(server) == 1)
            until(lambda: waiting(server) == 0)  # it has hung up,
            until(lambda: waiting(server) == 1)  # and is here again
            server.service.leases.finish(claim, GOLDEN)

        def broken(claim: Claim) -> None:
            server.service.leases.append(claim, [ChunkResult(0, 0, 1, (Segment(0, 1, "Half"),), "en")])
            tell(server, claim)
            until(seen.exists)
            seen.unlink()
            server.service.leases.fail(claim, EngineFailedError("It broke.", ""))

        with worker(server, lambda claim: slow(claim) if claim.job.filename == "slow.flac" else broken(claim)):
            yield server


@pytest.fixture(scope="module", params=VERSIONS)
def found(request: pytest.FixtureRequest, live_server: LiveServer, keyed: Server, played: Server) -> Found:
    name: str = request.param
    urls = dict.fromkeys(
        ("formats", "translations", "streams", "asynchronous", "models", "errors", "big"), live_server.url
    )
    urls |= {"keys": keyed.url, "large": played.url, "impatient": played.url, "broken": played.url}
    result = run(name, urls, SEEN=str(played.service.settings.data_dir / "seen"))
    assert result["version"].split(".")[0] == name[-1]
    result["jobs"] = [job for job in jobs(played) if job.filename == "slow.flac"]
    for job in jobs(played):
        played.client.delete(f"/api/v1/tasks/{job.id}")
    result["files"] = played.files()
    return result


@pytest.fixture(scope="module")
def litellm(live_server: LiveServer, keyed: Server) -> Found:
    urls = {"transcriptions": live_server.url, "errors": live_server.url, "keys": keyed.url}
    # Without the setting it asks another server for prices when it is imported.
    return run("litellm", urls, LITELLM_LOCAL_MODEL_COST_MAP="true")


@contextmanager
def worker(server: Server, work: Callable[[Claim], None]) -> Iterator[None]:
    """Somebody who does `work` with each job, until the end of the `with`."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(0.005):
            claim = server.service.leases.claim("test", LANES)
            if claim is not None:
                work(claim)
                tell(server, claim)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def tell(server: Server, claim: Claim) -> None:
    server.service.heard({"event": "job", "job": claim.id})


def waiting(server: Server) -> int:
    """How many requests wait for jobs."""
    desk = getattr(server.app.state, "desk", None)
    return sum(desk._waiting.values()) if desk else 0


def jobs(server: Server) -> tuple[Job, ...]:
    return server.service.store.page(limit=200).items


def is_error(found: Found, kind: str, status: int, code: str, param: str | None = None) -> None:
    """That an exception of the client tells all there is to know."""
    error = {name: found[name] for name in ("class", "status", "code", "param")}
    assert error == {"class": kind, "status": status, "code": code, "param": param}, found
    assert len(found["message"]) > 20
    assert found["request_id"]


class TestFormats:
    @pytest.mark.parametrize("kind", ["json", "default"])
    def test_json(self, found: Found, kind: str) -> None:
        answer = found["formats"][kind]
        assert answer["text"] == SAID
        assert answer["usage"] == {"type": "duration", "seconds": 2}
        assert answer["languages"] == [{"code": "ru"}]

    def test_text(self, found: Found) -> None:
        assert found["formats"]["text"] == SAID + "\n"

    def test_subtitles(self, found: Found) -> None:
        assert found["formats"]["srt"].startswith("1\n00:00:00,")
        assert found["formats"]["vtt"].startswith("WEBVTT\n\n00:00:00.")
        for kind in ("srt", "vtt"):
            assert SAID in found["formats"][kind]

    def test_verbose_json(self, found: Found) -> None:
        answer = found["formats"]["verbose_json"]
        assert answer["text"] == SAID
        assert answer["language"] == "russian"
        assert answer["duration"] == 1.88
        assert answer["task"] == "transcribe"
        assert not answer["words"]
        (segment,) = answer["segments"]
        assert segment["text"].strip() == SAID
        assert 0 <= segment["start"] < segment["end"] <= 2
        assert -1 < segment["avg_logprob"] < 0
        assert not [name for name, value in segment.items() if value is None]

    def test_words(self, found: Found) -> None:
        answer = found["formats"]["words"]
        assert answer["segments"]
        assert [word["word"] for word in answer["words"]] == SAID.split()
        times = [time for word in answer["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times)

    def test_every_option(self, found: Found) -> None:
        assert found["formats"]["everything"]["text"].startswith("Код шесть")

    def test_a_big_file(self, found: Found) -> None:
        assert found["big"]["duration"] == 12
        assert found["big"]["text"] == ""


class TestTranslations:
    def test_formats(self, found: Found) -> None:
        answers = found["translations"]
        assert answers["json"]["text"] == TRANSLATED
        assert answers["text"] == TRANSLATED + "\n"
        assert answers["verbose_json"]["text"] == TRANSLATED
        assert answers["verbose_json"]["language"] == "english"
        assert answers["verbose_json"]["segments"][0]["text"].strip() == TRANSLATED

    def test_a_model_that_cannot(self, found: Found) -> None:
        is_error(found["translations"]["refused"], "BadRequestError", 400, "option_invalid", "model")


class TestStreams:
    @pytest.mark.parametrize(("name", "least"), [("short", 1), ("long", 2)])
    def test_the_deltas_make_the_whole_text(self, found: Found, name: str, least: int) -> None:
        *deltas, done = found["streams"][name]
        assert {event["class"] for event in deltas} == {"TranscriptionTextDeltaEvent"}
        assert done["class"] == "TranscriptionTextDoneEvent"
        assert len(deltas) >= least
        assert "".join(event["delta"] for event in deltas) == done["text"]
        file = {"short": "ru-01.flac", "long": "ru-long.ogg"}[name]
        clip = next(clip for clip in clips() if clip.path.name == file)
        assert done["text"][:30] == clip.text[:30]
        assert done["usage"]["type"] == "duration"

    def test_what_is_no_recording(self, found: Found) -> None:
        error = found["streams"]["refused"]
        is_error(error, "BadRequestError", 400, "not_media", error["param"])

    def test_asynchronously(self, found: Found) -> None:
        answers = found["asynchronous"]
        assert answers["ru"] == SAID
        assert answers["en"] == "The house number is five one zero."
        assert "".join(answers["deltas"]) == SAID

    def test_an_error_in_the_middle(self, found: Found) -> None:
        assert found["broken"]["seen"] == ["transcript.text.delta"]
        error = found["broken"]["error"]
        assert (error["class"], error["code"], error["type"]) == ("APIError", "engine_failed", "server_error")
        assert error["message"]


class TestModels:
    def test_list(self, found: Found) -> None:
        assert {"whisper-test", "gigaam-test", "whisper-1"} <= {model["id"] for model in found["models"]["list"]}
        for model in found["models"]["list"]:
            assert model["object"] == "model"
            assert model["created"] > 1e9
            assert model["owned_by"]

    def test_one(self, found: Found) -> None:
        assert found["models"]["one"]["id"] == "whisper-test"
        is_error(found["models"]["none"], "NotFoundError", 404, "model_not_found", "model")


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "kind", "status", "code", "param"),
        [
            ("model", "NotFoundError", 404, "model_not_found", "model"),
            ("format", "BadRequestError", 400, "format_unknown", "response_format"),
            ("speakers", "BadRequestError", 400, "option_invalid", "known_speaker_names"),
            ("diarized", "BadRequestError", 400, "option_invalid", "response_format"),
            ("language", "BadRequestError", 400, "language_unknown", "language"),
            ("temperature", "BadRequestError", 400, "option_invalid", "temperature"),
            ("empty", "BadRequestError", 400, "file_empty", "file"),
        ],
    )
    def test_of_a_request(self, found: Found, name: str, kind: str, status: int, code: str, param: str) -> None:
        is_error(found["errors"][name], kind, status, code, param)

    def test_of_a_recording(self, found: Found) -> None:
        is_error(found["errors"]["media"], "BadRequestError", 400, "not_media", found["errors"]["media"]["param"])

    def test_of_keys_and_rates(self, found: Found) -> None:
        is_error(found["keys"]["wrong"], "AuthenticationError", 401, "invalid_api_key")
        is_error(found["keys"]["models"], "AuthenticationError", 401, "invalid_api_key")
        assert found["keys"]["right"] == GOLDEN.text
        is_error(found["keys"]["again"], "RateLimitError", 429, "rate_limit_exceeded")

    def test_of_size(self, found: Found) -> None:
        is_error(found["large"], "APIStatusError", 413, "upload_too_large", "file")


def test_an_impatient_client_is_given_its_first_job(found: Found) -> None:
    assert found["impatient"] == GOLDEN.text
    (job,) = found["jobs"]
    assert job.attempt == 1
    assert found["files"] == []


@pytest.mark.by_hand
class TestLiteLLM:
    def test_answers(self, litellm: Found) -> None:
        answers = litellm["transcriptions"]
        assert answers["default"]["text"] == SAID
        assert answers["default"]["language"] == "russian"
        assert answers["default"]["duration"] == 1.88
        assert answers["default"]["segments"]
        assert [word["word"] for word in answers["words"]["words"]] == SAID.split()
        assert answers["language"].startswith("Код шесть")
        assert answers["text"] == SAID + "\n"
        assert answers["srt"].startswith("1\n00:00:00,")
        assert answers["other"] == SAID.lower().rstrip(".")

    def test_errors(self, litellm: Found) -> None:
        assert litellm["errors"]["model"]["class"] == "NotFoundError"
        assert "model_not_found" in litellm["errors"]["model"]["message"]
        assert litellm["errors"]["language"]["class"] == "BadRequestError"
        assert "klingon" in litellm["errors"]["language"]["message"]

    def test_keys_and_rates(self, litellm: Found) -> None:
        answers = litellm["keys"]
        assert (answers["wrong"]["class"], answers["wrong"]["status"]) == ("AuthenticationError", 401)
        assert answers["right"] == GOLDEN.text
        assert (answers["again"]["class"], answers["again"]["status"]) == ("RateLimitError", 429)
