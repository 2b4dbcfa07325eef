"""What comes out of a transcription: words, segments, and the transcript that holds them.

All times are seconds from the start of the recording, as floats. The classes are frozen: a transcript that was
handed out does not change under anyone's feet. `to_dict` gives the one JSON shape that every interface uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TIME_DIGITS = 3
"""Times on the wire are rounded to milliseconds."""

PROBABILITY_DIGITS = 4
"""Probabilities and log-probabilities on the wire are rounded to four digits."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word as the model wrote it, punctuation included."""

    start: float
    """Seconds."""
    end: float
    """Seconds, not before `start`."""
    text: str
    """The word without surrounding spaces."""
    probability: float | None = None
    """The model's own confidence, 0 to 1; None where the model gives none."""

    def to_dict(self) -> dict[str, Any]:
        """The word as JSON has it."""
        return {
            "word": self.text,
            "start": round(self.start, TIME_DIGITS),
            "end": round(self.end, TIME_DIGITS),
            "probability": _rounded(self.probability),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Word:
        """The word that `to_dict` wrote."""
        return cls(float(data["start"]), float(data["end"]), data["word"], data.get("probability"))


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech that belongs together: a sentence, or a part of one."""

    start: float
    """Seconds."""
    end: float
    """Seconds, not before `start`."""
    text: str
    """The text without surrounding spaces."""
    words: tuple[Word, ...] = ()
    """The words with their times; empty where they were not asked for."""
    speaker: str | None = None
    """A label of the speaker; None where speakers were not asked for."""
    avg_logprob: float | None = None
    """Mean log-probability of the tokens, natural logarithm, at most 0; None where the model gives none."""
    no_speech_prob: float | None = None
    """The model's belief that nobody speaks here, 0 to 1; None where the model gives none."""
    compression_ratio: float | None = None
    """Length of the text over its zlib-compressed length; above 2.4 it is likely a loop."""
    uncertain: bool = False
    """Whether it is worth checking by ear: the model was unsure of it, or a part was dropped; see docs/quality.md."""

    def to_dict(self, index: int) -> dict[str, Any]:
        """The segment as JSON has it; `index` becomes its id, counted from 0.

        `words` and `speaker` are there only where they were asked for.
        """
        data: dict[str, Any] = {
            "id": index,
            "start": round(self.start, TIME_DIGITS),
            "end": round(self.end, TIME_DIGITS),
            "text": self.text,
        }
        if self.words:
            data["words"] = [word.to_dict() for word in self.words]
        if self.speaker is not None:
            data["speaker"] = self.speaker
        data["avg_logprob"] = _rounded(self.avg_logprob)
        data["no_speech_prob"] = _rounded(self.no_speech_prob)
        data["compression_ratio"] = _rounded(self.compression_ratio)
        data["uncertain"] = self.uncertain
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Segment:
        """The segment that `to_dict` wrote."""
        return cls(
            start=float(data["start"]),
            end=float(data["end"]),
            text=data["text"],
            words=tuple(Word.from_dict(word) for word in data.get("words", ())),
            speaker=data.get("speaker"),
            avg_logprob=data.get("avg_logprob"),
            no_speech_prob=data.get("no_speech_prob"),
            compression_ratio=data.get("compression_ratio"),
            uncertain=bool(data.get("uncertain", False)),
        )


@dataclass(frozen=True, slots=True)
class TranscriptWarning:
    """Something the reader of the result should know, though there is a result."""

    code: str
    """Stable, machine-readable name, such as `audio_damaged`."""
    message: str
    """One sentence for a person."""

    def to_dict(self) -> dict[str, str]:
        """The warning as JSON has it."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording, with what is worth knowing about how it was read."""

    segments: tuple[Segment, ...]
    """In order of time."""
    language: str | None
    """ISO 639 code, as given or as detected; None where nothing was said."""
    language_probability: float | None
    """0 to 1; None where the language was given."""
    duration: float
    """Seconds of audio that were read, silence included."""
    model: str
    """The name of the model that read it."""
    engine: str
    """The engine that ran the model."""
    device: str
    """The device really used, such as `cpu` or `cuda:0`."""
    compute_type: str
    """The number format really used, such as `int8` or `float16`."""
    model_reason: str | None = None
    """Why this model read it, as a line for people; None where it was named."""
    warnings: tuple[TranscriptWarning, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds of wall time by stage: `load`, `language`, `total`; see `Transcriber`."""

    @property
    def text(self) -> str:
        """The whole text, segments joined by a space."""
        return " ".join(segment.text for segment in self.segments if segment.text)

    @property
    def words(self) -> tuple[Word, ...]:
        """All words of all segments; empty where they were not asked for."""
        return tuple(word for segment in self.segments for word in segment.words)

    def to_dict(self) -> dict[str, Any]:
        """The transcript as JSON has it: the same from the API, the command line and the json files."""
        return {
            "text": self.text,
            "language": self.language,
            "language_probability": _rounded(self.language_probability),
            "duration": round(self.duration, TIME_DIGITS),
            "segments": [segment.to_dict(index) for index, segment in enumerate(self.segments)],
            "model": self.model,
            "model_reason": self.model_reason,
            "engine": self.engine,
            "device": self.device,
            "compute_type": self.compute_type,
            "warnings": [warning.to_dict() for warning in self.warnings],
            "timings": {stage: round(seconds, TIME_DIGITS) for stage, seconds in self.timings.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Transcript:
        """The transcript that `to_dict` wrote, to the digits that it wrote."""
        return cls(
            segments=tuple(Segment.from_dict(segment) for segment in data["segments"]),
            language=data["language"],
            language_probability=data["language_probability"],
            duration=float(data["duration"]),
            model=data["model"],
            model_reason=data.get("model_reason"),
            engine=data["engine"],
            device=data["device"],
            compute_type=data["compute_type"],
            warnings=tuple(TranscriptWarning(**warning) for warning in data["warnings"]),
            timings=dict(data["timings"]),
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, PROBABILITY_DIGITS)
