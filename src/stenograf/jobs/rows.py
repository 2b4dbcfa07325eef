"""Rows of the tables -> the objects of the program, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import RowMapping

from stenograf.jobs.job import Job, JobError
from stenograf.transcript import Segment, TranscriptWarning

if TYPE_CHECKING:
    from stenograf.chunk import ChunkResult

_JOB_FIELDS = tuple(item.name for item in fields(Job))


def job_from(row: RowMapping) -> Job:
    """The job that a row of `jobs` tells of."""
    values = {name: row[name] for name in _JOB_FIELDS}
    values["error"] = JobError(**row["error"]) if row["error"] else None
    return Job(**values)


def chunk_to(chunk: ChunkResult) -> dict[str, Any]:
    """A chunk's result as JSON, exact to the last digit: a resumed job gives the same transcript."""
    return {
        "index": chunk.index,
        "start": chunk.start,
        "end": chunk.end,
        "language": chunk.language,
        "language_probability": chunk.language_probability,
        "segments": [
            {
                "start": s.start,
                "end": s.end,
                "text": s.text,
                "words": [
                    {"word": w.text, "start": w.start, "end": w.end, "probability": w.probability} for w in s.words
                ],
                "speaker": s.speaker,
                "avg_logprob": s.avg_logprob,
                "no_speech_prob": s.no_speech_prob,
                "compression_ratio": s.compression_ratio,
                "uncertain": s.uncertain,
            }
            for s in chunk.segments
        ],
        "warnings": [warning.to_dict() for warning in chunk.warnings],
    }


def chunk_from(data: Mapping[str, Any]) -> ChunkResult:
    """The chunk's result that `chunk_to` wrote."""
    from stenograf.chunk import ChunkResult

    return ChunkResult(
        index=data["index"],
        start=data["start"],
        end=data["end"],
        segments=tuple(Segment.from_dict(segment) for segment in data["segments"]),
        language=data["language"],
        language_probability=data["language_probability"],
        warnings=tuple(TranscriptWarning(**warning) for warning in data.get("warnings", ())),
    )
