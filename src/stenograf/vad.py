"""Speech regions -> chunks.

Sound comes in as blocks and leaves as chunks, cut at silences, none longer than the model's window. Nothing overlaps,
so no word is read twice; each stretch of speech keeps some silence around it, so no first letter is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stenograf.audio import SAMPLE_RATE, Samples
from stenograf.chunk import Chunk
from stenograf.errors import EngineMissingError

WINDOW = 512
"""Samples that one score stands for (32 ms): the step of Silero at 16 kHz."""

THRESHOLD = 0.5
"""A score from here on starts a region: Silero's own default."""

NEGATIVE_THRESHOLD = 0.35
"""A score below this may end one: Silero's default, `THRESHOLD` - 0.15."""

MIN_SPEECH = round(0.1 * SAMPLE_RATE)
"""Samples: a shorter region is a click."""

MIN_SILENCE = round(0.2 * SAMPLE_RATE)
"""Samples: a shorter silence is a consonant and not a pause."""

PADDING = round(0.25 * SAMPLE_RATE)
"""Samples of silence kept on either side, at most half of the pause. Without it first letters are lost:
`benchmarks/chunking.py` has the figures."""

MERGE_SHARE = 0.1
"""Regions with a pause between them of more than this share of the longest chunk go to different chunks, between the
bounds of `MERGE_BOUNDS`. Short pauses are kept inside, so that a sentence stays whole and a window of fixed length is
well filled: Whisper's costs the same however little is in it."""

MERGE_BOUNDS = (round(1.5 * SAMPLE_RATE), round(3.0 * SAMPLE_RATE))
"""Samples."""

Scores = npt.NDArray[np.float32]
"""Shape (windows,), 0 to 1."""


class Detector(Protocol):
    """Gives each window of sound a score; keeps what it must remember between two calls."""

    def __call__(self, windows: npt.NDArray[np.float32]) -> Scores:
        """Scores for windows of shape (windows, WINDOW), in order and without holes."""
        ...


class SileroDetector:
    """The probability of speech by Silero VAD v6 (the file that faster-whisper brings; MIT licence).

    All windows of a call go through the network at once; its state goes on to the next call, so that a recording of
    any length is read in blocks with the same scores.
    """

    _CONTEXT = 64  # samples of the window before, which the network wants in front of each window

    def __init__(self) -> None:
        self._session = _silero_session()
        self._h = np.zeros((1, 1, 128), np.float32)
        self._c = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(self._CONTEXT, np.float32)

    def __call__(self, windows: npt.NDArray[np.float32]) -> Scores:
        contexts = np.vstack([self._context, windows[:-1, -self._CONTEXT :]])
        self._context = windows[-1, -self._CONTEXT :].copy()
        scores, self._h, self._c = self._session.run(
            None, {"input": np.hstack([contexts, windows]), "h": self._h, "c": self._c}
        )
        return np.asarray(scores, np.float32).reshape(-1)


class EverythingDetector:
    """For `vad` off: all sound counts as speech, and a louder window scores higher, so that cuts fall into quiet."""

    def __call__(self, windows: npt.NDArray[np.float32]) -> Scores:
        loudness = np.sqrt(np.mean(np.square(windows, dtype=np.float32), axis=1))
        return np.asarray(THRESHOLD + np.minimum(loudness, 1) / 2, np.float32)


@cache
def _silero_session() -> Any:
    # find_spec does not import the package: reading a path must not cost the load of an engine.
    package = find_spec("faster_whisper")
    model = Path(package.origin).parent / "assets" / "silero_vad_v6.onnx" if package and package.origin else None
    if model is None or not model.is_file():
        raise EngineMissingError(
            "The voice activity detector (silero_vad_v6.onnx of faster-whisper) is not installed.",
            "Run: pip install 'faster-whisper==1.2.1'. Or transcribe without it (--no-vad).",
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it would keep the largest batch for good
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])


def chunks(blocks: Iterable[Samples], max_seconds: float, *, vad: bool = True) -> Iterator[Chunk]:
    """Cut a recording into chunks of at most `max_seconds`, as its blocks come in.

    With `vad`, stretches without speech are left out. Memory is bounded by `max_seconds` and the size of a block.
    """
    chunker = Chunker(max_seconds, SileroDetector() if vad else EverythingDetector())
    for block in blocks:
        yield from chunker.feed(block)
    yield from chunker.finish()


class Chunker:
    """Finds regions of speech window by window and packs them into chunks. All positions are samples."""

    def __init__(self, max_seconds: float, detector: Detector) -> None:
        """`max_seconds` is at least 2."""
        self._max = int(max_seconds * SAMPLE_RATE)
        self._merge_gap = min(max(round(self._max * MERGE_SHARE), MERGE_BOUNDS[0]), MERGE_BOUNDS[1])
        self._detector = detector
        self._buffer = np.empty(0, np.float32)
        self._buffer_start = 0
        self._scores: list[float] = []  # from the start of the buffer on, a window each
        self._position = 0  # up to here windows have been scored
        self._regions: list[tuple[int, int]] = []  # closed regions of the chunk to come
        self._open: int | None = None  # start of the region that is going on
        self._silence: int | None = None  # where the silence began that may end it
        self._is_rest = False  # whether the open region is what a cut left over
        self._emitted_to = 0
        self._index = 0

    def feed(self, block: Samples) -> Iterator[Chunk]:
        """Take the next block; give the chunks that it completes."""
        self._buffer = np.concatenate([self._buffer, block])
        unscored = len(self._buffer) - (self._position - self._buffer_start)
        yield from self._score(unscored // WINDOW)

    def finish(self) -> Iterator[Chunk]:
        """Give what is left. The chunker is used up."""
        end = self._buffer_start + len(self._buffer)
        rest = end - self._position
        if rest:
            self._buffer = np.concatenate([self._buffer, np.zeros(WINDOW - rest, np.float32)])
            yield from self._score(1)
            self._buffer = self._buffer[: end - self._buffer_start]
        self._position = end
        if self._open is not None:
            self._close_region(min(self._silence or end, end))
        if self._regions:
            yield self._emit(len(self._regions), end)

    def _score(self, count: int) -> Iterator[Chunk]:
        if count == 0:
            return
        first = self._position - self._buffer_start
        windows = self._buffer[first : first + count * WINDOW].reshape(count, WINDOW)
        for score in self._detector(windows).tolist():
            self._scores.append(score)
            self._position += WINDOW
            self._follow(score)
            while self._overflows():
                yield self._cut()
            if self._regions and self._open is None and self._position - self._regions[-1][1] > self._merge_gap:
                yield self._emit(len(self._regions), self._position)
        self._forget()

    def _follow(self, score: float) -> None:
        window_start = self._position - WINDOW
        if score >= THRESHOLD:
            self._silence = None
            if self._open is None:
                self._open = window_start
        elif self._open is not None and (score < NEGATIVE_THRESHOLD or self._silence is not None):
            if self._silence is None:
                self._silence = window_start
            if self._position - self._silence >= MIN_SILENCE:
                self._close_region(self._silence)

    def _close_region(self, end: int) -> None:
        assert self._open is not None
        if end - self._open >= MIN_SPEECH or (self._is_rest and end > self._open):
            self._regions.append((self._open, end))
        self._open = self._silence = None
        self._is_rest = False

    def _overflows(self) -> bool:
        start = self._regions[0][0] if self._regions else self._open
        if start is None:
            return False
        end = self._position if self._open is not None else self._regions[-1][1]
        return end + PADDING - max(start - PADDING, self._emitted_to) > self._max

    def _cut(self) -> Chunk:
        """Give up part of what is collected: up to the longest pause in the later half, else through the speech."""
        starts = [start for start, _ in self._regions[1:]]
        if self._open is not None:
            starts.append(self._open)
        pauses = [(start - end, n) for n, ((_, end), start) in enumerate(zip(self._regions, starts, strict=False))]
        if pauses:
            half = self._regions[0][0] + self._max // 2
            late = [(pause, n) for pause, n in pauses if self._regions[n][1] >= half]
            _, chosen = max(late) if late else pauses[-1]
            end = self._regions[chosen][1]
            return self._emit(chosen + 1, end + (starts[chosen] - end) // 2)
        # One region longer than a window: cut where speech is least likely, in the later half.
        start = self._open if self._open is not None else self._regions[0][0]
        end = max(start, self._emitted_to) + self._max
        quietest = self._quietest(start + self._max // 2, min(end - PADDING, self._position))
        if self._open is not None:
            self._open, self._is_rest = quietest, True
            self._regions = [(start, quietest)]
        else:
            self._regions = [(start, quietest), (quietest, self._regions[0][1])]
        return self._emit(1, quietest)

    def _quietest(self, start: int, end: int) -> int:
        first = (start - self._buffer_start) // WINDOW
        scores = np.asarray(self._scores[first : max(first + 1, (end - self._buffer_start) // WINDOW)])
        smooth = np.convolve(np.pad(scores, 2, mode="edge"), np.ones(5) / 5, mode="valid")
        return self._buffer_start + (first + int(np.argmin(smooth))) * WINDOW + WINDOW // 2

    def _emit(self, count: int, limit: int) -> Chunk:
        """The first `count` regions as a chunk, padded up to `limit` at most."""
        start = max(self._regions[0][0] - PADDING, self._emitted_to)
        end = min(self._regions[count - 1][1] + PADDING, limit)
        del self._regions[:count]
        audio = self._buffer[start - self._buffer_start : end - self._buffer_start].copy()
        chunk = Chunk(self._index, start / SAMPLE_RATE, audio)
        self._index += 1
        self._emitted_to = end
        return chunk

    def _forget(self) -> None:
        """Drop the sound that no chunk will need any more, in whole windows."""
        starts = [start for start, _ in self._regions[:1]]
        starts.append(self._open if self._open is not None else self._position)
        needed = max(min(starts) - PADDING - WINDOW, self._buffer_start)
        windows = (needed - self._buffer_start) // WINDOW
        if windows:
            self._buffer = self._buffer[windows * WINDOW :].copy()
            del self._scores[:windows]
            self._buffer_start += windows * WINDOW
