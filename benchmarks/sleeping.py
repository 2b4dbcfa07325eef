"""`stenograf` whose engine sleeps: `python benchmarks/sleeping.py worker`. All around the engine is the real thing.

How long it sleeps, the name of the recording tells: `5 chunks of 0.1 s.flac`. Each chunk gives 25 words, which is what
people say in ten seconds. Every worker process has one slot and takes both lanes, so that processes can be compared by
their number alone; with Celery that is so anyway. Of each job it is written down which process did it: the column
`device`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from stenograf.chunk import ChunkResult
from stenograf.cli import main
from stenograf.jobs import crew, preload
from stenograf.jobs.post import Post, needs_of
from stenograf.reader import Reader
from stenograf.settings import Settings
from stenograf.transcript import Segment, Transcript, Word

WORDS = 25
CHUNK_SECONDS = 10.0
"""Of sound, as the results have it."""


def name(chunks: int, seconds: float) -> str:
    """What to call a recording whose chunks take so many seconds each."""
    return f"{chunks} chunks of {seconds:g} s.flac"


def read(
    self: Reader,
    source: object,
    options: object,
    *,
    on_model: Callable[[Any], None],
    on_chunk: Callable[[ChunkResult], None],
    done: list[ChunkResult] | tuple[()] = (),
    name: str,
    **_: object,
) -> Transcript:
    """`Reader.read`, asleep."""
    found = re.match(r"(\d+) chunks of (\S+) s\.", name)
    count, seconds = (int(found[1]), float(found[2])) if found else (1, 0.0)
    loaded = SimpleNamespace(model="sleeping", engine="sleeping", device=f"pid {os.getpid()}", compute_type="none")
    on_model(loaded)
    results = list(done)
    for index in range(len(results), count):
        time.sleep(seconds)
        results.append(_chunk(index))
        on_chunk(results[-1])
    segments = tuple(segment for result in results for segment in result.segments)
    return Transcript(segments, "ru", None, count * CHUNK_SECONDS, **vars(loaded))


def _chunk(index: int) -> ChunkResult:
    start, step = index * CHUNK_SECONDS, CHUNK_SECONDS / WORDS
    words = tuple(Word(start + n * step, start + (n + 1) * step, "слово", 0.9 + n / 1000) for n in range(WORDS))
    text = " ".join(word.text for word in words)
    segment = Segment(start, start + CHUNK_SECONDS, text, words, None, -0.21, 0.01, 1.4)
    return ChunkResult(index, start, start + CHUNK_SECONDS, (segment,), "ru")


def _posts(settings: Settings, *, hinted: bool) -> list[Post]:
    needs = needs_of(settings)
    return [Post(f"worker-{n + 1}", 1, needs=needs, nice=0, hinted=hinted) for n in range(settings.workers or 1)]


# Here, not below: processes that are started anew import this module, and must have it too.
Reader.read = read  # type: ignore[method-assign,assignment]
preload.preload = lambda *_arguments: None
crew.posts = _posts  # type: ignore[attr-defined]

if __name__ == "__main__":
    main()
