"""GigaAM v3, and the other families that onnx-asr knows, through ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stenograf.audio import SAMPLE_RATE, Samples
from stenograf.chunk import Chunk, ChunkResult
from stenograf.engines import Capabilities, choose_device, cuda, missing
from stenograf.errors import (
    DeviceUnavailableError,
    EngineFailedError,
    ModelDamagedError,
    OptionInvalidError,
    OutOfMemoryError,
    StenografError,
)
from stenograf.transcript import Segment, Word

if TYPE_CHECKING:
    from onnx_asr.adapters import TimestampedResultsAsrAdapter
    from onnx_asr.asr import TimestampedResult

MAX_CHUNK_SECONDS = 20.0
"""Longer input fails in some exports (GigaAM was trained on 25 s at most)."""

LENGTHS = {"cpu": tuple(range(1, 21)), "cuda": (5, 10, 15, 20)}
"""Seconds that a chunk is filled up to, with silence that the model is told to pass over: each new length costs memory
that does not come back, on a GPU hundreds of MB (GigaAM's issue 68), and less than a window of the features breaks some
models."""

MIN_SAMPLES = SAMPLE_RATE // 10
"""A shorter wave counts as so long."""

BATCH = {"cpu": 2, "cuda": 16}
"""Chunks that go through the network together, at most. On two cores two of equal length cost 0.8 of one after the
other, four cost more, and of unequal length it is a loss (`benchmarks/engines.py`); for the GPU it is a guess."""

ALIKE = 1.25
"""So many times as long as the shortest may the longest of a batch be."""

FRAME_SECONDS = 0.04
"""Step of the token times of GigaAM and FastConformer models: a token lasts at least as long."""

SENTENCE_PAUSE = 0.8
"""Seconds between two words from which on they belong to different segments."""

SENTENCE_ENDS = ".?!…。？！"

_RUSSIAN = frozenset({"ru"})

_LANGUAGES: dict[str, frozenset[str]] = {
    "gigaam-v2": _RUSSIAN,
    "gigaam-v3": _RUSSIAN,
    "nemo-fastconformer-ru": _RUSSIAN,
    "alphacep/vosk-model": _RUSSIAN,
    "t-tech/t-one": _RUSSIAN,
    "t-one-ctc": _RUSSIAN,
    "nemo-parakeet-ctc": frozenset({"en"}),
    "nemo-parakeet-rnnt": frozenset({"en"}),
    "nemo-parakeet-tdt-0.6b-v2": frozenset({"en"}),
}
"""By the beginning of the variant: which languages a model reads. The others read several and do not say which."""


def devices() -> list[str]:
    """The devices that ONNX Runtime offers here, best first."""
    _import()
    return [*_cuda_devices()[0], "cpu"]


def load(
    path: Path, *, device: str, compute_type: str, variant: str | None = None, threads: int = 0
) -> LoadedOnnxModel:
    """Load a model in onnx-asr form; see `Engine.load`.

    `variant` is the name or type by which onnx-asr knows the model, such as `gigaam-v3-ctc`.
    """
    _import()
    import onnx_asr
    import onnxruntime

    gpus, why_not = _cuda_devices()
    chosen = choose_device(device, [*gpus, "cpu"], why_not=why_not)
    quantization = _quantization(path, compute_type)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.log_severity_level = 3
    kind, _, index = chosen.partition(":")
    provider: Any = "CPUExecutionProvider"
    if kind == "cuda":
        # The libraries that pip installed are where the system does not look for them.
        getattr(onnxruntime, "preload_dlls", lambda: None)()
        provider = ("CUDAExecutionProvider", {"device_id": int(index)})
    try:
        adapter = onnx_asr.load_model(
            variant or "", path, quantization=quantization, sess_options=options, providers=[provider]
        )
    except Exception as error:
        raise _load_error(error, path) from error
    loaded = LoadedOnnxModel(adapter.with_timestamps(), variant or "", chosen, quantization or "float32")
    _check_device(adapter.asr, chosen)
    return loaded


class LoadedOnnxModel:
    """A model of onnx-asr in memory."""

    def __init__(self, adapter: TimestampedResultsAsrAdapter, variant: str, device: str, compute_type: str) -> None:
        self._adapter: TimestampedResultsAsrAdapter | None = adapter
        self._kind = device.partition(":")[0]
        self.device = device
        self.compute_type = compute_type
        languages = next((found for name, found in _LANGUAGES.items() if variant.startswith(name)), None)
        self.capabilities = Capabilities(
            max_chunk_seconds=MAX_CHUNK_SECONDS,
            languages=languages,
            tasks=frozenset({"transcribe"}),
            detects_language=False,
            takes_prompt=False,
        )

    def detect_language(self, chunk: Chunk) -> tuple[str, float]:
        """Raises `OptionInvalidError`: these models do not tell languages apart."""
        raise OptionInvalidError("This model does not detect languages.", "Name the language with --language.")

    def transcribe(self, chunks: Iterable[Chunk]) -> Generator[ChunkResult]:
        """Each chunk's result, in order; several go through the network together, and use all cores.

        The first goes alone, so that its text is there soon; then batches grow to `BATCH`.
        """
        for batch in _batches(chunks, BATCH[self._kind]):
            yield from self._transcribe_batch(batch)

    def close(self) -> None:
        """Give the memory back."""
        self._adapter = None

    def _transcribe_batch(self, batch: list[Chunk]) -> Iterator[ChunkResult]:
        adapter = self._adapter
        if adapter is None:
            raise EngineFailedError("The model has been closed.", "Load it again.")
        waves, lengths = _filled([chunk.audio for chunk in batch], LENGTHS[self._kind])
        with _errors():
            # What `recognize` does, but for the length that the waves are filled up to.
            waves, lengths = adapter.resampler(waves, lengths, SAMPLE_RATE)
            language = batch[0].options.language
            found = list(adapter.asr.recognize_batch(waves, lengths, need_logprobs="yes", language=language))
        for chunk, result in zip(batch, found, strict=True):
            yield self._result(chunk, result)

    def _result(self, chunk: Chunk, result: TimestampedResult) -> ChunkResult:
        words = _words(result.tokens or [], result.timestamps or [], result.logprobs, chunk)
        segments = tuple(_segments(words, keep_words=chunk.options.word_timestamps))
        language = chunk.options.language
        if language is None and self.capabilities.languages and len(self.capabilities.languages) == 1:
            (language,) = self.capabilities.languages
        return ChunkResult(chunk.index, chunk.start, chunk.end, segments, language)


def _batches(chunks: Iterable[Chunk], most: int) -> Iterator[list[Chunk]]:
    """Chunks that go through the network together. What was drawn before the source fails is handed out still."""
    batch: list[Chunk] = []
    size = 1
    failure: Exception | None = None
    source = iter(chunks)
    while True:
        try:
            chunk = next(source, None)
        except Exception as error:
            chunk, failure = None, error
        if batch and (chunk is None or not _go_together(batch, chunk)):
            yield batch
            batch = []
        if failure is not None:
            raise failure
        if chunk is None:
            return
        batch.append(chunk)
        if len(batch) == size:  # at once: the next chunk may be long in coming
            yield batch
            batch, size = [], min(2 * size, most)


def _go_together(batch: list[Chunk], chunk: Chunk) -> bool:
    """Of one language, and of about one length: all are filled up to the longest."""
    lengths = [len(each.audio) for each in (*batch, chunk)]
    return chunk.options.language == batch[0].options.language and max(lengths) <= ALIKE * min(lengths)


def _filled(waves: list[Samples], seconds: tuple[int, ...]) -> tuple[Any, Any]:
    """Waves filled up with silence to one of the lengths, shape (waves, samples), and their own lengths in samples."""
    lengths = np.array([len(wave) for wave in waves], np.int64)
    longest = int(lengths.max())
    target = next((n * SAMPLE_RATE for n in seconds if n * SAMPLE_RATE >= longest), longest)
    filled = np.zeros((len(waves), target), np.float32)
    for row, wave in zip(filled, waves, strict=True):
        row[: len(wave)] = wave
    return filled, np.maximum(lengths, MIN_SAMPLES)


def _words(tokens: list[str], times: list[float], logprobs: list[float] | None, chunk: Chunk) -> list[Word]:
    """Tokens put together to words. A token that begins with a space begins a word."""
    pieces: list[list[int]] = []
    new_word = True
    for index, token in enumerate(tokens):
        if not token.strip():
            new_word = True
            continue
        if new_word or token[0].isspace():
            pieces.append([])
        new_word = token[-1].isspace()
        pieces[-1].append(index)
    words = []
    for number, piece in enumerate(pieces):
        start = min(chunk.start + times[piece[0]], chunk.end)
        latest = chunk.start + times[pieces[number + 1][0]] if number + 1 < len(pieces) else chunk.end
        # Tokens are points in time; the last one sounds for a frame at least and not into the next word.
        end = max(start, min(chunk.start + times[piece[-1]] + 2 * FRAME_SECONDS, latest, chunk.end))
        probability = math.exp(sum(logprobs[i] for i in piece) / len(piece)) if logprobs else None
        words.append(Word(start, end, "".join(tokens[i] for i in piece).strip(), probability))
    return words


def _segments(words: list[Word], *, keep_words: bool) -> Iterator[Segment]:
    """Words put together to segments: up to the end of a sentence, or to a pause."""
    sentence: list[Word] = []
    for word in words:
        if sentence and (sentence[-1].text[-1] in SENTENCE_ENDS or word.start - sentence[-1].end > SENTENCE_PAUSE):
            yield _segment(sentence, keep_words)
            sentence = []
        sentence.append(word)
    if sentence:
        yield _segment(sentence, keep_words)


def _segment(words: list[Word], keep_words: bool) -> Segment:
    probabilities = [word.probability for word in words if word.probability is not None]
    logprob = sum(math.log(max(p, 1e-9)) for p in probabilities) / len(probabilities) if probabilities else None
    return Segment(
        start=words[0].start,
        end=words[-1].end,
        text=" ".join(word.text for word in words),
        words=tuple(words) if keep_words else (),
        avg_logprob=logprob,
    )


def _quantization(path: Path, compute_type: str) -> str | None:
    """The suffix of the files to load: those that were asked for, else the exact ones where they are there."""
    if compute_type in ("int8", "float16"):
        wanted = "int8" if compute_type == "int8" else "fp16"
        if any(path.glob(f"**/*{wanted}*.onnx")):
            return wanted
        raise DeviceUnavailableError(f"The model in {path} has no {compute_type} files.", "Choose --compute-type auto.")
    if compute_type not in ("auto", "float32", "default"):
        raise DeviceUnavailableError(
            f"The engine onnx-asr has no compute type {compute_type}.", "Choose auto, float32, float16 or int8."
        )
    files = [file.name for file in path.glob("**/*.onnx")]
    if compute_type == "auto" and files and all("int8" in name for name in files):
        return "int8"
    return None


def _import() -> None:
    try:
        import onnx_asr  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise missing("onnx-asr", "onnx-asr") from error


def _cuda_devices() -> tuple[list[str], str]:
    try:
        import onnxruntime
    except ImportError:
        return [], "ONNX Runtime is not installed"
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # It lists what it was built for, with or without a GPU.
        found = [f"cuda:{index}" for index in range(cuda.count())]
        return found, "" if found else "no NVIDIA GPU or no driver was found"
    if both_installed():
        return [], "onnxruntime and onnxruntime-gpu are both installed, and the former has overwritten the latter"
    return [], "the installed ONNX Runtime has no CUDA support (it needs the package onnxruntime-gpu)"


def both_installed() -> bool:
    """Whether the two builds of ONNX Runtime lie over each other: they share a folder, and the last one wins."""
    return all(_is_installed(name) for name in ("onnxruntime", "onnxruntime-gpu"))


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _check_device(asr: Any, device: str) -> None:
    """ONNX Runtime falls back to the CPU without a word: look what the sessions really run on."""
    if device == "cpu":
        return
    for value in vars(asr).values():
        providers = value.get_providers() if hasattr(value, "get_providers") else None
        if providers and providers[0] == "CPUExecutionProvider":
            raise DeviceUnavailableError(
                f"ONNX Runtime could not use {device} and fell back to the processor.",
                "Check the CUDA libraries with stenograf doctor, or choose --device cpu.",
            )


_NO_MEMORY = ("bad allocation", "bad_alloc", "failed to allocate memory", "out of memory")
"""How ONNX Runtime and CUDA say so, in lower case."""


def _load_error(error: Exception, path: Path) -> StenografError:
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(part in text for part in _NO_MEMORY):
        return OutOfMemoryError(f"There is not enough memory for {path.name}.", "Choose a smaller model.")
    if any(part in text for part in ("cuda", "cudnn", "cublas")):
        return DeviceUnavailableError(
            f"The GPU failed while {path.name} was loaded: {error}.", "Run stenograf doctor, or choose --device cpu."
        )
    return ModelDamagedError(
        f"The model in {path} cannot be loaded ({error}).",
        "Remove it and pull it again: stenograf models remove NAME, stenograf models pull NAME.",
    )


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn what ONNX Runtime raises into our errors."""
    try:
        yield
    except StenografError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError("There is not enough memory for this recording.", "Choose a smaller model.") from error
    except Exception as error:
        if any(part in str(error).lower() for part in _NO_MEMORY):
            raise OutOfMemoryError(
                "There is not enough memory for this recording.", "Choose a smaller model."
            ) from error
        raise EngineFailedError(
            f"The engine onnx-asr broke: {error}.", "Try again; run stenograf doctor if it happens again."
        ) from error
