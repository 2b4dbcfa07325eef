"""The answers of OpenAI's audio API, for its description and for the code that writes them.

Where OpenAI's clients expect a number that a model here does not give, a neutral one stands: no token ids, 0 for `seek`
and for log-probabilities that are not known.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from stenograf import formats
from stenograf.api.openai_fields import Asked
from stenograf.languages import LANGUAGES
from stenograf.transcript import Segment, Transcript

TEXT = "text/plain; charset=utf-8"
"""Of subtitles too, as OpenAI has it."""


class _Shape(BaseModel):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class Usage(_Shape):
    """What OpenAI would charge for."""

    type: Literal["duration"] = "duration"
    seconds: int = Field(description="Length of the recording, rounded up.")


class LanguageCode(_Shape):
    """A language that was heard."""

    code: str = Field(examples=["ru"])


class _Sparse(BaseModel):
    """What has no value is left out."""


class Transcription(_Sparse):
    """`response_format=json`."""

    text: str = Field(examples=["Добрый день, коллеги!"])
    languages: list[LanguageCode] | None = Field(default=None, description="Not for translations.")
    usage: Usage


class TranscriptionSegment(_Shape):
    """A stretch of speech."""

    id: int
    seek: int = 0
    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    text: str = Field(description="With a space before it, as Whisper writes it.")
    tokens: list[int] = []
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptionWord(_Shape):
    """A word."""

    word: str
    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")


class VerboseTranscription(_Sparse):
    """`response_format=verbose_json`."""

    task: Literal["transcribe", "translate"]
    language: str = Field(description="English name of the language of the text.", examples=["russian"])
    duration: float = Field(description="Seconds.")
    text: str
    segments: list[TranscriptionSegment] | None = None
    words: list[TranscriptionWord] | None = None
    usage: Usage


class OpenAIModel(_Shape):
    """A model that requests may name."""

    id: str = Field(examples=["whisper-1"])
    object: Literal["model"] = "model"
    created: int = Field(description="When it came to this server, seconds since 1970.")
    owned_by: str = Field(description="The engine that runs it.", examples=["faster-whisper"])


class OpenAIModelList(_Shape):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class OpenAIError(_Shape):
    """What went wrong."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None
    code: str = Field(examples=["model_not_found"])


class OpenAIErrorAnswer(_Shape):
    """Every error under `/v1`."""

    error: OpenAIError


def answer(transcript: Transcript, asked: Asked) -> Response:
    """The transcript in the format that was asked for."""
    match asked.response_format:
        case "text":
            return Response(f"{transcript.text}\n", media_type=TEXT)
        case "srt" | "vtt":
            return Response(formats.render(transcript, asked.response_format), media_type=TEXT)
        case "verbose_json":
            return _json(_verbose(transcript, asked))
    return _json(Transcription(text=transcript.text, languages=_languages(transcript, asked), usage=_usage(transcript)))


def done_event(transcript: Transcript, asked: Asked) -> dict[str, Any]:
    """The last event of a stream."""
    whole = Transcription(text=transcript.text, languages=_languages(transcript, asked), usage=_usage(transcript))
    return {"type": "transcript.text.done", **whole.model_dump(mode="json", exclude_none=True)}


def delta_event(text: str) -> dict[str, Any]:
    """The event for text that is new; all of them put together are the whole text."""
    return {"type": "transcript.text.delta", "delta": text}


def _json(shape: BaseModel) -> Response:
    return Response(shape.model_dump_json(exclude_none=True), media_type="application/json")


def _verbose(transcript: Transcript, asked: Asked) -> VerboseTranscription:
    language = "en" if asked.task == "translate" else transcript.language
    words = [TranscriptionWord(word=word.text, start=word.start, end=word.end) for word in transcript.words]
    return VerboseTranscription(
        task=asked.task,
        language=LANGUAGES.get(language, language) if language else "unknown",
        duration=transcript.duration,
        text=transcript.text,
        segments=[_segment(number, segment, asked) for number, segment in enumerate(transcript.segments)]
        if "segment" in asked.granularities
        else None,
        words=words if "word" in asked.granularities else None,
        usage=_usage(transcript),
    )


def _segment(number: int, segment: Segment, asked: Asked) -> TranscriptionSegment:
    ratio = segment.compression_ratio
    return TranscriptionSegment(
        id=number,
        start=segment.start,
        end=segment.end,
        text=f" {segment.text}",
        temperature=asked.temperature,
        avg_logprob=segment.avg_logprob or 0.0,
        compression_ratio=_compression_ratio(segment.text) if ratio is None else ratio,
        no_speech_prob=segment.no_speech_prob or 0.0,
    )


def _compression_ratio(text: str) -> float:
    data = text.encode("utf-8", "replace")
    return round(len(data) / len(zlib.compress(data)), 4)


def _languages(transcript: Transcript, asked: Asked) -> list[LanguageCode] | None:
    if asked.task == "translate":
        return None
    return [LanguageCode(code=transcript.language)] if transcript.language else []


def _usage(transcript: Transcript) -> Usage:
    return Usage(seconds=math.ceil(transcript.duration))
