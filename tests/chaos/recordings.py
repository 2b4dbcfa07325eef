"""What is sent: real recordings, each with what an undisturbed run reads in it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from media import RATE, write
from stenograf.audio import AudioReader, Samples
from stenograf.chunk import ChunkResult
from stenograf.runtime import Runtime

CLIPS = Path(__file__).parent.parent / "audio"
PAUSE = np.zeros(RATE, np.float32)
"""Between the parts of a recording that is put together: a second, so that a chunk ends there or before."""


@dataclass(frozen=True)
class Recording:
    """A file, how it is to be read, and what comes of it where nothing goes wrong."""

    path: Path
    options: Mapping[str, str] = field(default_factory=dict)
    """As the form has them."""
    transcript: Mapping[str, Any] = field(default_factory=dict)
    """Of the undisturbed run, in the JSON of the wire, without `timings`."""
    chunks: int = 0
    """How many pieces the model reads it in."""


def samples_of(path: Path) -> Samples:
    """The sound of a file."""
    with AudioReader(path) as reader:
        return np.concatenate(list(reader.blocks()))


def joined(path: Path, parts: list[Path]) -> Path:
    """Write a longer recording, made of others with a second of silence between them."""
    pieces = [piece for part in parts for piece in (samples_of(part), PAUSE)]
    return write(path, np.concatenate(pieces))


def undisturbed(path: Path, runtime: Runtime, **options: str) -> Recording:
    """Read a file in this process, with the settings of the service."""
    read: list[ChunkResult] = []
    asked = {name: value for name, value in options.items() if name != "model"}
    transcript = runtime.reader.read(path, runtime.options_of(asked), model=options.get("model"), on_chunk=read.append)
    return Recording(path, options, without_timings(transcript.to_dict()), len(read))


def meeting_in(folder: Path, runtime: Runtime) -> Recording:
    """A recording for the lane `long`: a little more than two minutes."""
    path = joined(folder / "meeting.ogg", [clip("ru-long.ogg"), clip("ru-long.ogg")])
    return undisturbed(path, runtime, language="ru")


def notes_of(runtime: Runtime) -> list[Recording]:
    """Recordings of 2 to 4 s, for either of two models, and last one of a minute."""
    notes = [undisturbed(clip(f"{name}.flac"), runtime) for name in ("ru-01", "en-01", "ru-02", "en-02", "en-03")]
    notes += [undisturbed(clip(f"ru-{number:02}.flac"), runtime, model="gigaam-test") for number in range(1, 11)]
    return [*notes, undisturbed(clip("en-long.ogg"), runtime)]


def pile_of(jobs: int, seed: int, notes: Sequence[Recording], meeting: Recording) -> list[Recording]:
    """So many, in a random order: notes, and for each 200 the one of a minute and the meeting."""
    pile = ([notes[-1], meeting] * max(jobs // 200, 1))[:jobs]
    pile += itertools.islice(itertools.cycle(notes[:-1]), jobs - len(pile))
    random.Random(seed).shuffle(pile)
    return pile


def without_timings(transcript: Mapping[str, Any]) -> dict[str, Any]:
    """All of a transcript that must be the same in every run."""
    return {name: value for name, value in transcript.items() if name != "timings"}


def clip(name: str) -> Path:
    """A recording of `tests/audio`."""
    return CLIPS / name
