"""The chunk: a stretch of audio handed to a model at once. Progress, cancelling and retries all count in chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stenograf.options import Options
from stenograf.transcript import Segment, TranscriptWarning

if TYPE_CHECKING:
    from stenograf.audio import Samples


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A stretch of one recording, with all that an engine needs to know to transcribe it."""

    index: int
    """Its place in the recording, counted from 0."""
    start: float
    """Seconds from the start of the recording."""
    audio: Samples
    """Shape (samples,), 16 kHz mono float32."""
    options: Options = field(default_factory=Options)
    """Language, task, prompt and the rest; chunks of different requests may stand in one batch."""

    @property
    def end(self) -> float:
        """Seconds from the start of the recording."""
        from stenograf.resampling import SAMPLE_RATE  # here: whoever only names chunks need not load FFmpeg

        return self.start + len(self.audio) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What a model read in one chunk; segments carry times of the recording, not of the chunk."""

    index: int
    """The chunk's index."""
    start: float
    """Seconds: where the chunk starts."""
    end: float
    """Seconds: where the chunk ends."""
    segments: tuple[Segment, ...]
    """What was said, in order of time; empty where the model heard nothing."""
    language: str | None = None
    """The language it was read as."""
    language_probability: float | None = None
    """0 to 1, where the recording's language was detected; the same for all its chunks."""
    warnings: tuple[TranscriptWarning, ...] = ()
    """What was dropped from it; see `guards`."""
