"""OpenAI's audio API over a real socket; the test plays the worker. `test_openai_clients.py` has the real clients."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api_server import Server, serve, settings_for, until
from stenograf import formats
from stenograf.api import openai_fields, openai_stream, sync
from stenograf.chunk import ChunkResult
from stenograf.errors import NotMediaError
from stenograf.jobs.job import LANES, Claim
from stenograf.options import MAX_PROMPT_CHARACTERS
from stenograf.transcript import Segment, Transcript
from transcripts import GOLDEN, spoken, transcript_of

TRANSCRIPTIONS = "/v1/audio/transcriptions"
TRANSLATIONS = "/v1/audio/translations"
MODELS = Path(__file__).parent / "models"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(settings_for(tmp_path_factory.mktemp("service"), max_upload=1)) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the service without tasks, and no test leaves a file that no task names."""
    yield
    if "server" not in request.fixturenames:
        return
    running: Server = request.getfixturevalue("server")
    for job in running.service.store.page(limit=200).items:
        assert running.client.delete(f"/api/v1/tasks/{job.id}").status_code == 204
    assert running.files() == []


@contextlib.contextmanager
def worker(server: Server, work: Callable[[Claim], None]) -> Iterator[list[Claim]]:
    """Somebody who does `work` with the next job."""
    claims: list[Claim] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(0.005):
            claim = server.service.leases.claim("test", LANES)
            if claim is not None:
                claims.append(claim)
                work(claim)
                tell(server, claim)
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield claims
    finally:
        ended.set()
        thread.join()


def tell(server: Server, claim: Claim) -> None:
    server.service.heard({"event": "job", "job": claim.id})


def answered(
    server: Server, transcript: Transcript = GOLDEN, path: str = TRANSCRIPTIONS, **fields: Any
) -> tuple[httpx2.Response, Claim]:
    """The answer to a request whose recording is read as `transcript`, and its job."""
    with worker(server, lambda claim: server.service.leases.finish(claim, transcript)) as claims:
        answer = server.client.post(path, files={"file": ("a.ogg", b"sound")}, data=fields)
        assert answer.status_code == 200, answer.text
    return answer, claims[0]


def refused(answer: httpx2.Response, status: int, code: str, param: str | None = None) -> str:
    """The message of an error, which must have OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    assert {**error, "message": ""} == {"message": "", "type": kind, "param": param, "code": code}
    assert error["message"]
    return str(error["message"])


def send(server: Server, path: str = TRANSCRIPTIONS, **fields: Any) -> httpx2.Response:
    return server.client.post(path, files={"file": ("a.ogg", b"sound")}, data=fields)


def _named(name: str, value: Any) -> dict[str, Any]:
    """A field whose name is no Python name."""
    return {name: value}


class TestAnswers:
    def test_json(self, server: Server) -> None:
        answer, _ = answered(server)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "text": GOLDEN.text,
            "languages": [{"code": "ru"}],
            "usage": {"type": "duration", "seconds": 76},
        }

    def test_text(self, server: Server) -> None:
        answer, _ = answered(server, response_format="text")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text == GOLDEN.text + "\n"

    @pytest.mark.parametrize("kind", ["srt", "vtt"])
    def test_subtitles(self, server: Server, kind: str) -> None:
        answer, _ = answered(server, response_format=kind)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.content == formats.render(Transcript.from_dict(GOLDEN.to_dict()), kind)

    def test_verbose_json(self, server: Server) -> None:
        answer, job = answered(server, response_format="verbose_json", temperature="0.2")
        found = answer.json()
        segments = found.pop("segments")
        assert found == {
            "task": "transcribe",
            "language": "russian",
            "duration": 75.25,
            "text": GOLDEN.text,
            "usage": {"type": "duration", "seconds": 76},
        }
        assert [segment["text"].strip() for segment in segments] == [segment.text for segment in GOLDEN.segments]
        assert "".join(segment["text"] for segment in segments).strip() == GOLDEN.text
        assert segments[0] == {
            "id": 0, "seek": 0, "start": 0.52, "end": GOLDEN.segments[0].end, "text": " Добрый день, коллеги! 👋",
            "tokens": [], "temperature": 0.2, "avg_logprob": -0.21, "compression_ratio": 1.4, "no_speech_prob": 0.01,
        }  # fmt: skip
        assert segments[4]["avg_logprob"] == segments[4]["no_speech_prob"] == 0
        assert 0.5 < segments[4]["compression_ratio"] < 2.4
        assert job.job.options == {"temperature": 0.2}

    @pytest.mark.parametrize(
        ("name", "kinds", "holds"),
        [
            ("timestamp_granularities[]", ["word"], {"words"}),
            ("timestamp_granularities", ["word", "segment"], {"words", "segments"}),
            ("timestamp_granularities[]", ["segment"], {"segments"}),
            ("timestamp_granularities[0]", ["word"], {"words"}),
        ],
    )
    def test_granularities(self, server: Server, name: str, kinds: list[str], holds: set[str]) -> None:
        answer, claim = answered(server, response_format="verbose_json", **_named(name, kinds))
        assert {"words", "segments"} & set(answer.json()) == holds
        assert claim.job.options == ({"word_timestamps": True} if "word" in kinds else {})
        if "words" in holds:
            assert answer.json()["words"][:2] == [
                {"word": "Добрый", "start": 0.52, "end": 1.02}, {"word": "день,", "start": 1.07, "end": 1.487},
            ]  # fmt: skip

    def test_words_are_not_looked_for_where_nobody_would_see_them(self, server: Server) -> None:
        _, claim = answered(server, **_named("timestamp_granularities[]", "word"))
        assert claim.job.options == {}
        _, claim = answered(server, response_format="srt", **_named("timestamp_granularities[]", "word"))
        assert claim.job.options == {"word_timestamps": True}

    def test_nothing_was_said(self, server: Server) -> None:
        nothing = transcript_of(language=None)
        assert answered(server, nothing)[0].json()["languages"] == []
        assert answered(server, nothing, response_format="text")[0].text == "\n"
        assert answered(server, nothing, response_format="srt")[0].text == ""
        found = answered(server, nothing, response_format="verbose_json")[0].json()
        assert (found["language"], found["text"], found["segments"]) == ("unknown", "", [])

    def test_translation(self, server: Server) -> None:
        answer, claim = answered(server, path=TRANSLATIONS, language="ru", response_format="verbose_json")
        assert claim.job.options == {"task": "translate"}  # the language of a translation is English
        assert answer.json()["task"] == "translate"
        assert answer.json()["language"] == "english"
        answer, _ = answered(server, path=TRANSLATIONS)
        assert set(answer.json()) == {"text", "usage"}


class TestFields:
    @pytest.mark.parametrize(
        ("fields", "options"),
        [
            ({"model": "whisper-1"}, {}),
            ({"model": "gpt-4o-mini-transcribe-2025-12-15"}, {}),
            ({"model": "gpt-transcribe"}, {}),
            ({"model": " "}, {}),
            ({"model": "gigaam-test"}, {"model": "gigaam-test"}),
            ({"language": "Russian"}, {"language": "ru"}),
            ({"language": ""}, {}),
            ({"languages[]": "de"}, {"language": "de"}),
            ({"languages[]": ["de", "en"]}, {"language": "auto"}),
            ({"languages[]": ["de", "en"], "language": "ru"}, {"language": "ru"}),
            ({"prompt": " Hello, "}, {"prompt": "Hello,"}),
            ({"prompt": "x" * 100 + "y" * MAX_PROMPT_CHARACTERS}, {"prompt": "y" * MAX_PROMPT_CHARACTERS}),
            ({"keywords[]": ["Stenograf", "GigaAM"]}, {"hotwords": "Stenograf, GigaAM"}),
            ({"keywords": "Stenograf", "hotwords": "GigaAM"}, {"hotwords": "Stenograf, GigaAM"}),
            ({"hotwords": "GigaAM"}, {"hotwords": "GigaAM"}),
            ({"temperature": "0"}, {}),
            ({"temperature": "0.0"}, {}),
            ({"temperature": "1"}, {"temperature": 1.0}),
            ({"vad_filter": "False"}, {"vad": False}),
            ({"vad": "true", "beam_size": "1", "trim": "30"}, {"vad": True, "beam_size": 1, "trim": 30.0}),
            ({"word_timestamps": "true"}, {"word_timestamps": True}),
            ({"chunking_strategy": "auto", "include[]": "logprobs"}, {}),
            ({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.7"}, {}),
            ({"user": "me", "metadata[x]": "y", "n": "1", "diarize": "false"}, {}),
        ],
    )
    def test_become_options(self, fields: dict[str, Any], options: dict[str, Any]) -> None:
        sent = [
            (name, text) for name, texts in fields.items() for text in ([texts] if isinstance(texts, str) else texts)
        ]
        assert openai_fields.read(sent).parameters.options == options

    def test_the_last_one_counts(self) -> None:
        asked = openai_fields.read([("response_format", "srt"), ("response_format", "text")])
        assert asked.response_format == "text"

    def test_retention_is_the_jobs_own(self) -> None:
        assert openai_fields.read([("retention", "60")]).parameters.retention == 60

    @pytest.mark.parametrize(
        ("fields", "code", "param"),
        [
            ({"language": "klingon"}, "language_unknown", "language"),
            ({"temperature": "1.5"}, "option_invalid", "temperature"),
            ({"temperature": "warm"}, "option_invalid", "temperature"),
            ({"response_format": "docx"}, "format_unknown", "response_format"),
            ({"response_format": "diarized_json"}, "option_invalid", "response_format"),
            ({"response_format": "srt", "stream": "true"}, "option_invalid", "response_format"),
            ({"stream": "maybe"}, "option_invalid", "stream"),
            ({"timestamp_granularities[]": "letter"}, "option_invalid", "timestamp_granularities"),
            ({"known_speaker_names[]": "Anna"}, "option_invalid", "known_speaker_names"),
            (
                {"known_speaker_references[]": "data:audio/wav;base64,AAAA"},
                "option_invalid",
                "known_speaker_references",
            ),
            ({"diarize": "true"}, "option_invalid", "diarize"),
            ({"model": "gpt-4o-transcribe-diarize"}, "option_invalid", "model"),
            ({"vad_filter": "si"}, "option_invalid", "vad_filter"),
            ({"beam_size": "99"}, "option_invalid", "beam_size"),
            ({"hotwords": "x" * 5000}, "option_invalid", "hotwords"),
            ({"webhook_url": "https://example.com/"}, "option_invalid", "webhook_url"),
            ({"priority": "1"}, "option_invalid", "priority"),
        ],
    )
    def test_that_make_no_sense(self, server: Server, fields: dict[str, str], code: str, param: str) -> None:
        message = refused(send(server, **fields), 400, code, param)
        if "speaker" in param or "diariz" in str(fields):
            assert "speakers" in message

    def test_a_recording_is_due(self, server: Server) -> None:
        answer = server.client.post(TRANSCRIPTIONS, files={"language": (None, b"ru")})
        assert refused(answer, 400, "bad_request").startswith("There is no file")
        answer = server.client.post(TRANSCRIPTIONS, files={"file": ("a.ogg", b"")})
        refused(answer, 400, "file_empty", "file")

    def test_chunked_and_of_no_kind(self, server: Server) -> None:
        """As Open WebUI sends it."""
        body = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n' \
               b"content-type: application/octet-stream\r\n\r\nsound\r\n" \
               b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'  # fmt: skip
        headers = {"content-type": "multipart/form-data; boundary=b"}
        with worker(server, lambda claim: server.service.leases.finish(claim, GOLDEN)):
            answer = server.client.post(TRANSCRIPTIONS, content=iter([body[:50], body[50:]]), headers=headers)
        assert answer.json()["text"] == GOLDEN.text


class TestErrors:
    def test_models_that_are_not_here(self, server: Server) -> None:
        refused(send(server, model="no-such"), 404, "model_not_found", "model")
        refused(send(server, model="../whisper-test"), 404, "model_not_found", "model")
        refused(send(server, model="large-v3"), 404, "model_not_found", "model")  # known, but offline

    def test_a_model_that_cannot_translate(self, server: Server, tmp_path: Path) -> None:
        with worker(server, lambda claim: fail(server, claim, "option_invalid")):
            answer = send(server, TRANSLATIONS, model="gigaam-test")
        refused(answer, 400, "option_invalid", "model")
        # Here the catalog knows it, and nothing is begun.
        models = tmp_path / "models"
        models.mkdir()
        (models / "turbo").symlink_to(MODELS / "whisper-test")
        with serve(settings_for(tmp_path, models_dir=models, default_model="turbo")) as other:
            message = refused(send(other, TRANSLATIONS, model="whisper-1"), 400, "option_invalid", "model")
            assert "turbo cannot translate" in message
            assert other.files() == []

    def test_of_the_recording(self, server: Server) -> None:
        with worker(server, lambda claim: fail(server, claim, "not_media")):
            answer = send(server)
        refused(answer, 400, "not_media", answer.json()["error"]["param"])

    def test_of_the_form(self, server: Server) -> None:
        refused(server.client.post(TRANSCRIPTIONS, json={"file": "x"}), 415, "unsupported_media_type")
        headers = {"content-type": "multipart/form-data; boundary=edge"}
        refused(server.client.post(TRANSCRIPTIONS, content=b"nonsense", headers=headers), 400, "bad_request")
        cut = b'--edge\r\ncontent-disposition: form-data; name="file"; filename="a.ogg"\r\n\r\nsou'
        refused(server.client.post(TRANSCRIPTIONS, content=cut, headers=headers), 400, "bad_request")
        big = server.client.post(TRANSCRIPTIONS, files={"file": ("a.ogg", bytes(1_000_001))})
        refused(big, 413, "upload_too_large", "file")

    def test_of_the_address(self, server: Server) -> None:
        refused(server.client.get(TRANSCRIPTIONS), 405, "method_not_allowed")
        refused(server.client.get("/v1/chat/completions"), 404, "not_found")
        refused(server.client.post(TRANSCRIPTIONS + "/"), 404, "not_found")

    def test_keys_and_rates(self, tmp_path: Path) -> None:
        settings = settings_for(tmp_path, auth=True, api_keys=("k" * 16,), rate_uploads=1)
        with serve(settings) as server:
            answer = send(server)
            refused(answer, 401, "invalid_api_key")
            assert "bearer" in answer.headers["www-authenticate"].lower()
            refused(server.client.get("/v1/models"), 401, "invalid_api_key")
            server.client.headers["authorization"] = "Bearer " + "k" * 16
            assert server.client.get("/v1/models").status_code == 200
            answered(server)
            answer = send(server)
            refused(answer, 429, "rate_limit_exceeded")
            assert int(answer.headers["retry-after"]) > 0

    def test_what_nobody_foresaw(self, server: Server) -> None:
        with worker(server, lambda claim: fail(server, claim, "internal")):
            answer = send(server)
        assert "secret place" not in refused(answer, 500, "internal")
        assert answer.headers["x-should-retry"] == "false"


class TestModels:
    def test_a_list(self, server: Server) -> None:
        found = server.client.get("/v1/models").json()
        assert found["object"] == "list"
        models = {model["id"]: model for model in found["data"]}
        assert set(models) == {"whisper-test", "gigaam-test", "gigaam-rnnt-test", *openai_fields.MODELS}
        created = int((MODELS / "whisper-test").stat().st_mtime)
        assert models["whisper-test"] == {
            "id": "whisper-test", "object": "model", "created": created, "owned_by": "faster-whisper",
        }  # fmt: skip
        assert models["whisper-1"]["created"] == created
        for name, model in models.items():
            assert server.client.get(f"/v1/models/{name}").json() == model

    def test_one_that_is_not_here(self, server: Server) -> None:
        for name in ("no-such", "a/b/c", "large-v3", "%2e%2e%2fwhisper-test"):
            refused(server.client.get(f"/v1/models/{name}"), 404, "model_not_found", "model")

    def test_a_repository_names_it_too(self, tmp_path: Path) -> None:
        models = tmp_path / "models"
        models.mkdir()
        (models / "small").symlink_to(MODELS / "whisper-test")
        with serve(settings_for(tmp_path, models_dir=models, default_model="not-here")) as server:
            assert server.client.get("/v1/models/Systran/faster-whisper-small").json()["id"] == "small"
            assert server.client.get("/v1/models/whisper-1").json()["created"] == 0

    def test_a_broken_one_is_not_listed(self, tmp_path: Path) -> None:
        (tmp_path / "models" / "broken").mkdir(parents=True)
        (tmp_path / "models" / "broken" / "config.json").write_text("{}")
        with serve(settings_for(tmp_path, models_dir=tmp_path / "models")) as server:
            found = [model["id"] for model in server.client.get("/v1/models").json()["data"]]
            assert found == list(openai_fields.MODELS)


class Stream:
    """A stream as its client sees it, event by event."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()

    def next(self) -> Any:
        """The next event: its JSON, `[DONE]`, a comment, or None at the end."""
        line = next(self._lines, None)
        if line is None:
            return None
        assert next(self._lines) == "", "no empty line after an event"
        if line.startswith(":"):
            return line
        data = line.removeprefix("data: ")
        assert data != line
        return data if data == "[DONE]" else json.loads(data)


def chunk(index: int, *texts: str) -> ChunkResult:
    return ChunkResult(
        index, index * 5.0, index * 5.0 + 5, tuple(Segment(index * 5.0, index * 5.0 + 1, text) for text in texts), "en"
    )


class TestStreams:
    @contextlib.contextmanager
    def opened(self, server: Server, work: Callable[[Claim], None], **fields: str) -> Iterator[tuple[Stream, Claim]]:
        """A stream of a job with which `work` was done; leaving it hangs up."""
        with worker(server, work) as claims, httpx2.Client(base_url=server.url, timeout=20, trust_env=False) as client:
            files = {"file": ("a.ogg", b"sound")}
            with client.stream("POST", TRANSCRIPTIONS, files=files, data={"stream": "true", **fields}) as answer:
                if answer.status_code != 200:
                    answer.read()
                until(lambda: claims)
                yield Stream(answer), claims[0]

    def append(self, server: Server, claim: Claim, *chunks: ChunkResult) -> None:
        server.service.leases.append(claim, list(chunks))
        tell(server, claim)

    def test_the_deltas_make_the_whole_text(self, server: Server) -> None:
        chunks = [chunk(0, "One.", "Two."), chunk(1), chunk(2, "", "«Три\u2028четыре»."), chunk(3, "Five.")]
        whole = transcript_of(*(segment for each in chunks for segment in each.segments))
        assert whole.text == "One. Two. «Три\u2028четыре». Five."
        with self.opened(server, lambda claim: self.append(server, claim, chunks[0])) as (stream, claim):
            assert stream.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert stream.answer.headers["x-accel-buffering"] == "no"
            assert stream.next() == {"type": "transcript.text.delta", "delta": "One. Two."}
            self.append(server, claim, chunks[1])
            self.append(server, claim, chunks[2])
            assert stream.next() == {"type": "transcript.text.delta", "delta": " «Три\u2028четыре»."}
            server.service.leases.finish(claim, whole, [chunks[3]])
            tell(server, claim)
            assert stream.next() == {"type": "transcript.text.delta", "delta": " Five."}
            assert stream.next() == {
                "type": "transcript.text.done",
                "text": whole.text,
                "languages": [{"code": "en"}],
                "usage": {"type": "duration", "seconds": 60},
            }
            assert stream.next() == "[DONE]"
            assert stream.next() is None

    @pytest.mark.parametrize("kind", ["json", "text", "verbose_json"])
    def test_a_short_recording_comes_at_once(self, server: Server, kind: str) -> None:
        done = transcript_of(spoken(0, "Hello there."))
        with self.opened(server, lambda claim: server.service.leases.finish(claim, done), response_format=kind) as (
            stream,
            _,
        ):
            assert stream.next()["delta"] == "Hello there."
            assert stream.next()["text"] == "Hello there."
            assert stream.next() == "[DONE]"

    def test_nothing_was_said(self, server: Server) -> None:
        with self.opened(server, lambda claim: server.service.leases.finish(claim, transcript_of())) as (stream, _):
            assert stream.next()["type"] == "transcript.text.done"
            assert stream.next() == "[DONE]"

    def test_an_error_before_the_first_text_has_its_status(self, server: Server) -> None:
        with self.opened(server, lambda claim: fail(server, claim, "not_media")) as (stream, _):
            refused(stream.answer, 400, "not_media", stream.answer.json()["error"]["param"])
            assert stream.answer.headers["x-should-retry"] == "false"

    def test_an_error_in_the_middle_is_an_event(self, server: Server) -> None:
        with self.opened(server, lambda claim: self.append(server, claim, chunk(0, "One."))) as (stream, claim):
            assert stream.next()["delta"] == "One."
            fail(server, claim, "not_media")
            tell(server, claim)
            assert stream.next() == {
                "error": {
                    "message": "It went wrong. Do it again.", "type": "invalid_request_error", "code": "not_media",
                    "param": "file",
                }
            }  # fmt: skip
            assert stream.next() is None

    def test_what_nobody_foresaw_in_the_middle(self, server: Server) -> None:
        with self.opened(server, lambda claim: self.append(server, claim, chunk(0, "One."))) as (stream, claim):
            assert stream.next()["delta"] == "One."
            server.client.delete(f"/api/v1/tasks/{claim.id}")
            assert stream.next()["error"]["code"] == "task_unknown"
            assert stream.next() is None

    def test_the_answer_begins_without_text_after_a_while(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_stream, "HEAD_SECONDS", 0.05)
        monkeypatch.setattr(openai_stream, "PING_SECONDS", 60)
        with self.opened(server, lambda claim: None) as (stream, claim):
            assert stream.next() == ": ping"
            self.append(server, claim, chunk(0, "One."))
            assert stream.next()["delta"] == "One."

    def test_signs_of_life(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openai_stream, "PING_SECONDS", 0.3)
        with self.opened(server, lambda claim: self.append(server, claim, chunk(0, "One."))) as (stream, claim):
            assert stream.next()["delta"] == "One."
            heard = threading.Event()

            def progress() -> None:  # no event for the client, and it must not hold the signs back either
                while not heard.wait(0.05):
                    server.service.leases.renew(claim, progress=time.monotonic() % 1)
                    tell(server, claim)

            thread = threading.Thread(target=progress)
            thread.start()
            try:
                assert [stream.next(), stream.next()] == [": ping"] * 2
            finally:
                heard.set()
                thread.join()

    def test_hanging_up_cancels(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sync, "GRACE_SECONDS", 0.05)
        with self.opened(server, lambda claim: self.append(server, claim, chunk(0, "One."))) as (stream, claim):
            assert stream.next()["delta"] == "One."
        until(lambda: server.service.store.get(claim.id).state == "cancelled")

        # The same again: what was read is there at once.
        with self.opened(server, lambda claim: None) as (stream, again):
            assert again.id == claim.id
            assert stream.next()["delta"] == "One."
            both = transcript_of(*chunk(0, "One.").segments, *chunk(1, "Two.").segments)
            server.service.leases.finish(again, both, [chunk(1, "Two.")])
            tell(server, again)
            assert stream.next()["delta"] == " Two."

    def test_hanging_up_before_the_first_text_cancels(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sync, "GRACE_SECONDS", 0.05)
        body = (
            b'--edge\r\ncontent-disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
            b'--edge\r\ncontent-disposition: form-data; name="file"; filename="a.ogg"\r\n\r\nsound\r\n--edge--\r\n'
        )
        head = f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n".encode()
        connection: socket.socket = server.connect()
        connection.sendall(head + b"content-type: multipart/form-data; boundary=edge\r\n\r\n" + body)
        until(lambda: server.service.store.page().items)
        connection.close()
        until(lambda: server.service.store.page().items[0].state == "cancelled")

    def test_stopping_is_told(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path)) as server:
            with self.opened(server, lambda claim: self.append(server, claim, chunk(0, "One."))) as (stream, claim):
                assert stream.next()["delta"] == "One."
                server.service.watcher.stopping()
                assert stream.next()["error"]["code"] == "service_stopping"
                assert stream.next() is None
            assert server.service.store.get(claim.id).state == "processing"


def fail(server: Server, claim: Claim, code: str) -> None:
    """Let a job end in an error of this code."""
    kind = type("Told", (NotMediaError,), {"code": code})
    server.service.leases.fail(claim, kind("It went wrong.", "Do it again."))


def test_the_description_tells_of_it(server: Server) -> None:
    described = server.client.get("/openapi.json").json()
    for path in (TRANSCRIPTIONS, TRANSLATIONS):
        operation = described["paths"][path]["post"]
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
        assert {"file", "model", "response_format", "stream", "timestamp_granularities[]"} <= set(form)
        assert ("language" in form) == (path == TRANSCRIPTIONS)
        assert {"application/json", "text/plain", "text/event-stream"} == set(operation["responses"]["200"]["content"])
        for status in ("400", "401", "404", "413", "429", "500", "503"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/OpenAIErrorAnswer"}
        assert "422" not in operation["responses"]
    assert "OpenAIModelList" in described["components"]["schemas"]
