"""A file -> segments, with progress, cancelling and checkpoints.

Decoding, cutting and reading run as one stream: while the model reads a chunk, the next is being cut, and memory does
not grow with the length of the recording.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice

from stenograf import vad
from stenograf.audio import AudioReader, Samples, Source
from stenograf.chunk import Chunk, ChunkResult
from stenograf.engines import Capabilities, LoadedModel
from stenograf.errors import CancelledError, LanguageUnknownError, OptionInvalidError
from stenograf.guards import Findings, guard
from stenograf.options import Options
from stenograf.transcript import Segment, Transcript, TranscriptWarning

LANGUAGE_CERTAIN = 0.5
"""From this probability on a detected language is believed at once: faster-whisper's default."""

LANGUAGE_CHUNKS = 4
"""So many chunks are listened to, at most, before the likeliest language is taken."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transcription has come; given after each chunk."""

    position: float
    """Seconds of the recording that are read."""
    duration: float | None
    """Seconds of the recording in all; None where the file does not tell."""
    segments: tuple[Segment, ...]
    """The segments of the chunk that was just read."""
    language: str | None
    """The language, once it is known."""

    @property
    def fraction(self) -> float | None:
        """0 to 1; None where the duration is not known."""
        return None if not self.duration else min(self.position / self.duration, 1.0)


OnProgress = Callable[[Progress], None]


class Transcriber:
    """Transcribes recordings with one loaded model; safe to be used by several threads."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        model: str,
        engine: str,
        capabilities: Capabilities | None = None,
        load_seconds: float = 0.0,
        notes: Sequence[TranscriptWarning] = (),
    ) -> None:
        """`model` and `engine` are the names that the transcripts will carry, `notes` what each will warn of.

        `capabilities` stand in for the loaded model's own, where more is known of it than its weights tell.
        """
        self._loaded = loaded
        self._can = capabilities or loaded.capabilities
        self._model = model
        self._engine = engine
        self._load_seconds = load_seconds
        self._notes = tuple(notes)
        self.closed = False
        """Whether `close` was called."""

    def check(self, options: Options) -> list[TranscriptWarning]:
        """Whether the model can do what is asked; gives warnings for what it passes over.

        Raises `OptionInvalidError` and `LanguageUnknownError` before any work is done.
        """
        return _check(options, self._can, self._model)

    @property
    def model(self) -> str:
        """The name of the model, as transcripts carry it."""
        return self._model

    @property
    def engine(self) -> str:
        """The name of the engine that runs it."""
        return self._engine

    @property
    def device(self) -> str:
        """The device the model really runs on."""
        return self._loaded.device

    @property
    def compute_type(self) -> str:
        """The number format the model really uses."""
        return self._loaded.compute_type

    def transcribe(
        self,
        source: Source,
        options: Options | None = None,
        *,
        on_progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
        done: Sequence[ChunkResult] = (),
        on_chunk: Callable[[ChunkResult], None] | None = None,
        draining: Callable[[], bool] | None = None,
        longest: float | None = None,
        name: str | None = None,
    ) -> Transcript:
        """Read a recording.

        `on_progress` and `on_chunk` are called after each chunk; `cancelled` is asked after them and after each block
        of sound. `done` are the chunks of an earlier try with the same options, from the first on without a hole: they
        are taken as they are and not read again. `name` stands for the recording in messages. Once `draining` says so,
        no new chunk is begun, those that are being read are handed out still, and then it is as if cancelled. More than
        `longest` seconds are refused.

        Timings of the result, in seconds of wall time: `load` (of the model; 0 but for the first recording),
        `language` (its detection), `total` (from opening the file to the last segment, without `load`).

        Raises the errors of `AudioReader`, `CancelledError`, `OptionInvalidError` and `LanguageUnknownError` (the
        model cannot do what was asked), `EngineFailedError`, `OutOfMemoryError`.
        """
        started = time.monotonic()
        options = options or Options()
        can = self._can
        notes = self.check(options)
        stop = cancelled or (lambda: False)
        drain = draining or (lambda: False)
        results = list(done)
        findings = Findings()
        timings = {"load": self._load_seconds}
        self._load_seconds = 0.0  # it was loaded once, and the first recording waited for it
        language, probability = _known_language(options, can, results)
        with AudioReader(source, trim=options.trim, name=name, longest=longest) as reader:
            blocks = _until_cancelled(reader.blocks(), lambda: stop() or drain())
            chunks: Iterator[Chunk] = islice(
                vad.chunks(blocks, can.max_chunk_seconds, vad=options.vad), len(results), None
            )
            if language is None and can.detects_language:
                before = time.monotonic()
                chunks, language, probability = self._detect_language(chunks)
                timings["language"] = time.monotonic() - before
            decided = replace(options, language=language)
            reading: dict[int, Chunk] = {}
            work = _until_draining(_noted((replace(chunk, options=decided) for chunk in chunks), reading), drain)
            with closing(self._loaded.transcribe(work)) as read:
                for bare in read:
                    guarded, dropped = guard(reading.pop(bare.index), bare)
                    result = replace(guarded, language_probability=probability, warnings=dropped)
                    results.append(result)
                    if on_chunk is not None:
                        on_chunk(result)
                    if on_progress is not None:
                        on_progress(Progress(result.end, reader.duration, result.segments, result.language))
                    if stop():
                        raise _cancelled()
            if drain():
                raise _cancelled()
            if on_progress is not None:
                on_progress(Progress(reader.seconds_read, reader.seconds_read, (), language))
        timings["total"] = time.monotonic() - started
        for result in results:
            findings.add(result.warnings)
        if not any(result.segments for result in results):
            notes.append(TranscriptWarning("no_speech", "No speech was found in the recording."))
        return Transcript(
            segments=tuple(segment for result in results for segment in result.segments),
            language=language or next((result.language for result in results if result.language), None),
            language_probability=probability,
            duration=reader.seconds_read,
            model=self._model,
            engine=self._engine,
            device=self._loaded.device,
            compute_type=self._loaded.compute_type,
            warnings=(*self._notes, *notes, *findings.warnings(), *reader.warnings),
            timings=timings,
        )

    def detect_language(
        self,
        source: Source,
        options: Options | None = None,
        *,
        cancelled: Callable[[], bool] | None = None,
        draining: Callable[[], bool] | None = None,
        name: str | None = None,
    ) -> tuple[str | None, float | None]:
        """The language of a recording and its probability, by its first chunks; (None, None) where nobody speaks.

        Raises the errors of `AudioReader`, `CancelledError`, `EngineFailedError`, `OutOfMemoryError`, and
        `OptionInvalidError` for a model that cannot tell.
        """
        options = options or Options()
        stop, drain = cancelled or (lambda: False), draining or (lambda: False)
        with AudioReader(source, trim=options.trim, name=name) as reader:
            blocks = _until_cancelled(reader.blocks(), lambda: stop() or drain())
            chunks = vad.chunks(blocks, self._can.max_chunk_seconds, vad=options.vad)
            _, language, probability = self._detect_language(chunks)
        return language, probability

    def close(self) -> None:
        """Give the model's memory back; the transcriber is not to be used after it."""
        self.closed = True
        self._loaded.close()

    def _detect_language(self, chunks: Iterator[Chunk]) -> tuple[Iterator[Chunk], str | None, float | None]:
        """The chunks again, none lost, with the language and its probability; (None, None) where there is no speech."""
        heard: list[Chunk] = []
        best: tuple[float, str] | None = None
        for chunk in islice(chunks, LANGUAGE_CHUNKS):
            heard.append(chunk)
            code, probability = self._loaded.detect_language(chunk)
            best = max(best or (0.0, code), (probability, code))
            if probability >= LANGUAGE_CERTAIN:
                break
        again = chain(heard, chunks)
        return (again, None, None) if best is None else (again, best[1], best[0])


def _check(options: Options, can: Capabilities, model: str) -> list[TranscriptWarning]:
    if options.task not in can.tasks:
        raise OptionInvalidError(
            f"The model {model} cannot translate.", "Choose a Whisper model that can, such as small or large-v3."
        )
    if options.language and can.languages is not None and options.language not in can.languages:
        reads = ", ".join(sorted(can.languages)) if len(can.languages) <= 5 else f"{len(can.languages)} others"
        raise LanguageUnknownError(
            f"The model {model} does not read the language {options.language} (it reads {reads}).",
            "Choose another model (stenograf models list), or leave the language out.",
        )
    notes = []
    for name in ("prompt", "hotwords"):
        if getattr(options, name) and not can.takes_prompt:
            notes.append(TranscriptWarning("option_ignored", f"The model {model} takes no {name}; it was passed over."))
    return notes


def _known_language(
    options: Options, can: Capabilities, done: Sequence[ChunkResult]
) -> tuple[str | None, float | None]:
    if options.language:
        return options.language, None
    if can.languages is not None and len(can.languages) == 1:
        return next(iter(can.languages)), None
    # A retry keeps to the language that the first try found.
    return next(((r.language, r.language_probability) for r in done if r.language), (None, None))


def _until_cancelled(blocks: Iterable[Samples], stop: Callable[[], bool]) -> Iterator[Samples]:
    for block in blocks:  # asked here too: hours of silence give no chunk
        if stop():
            raise _cancelled()
        yield block


def _noted(chunks: Iterable[Chunk], reading: dict[int, Chunk]) -> Iterator[Chunk]:
    for chunk in chunks:
        reading[chunk.index] = chunk
        yield chunk


def _until_draining(chunks: Iterable[Chunk], drain: Callable[[], bool]) -> Iterator[Chunk]:
    try:
        for chunk in chunks:
            if drain():
                return
            yield chunk
    except CancelledError:
        if not drain():
            raise


def _cancelled() -> CancelledError:
    return CancelledError("The transcription was cancelled.", "Start it again when you want it.")
