"""A file -> segments, with progress, cancelling and checkpoints, through the real engines."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from jiwer import wer

import media
from conftest import Clip, clips
from stenograf.audio import AudioReader
from stenograf.chunk import ChunkResult
from stenograf.errors import (
    CancelledError,
    FileMissingError,
    LanguageUnknownError,
    OptionInvalidError,
    RecordingTooLongError,
)
from stenograf.options import Options
from stenograf.transcriber import Progress, Transcriber
from work import Watched


def plain(text: str) -> str:
    return "".join(c for c in text.lower().replace("ё", "е") if c.isalnum() or c.isspace())


def short(model: str, language: str = "ru") -> Clip:
    return next(c for c in clips() if model in c.exact and c.language == language and c.duration < 6)


def long(language: str = "ru") -> Clip:
    return next(c for c in clips() if c.data.get("sentences") and c.language == language)


@pytest.mark.parametrize("model", ["whisper-test", "gigaam-test", "gigaam-rnnt-test"])
def test_every_clip_that_is_known_to_be_exact(load_model: Callable[[str], Transcriber], model: str) -> None:
    transcriber = load_model(model)
    exact = [c for c in clips() if model in c.exact and not c.data.get("sentences")]
    assert len(exact) >= 8
    for clip in exact:
        transcript = transcriber.transcribe(clip.path, Options(language=clip.language, vad=False))
        assert plain(transcript.text) == plain(clip.text), clip.path.name
        assert transcript.duration == pytest.approx(clip.duration, abs=0.2)
    cut = [transcriber.transcribe(clip.path, Options(language=clip.language)).text for clip in exact]
    assert wer([plain(clip.text) for clip in exact], [plain(text) for text in cut]) < 0.05


@pytest.mark.parametrize(
    ("model", "language"),
    [("whisper-test", "ru"), ("whisper-test", "en"), ("gigaam-test", "ru"), ("gigaam-rnnt-test", "ru")],
)
def test_a_long_recording(load_model: Callable[[str], Transcriber], model: str, language: str) -> None:
    clip = long(language)
    transcript = load_model(model).transcribe(clip.path, Options(language=language))
    assert wer(plain(clip.text), plain(transcript.text)) < 0.1
    starts = [segment.start for segment in transcript.segments]
    assert starts == sorted(starts)
    for sentence in clip.data["sentences"]:  # each is found where it was said
        assert any(s.start < sentence["end"] and s.end > sentence["start"] for s in transcript.segments)


@pytest.mark.parametrize("language", ["ru", "en"])
def test_the_language_is_detected(whisper: Transcriber, language: str) -> None:
    clip = short("whisper-test", language)
    transcript = whisper.transcribe(clip.path)
    assert transcript.language == language
    assert transcript.language_probability is not None
    assert transcript.language_probability > 0.5
    assert plain(transcript.text) == plain(clip.text)
    assert transcript.timings["language"] > 0


def test_a_model_of_one_language_needs_no_detection(gigaam: Transcriber) -> None:
    transcript = gigaam.transcribe(short("gigaam-test").path)
    assert (transcript.language, transcript.language_probability) == ("ru", None)


def test_the_result_says_what_made_it(whisper: Transcriber) -> None:
    transcript = whisper.transcribe(short("whisper-test").path)
    assert (transcript.model, transcript.engine, transcript.device) == ("whisper-test", "faster-whisper", "cpu")
    assert transcript.compute_type.startswith("int8")
    assert transcript.timings["total"] > 0


def test_translation(whisper: Transcriber) -> None:
    clip = next(c for c in clips() if c.language == "ru" and c.data.get("translation"))
    transcript = whisper.transcribe(clip.path, Options(language="ru", task="translate"))
    assert plain(transcript.text) == plain(clip.data["translation"])


def test_word_times_follow_the_recording(whisper: Transcriber) -> None:
    clip = long()
    words = whisper.transcribe(clip.path, Options(language="ru", word_timestamps=True)).words
    assert len(words) > 20
    for first, second in pairwise(words):
        assert first.start <= first.end <= second.start + 1e-6
    assert words[-1].end <= clip.duration + 0.1


def test_trim(whisper: Transcriber) -> None:
    clip = long()
    second = clip.data["sentences"][1]
    transcript = whisper.transcribe(clip.path, Options(language="ru", trim=second["start"] - 0.1))
    assert plain(transcript.text) == plain(clip.data["sentences"][0]["text"])
    assert transcript.duration == pytest.approx(second["start"] - 0.1, abs=0.01)


def test_without_vad(whisper: Transcriber) -> None:
    clip = short("whisper-test")
    transcript = whisper.transcribe(clip.path, Options(language="ru", vad=False))
    assert plain(transcript.text) == plain(clip.text)


@pytest.mark.parametrize("vad", [True, False])
def test_no_text_on_silence_and_noise(whisper: Transcriber, tmp_path: Path, vad: bool) -> None:
    noise = np.random.default_rng(0).normal(0, 0.002, 16_000 * 12).astype(np.float32)
    path = media.write(tmp_path / "noise.wav", noise)
    transcript = whisper.transcribe(path, Options(vad=vad))
    assert transcript.text == ""
    assert transcript.duration == pytest.approx(12)
    if vad:
        assert [warning.code for warning in transcript.warnings] == ["no_speech"]
        assert transcript.language is None


def test_damage_is_told_in_the_result(gigaam: Transcriber, tmp_path: Path) -> None:
    whole = long().path.read_bytes()
    path = tmp_path / f"cut{long().path.suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    transcript = gigaam.transcribe(path)
    assert transcript.text
    assert {warning.code for warning in transcript.warnings} <= {"audio_truncated", "audio_damaged"}
    assert transcript.warnings


def test_an_open_file(whisper: Transcriber) -> None:
    clip = short("whisper-test")
    with clip.path.open("rb") as file:
        assert plain(whisper.transcribe(file, Options(language="ru")).text) == plain(clip.text)


# Progress, cancelling, checkpoints


def test_progress_counts_audio_time_up_to_the_end(whisper: Transcriber) -> None:
    clip = long()
    seen: list[Progress] = []
    transcript = whisper.transcribe(clip.path, Options(language="ru"), on_progress=seen.append)
    positions = [progress.position for progress in seen]
    assert len(seen) > 4
    assert positions == sorted(positions)
    assert seen[-1].fraction == 1
    assert seen[-1].position == transcript.duration
    assert tuple(segment for progress in seen for segment in progress.segments) == transcript.segments
    with AudioReader(clip.path) as reader:
        assert seen[0].duration == reader.duration


def test_cancelling_stops_at_once(whisper: Transcriber) -> None:
    seen: list[Progress] = []
    with pytest.raises(CancelledError):
        whisper.transcribe(
            long().path, Options(language="ru"), on_progress=seen.append, cancelled=lambda: len(seen) >= 2
        )
    assert len(seen) == 2


def test_cancelling_hours_of_silence(whisper: Transcriber, tmp_path: Path) -> None:
    path = media.write(tmp_path / "silence.flac", np.zeros(16_000 * 300, np.float32))
    asked = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(CancelledError):
        whisper.transcribe(path, cancelled=cancelled)
    assert len(asked) == 4


def test_a_retry_goes_on_after_the_last_chunk(whisper: Transcriber) -> None:
    clip = long()
    chunks: list[ChunkResult] = []
    whole = whisper.transcribe(clip.path, on_chunk=chunks.append)
    assert len(chunks) > 4
    again: list[ChunkResult] = []
    resumed = whisper.transcribe(clip.path, done=chunks[:3], on_chunk=again.append)
    assert [chunk.index for chunk in again] == [chunk.index for chunk in chunks[3:]]
    assert resumed.segments == whole.segments
    assert (resumed.language, resumed.language_probability) == (whole.language, whole.language_probability)


# Draining, and recordings that are too long


def test_draining_hands_out_what_is_being_read_and_begins_nothing_new(whisper: Transcriber) -> None:
    clip = long()
    whole: list[ChunkResult] = []
    options = Options(language="ru", beam_size=1, temperature=0.0, trim=42.0)
    undisturbed = whisper.transcribe(clip.path, options, on_chunk=whole.append)
    kept: list[ChunkResult] = []
    with pytest.raises(CancelledError):
        whisper.transcribe(clip.path, options, on_chunk=kept.append, draining=lambda: len(kept) >= 2)
    assert 2 <= len(kept) < len(whole)
    assert kept == whole[: len(kept)]
    again = whisper.transcribe(clip.path, options, done=kept, draining=lambda: False)
    assert again.segments == undisturbed.segments


def test_no_chunk_is_begun_once_it_drains(whisper: Transcriber, tmp_path: Path) -> None:
    with AudioReader(short("whisper-test").path) as file:
        said = np.concatenate(list(file.blocks()))[:24_000]
    pause = np.zeros(52_000, np.float32)  # so that there are two chunks in each block of sound
    path = media.write(tmp_path / "bursts.wav", np.concatenate([said, pause] * 8))
    watched = Watched(whisper._loaded)
    reader = Transcriber(watched, model="whisper-test", engine="faster-whisper")
    begun: list[int] = []
    with pytest.raises(CancelledError):
        reader.transcribe(
            path,
            Options(language="ru", beam_size=1, temperature=0.0),
            on_chunk=lambda _chunk: begun.append(len(watched.read)),
            draining=lambda: bool(begun),
        )
    assert len(watched.read) == begun[0] == len(begun)


def test_draining_before_anything_was_read(whisper: Transcriber) -> None:
    kept: list[ChunkResult] = []
    for language in ("ru", None):
        with pytest.raises(CancelledError):
            whisper.transcribe(long().path, Options(language=language), on_chunk=kept.append, draining=lambda: True)
    assert kept == []


def test_draining_in_hours_of_silence(whisper: Transcriber, tmp_path: Path) -> None:
    path = media.write(tmp_path / "silence.flac", np.zeros(16_000 * 300, np.float32))
    asked = []

    def draining() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(CancelledError):
        whisper.transcribe(path, draining=draining)
    assert len(asked) < 10


def test_a_cancel_while_draining_is_a_cancel(whisper: Transcriber) -> None:
    kept: list[ChunkResult] = []
    with pytest.raises(CancelledError):
        whisper.transcribe(
            long().path,
            Options(language="ru", beam_size=1),
            on_chunk=kept.append,
            draining=lambda: bool(kept),
            cancelled=lambda: bool(kept),
        )
    assert len(kept) == 1


def test_a_recording_that_is_too_long(whisper: Transcriber, tmp_path: Path) -> None:
    read: list[ChunkResult] = []
    with pytest.raises(RecordingTooLongError, match="meeting"):
        whisper.transcribe(long().path, on_chunk=read.append, longest=20, name="meeting.ogg")
    assert read == []
    clip = short("whisper-test")
    assert whisper.transcribe(clip.path, Options(language="ru"), longest=clip.duration + 1).text
    first = long().data["sentences"][0]["end"]
    assert whisper.transcribe(long().path, Options(language="ru", trim=first), longest=first + 1).text


# What cannot be done is refused before the work


def test_translate_on_a_model_that_cannot(gigaam: Transcriber) -> None:
    with pytest.raises(OptionInvalidError, match="gigaam-test"):
        gigaam.transcribe(short("gigaam-test").path, Options(task="translate"))


def test_a_language_that_the_model_does_not_read(gigaam: Transcriber) -> None:
    with pytest.raises(LanguageUnknownError, match="en"):
        gigaam.transcribe(short("gigaam-test").path, Options(language="en"))


def test_a_prompt_that_is_passed_over_is_told(gigaam: Transcriber) -> None:
    transcript = gigaam.transcribe(short("gigaam-test").path, Options(prompt="Привет"))
    assert [warning.code for warning in transcript.warnings] == ["option_ignored"]


def test_a_missing_file(whisper: Transcriber, tmp_path: Path) -> None:
    with pytest.raises(FileMissingError):
        whisper.transcribe(tmp_path / "none.ogg")
