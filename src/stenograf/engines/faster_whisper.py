"""Whisper through faster-whisper and CTranslate2."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stenograf.chunk import Chunk, ChunkResult
from stenograf.engines import Capabilities, choose_device, cuda, missing
from stenograf.errors import (
    DeviceUnavailableError,
    EngineFailedError,
    ModelDamagedError,
    OutOfMemoryError,
    StenografError,
)
from stenograf.options import Options
from stenograf.transcript import Segment, Word

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried in turn while a passage comes out as a loop or as noise: openai-whisper's own ladder."""

COMPRESSION_RATIO_LIMIT = 2.4
"""A text that compresses better than this is a loop: openai-whisper's default."""

LOGPROB_LIMIT = -1.0
"""A text with a lower mean log-probability is noise: openai-whisper's default."""

NO_SPEECH_LIMIT = 0.6
"""Together with a low log-probability, a higher probability of no speech means silence: openai-whisper's default."""

REMEMBERED_ENCODINGS = 4
"""How many recordings may be between the detection of their language and their first chunk; a few MB each."""


def parallelism(cores: int) -> tuple[int, int]:
    """How many chunks to read at once on a CPU, and with how many threads each.

    Twice as many threads as cores: a chunk alone still has up to four cores (CTranslate2's own default), and chunks
    side by side leave no core idle. `benchmarks/threads.py` has the figures.
    """
    threads = min(cores, 4)
    return max(1, 2 * cores // threads) if cores > 1 else 1, threads


def devices() -> list[str]:
    """The devices that CTranslate2 can really use here, best first."""
    _import()
    return [*_cuda_devices()[0], "cpu"]


def load(path: Path, *, device: str, compute_type: str, variant: str | None = None, threads: int = 0) -> LoadedWhisper:
    """Load a Whisper model in CTranslate2 form; see `Engine.load`. `variant` has no meaning here."""
    del variant
    _import()
    gpus, why_not = _cuda_devices()
    chosen = choose_device(device, [*gpus, "cpu"], why_not=why_not)
    kind, _, index = chosen.partition(":")
    workers, threads_each = parallelism(threads or os.cpu_count() or 1) if kind == "cpu" else (1, 0)
    try:
        model = _model_class()(
            str(path),
            device=kind,
            device_index=int(index or 0),
            compute_type=_compute_type(kind, compute_type),
            cpu_threads=threads_each,
            num_workers=workers,
            local_files_only=True,
        )
        loaded = LoadedWhisper(model, workers)
        if kind == "cuda":
            loaded.warm_up()  # cuBLAS is opened at the first use only: better to learn now that it is missing
    except StenografError:
        raise
    except Exception as error:
        raise _load_error(error, path, chosen, compute_type) from error
    return loaded


class LoadedWhisper:
    """A Whisper model in memory."""

    def __init__(self, model: Any, workers: int) -> None:
        self._model = model
        self._workers = workers
        core = model.model
        self.device = "cpu" if core.device == "cpu" else f"{core.device}:{core.device_index[0]}"
        self.compute_type = str(core.compute_type)
        self.capabilities = Capabilities(
            max_chunk_seconds=float(model.feature_extractor.chunk_length),
            languages=frozenset(model.supported_languages),
            tasks=frozenset(("transcribe", "translate") if core.is_multilingual else ("transcribe",)),
            detects_language=bool(core.is_multilingual),
            takes_prompt=True,
        )

    def warm_up(self) -> None:
        """Run the encoder once on silence."""
        self._model.encode(self._features(np.zeros(1600, np.float32)))

    def detect_language(self, chunk: Chunk) -> tuple[str, float]:
        """The likeliest language of a chunk and its probability."""
        if not self.capabilities.detects_language:
            return "en", 1.0
        with _errors():
            encoded = self._model.encode_and_remember(self._features(chunk.audio))
            token, probability = self._model.model.detect_language(encoded)[0][0]
        return token[2:-2], float(probability)

    def transcribe(self, chunks: Iterable[Chunk]) -> Generator[ChunkResult]:
        """Each chunk's result, in order; as many chunks at once as there are workers."""
        running: deque[Future[ChunkResult]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="whisper")
        try:
            for chunk in chunks:
                running.append(pool.submit(self._transcribe_chunk, chunk))
                # One more than can run: a worker that is done must not wait for the next chunk to be cut.
                while len(running) > self._workers or (running and running[0].done()):
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Give the memory back."""
        self._model.model.unload_model()

    def _features(self, audio: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The log-mel window exactly as `WhisperModel.transcribe` will cut it, so that it is not encoded twice."""
        from faster_whisper.audio import pad_or_trim

        extractor = self._model.feature_extractor
        features = extractor(audio)
        window: np.ndarray[Any, Any] = pad_or_trim(features[:, : min(extractor.nb_max_frames, features.shape[-1] - 1)])
        return window

    def _transcribe_chunk(self, chunk: Chunk) -> ChunkResult:
        options = chunk.options
        with _errors():
            found, info = self._model.transcribe(chunk.audio, **decoding(options))
            segments = tuple(
                segment for item in found if (segment := _segment(item, chunk.start, chunk.end)) is not None
            )
        return ChunkResult(chunk.index, chunk.start, chunk.end, segments, info.language)


def decoding(options: Options) -> dict[str, Any]:
    """The arguments of `WhisperModel.transcribe` for one chunk."""
    return {
        "language": options.language,
        "task": options.task,
        "initial_prompt": options.prompt,
        "hotwords": options.hotwords,
        "beam_size": options.beam_size,
        "temperature": TEMPERATURES if options.temperature is None else options.temperature,
        "word_timestamps": options.word_timestamps,
        "compression_ratio_threshold": COMPRESSION_RATIO_LIMIT,
        "log_prob_threshold": LOGPROB_LIMIT,
        "no_speech_threshold": NO_SPEECH_LIMIT,
        # A loop would feed on itself from window to window.
        "condition_on_previous_text": False,
        "vad_filter": False,
    }


def _segment(item: Any, offset: float, limit: float) -> Segment | None:
    text = item.text.strip()
    if not text:
        return None

    def clock(seconds: float) -> float:
        return min(max(offset + float(seconds), offset), limit)

    return Segment(
        start=clock(item.start),
        end=clock(item.end),
        text=text,
        words=tuple(
            Word(clock(word.start), clock(word.end), word.word.strip(), float(word.probability))
            for word in item.words or ()
            if word.word.strip()
        ),
        avg_logprob=float(item.avg_logprob),
        no_speech_prob=float(item.no_speech_prob),
        compression_ratio=float(item.compression_ratio),
    )


def _import() -> None:
    try:
        import faster_whisper  # noqa: F401
    except ImportError as error:
        raise missing("faster-whisper", "faster-whisper") from error


def _model_class() -> type[WhisperModel]:
    from faster_whisper import WhisperModel

    class RememberingModel(WhisperModel):  # type: ignore[misc, unused-ignore]
        """Keeps encodings made to detect a language: the transcription begins with the same ones.

        Without it the first window of each recording would be encoded twice.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._remembered: dict[int, Any] = {}
            super().__init__(*args, **kwargs)

        def encode_and_remember(self, features: np.ndarray[Any, Any]) -> Any:
            encoded = super().encode(features)
            while len(self._remembered) >= REMEMBERED_ENCODINGS:
                self._remembered.pop(next(iter(self._remembered)), None)
            self._remembered[hash(features.tobytes())] = encoded
            return encoded

        def encode(self, features: np.ndarray[Any, Any]) -> Any:
            if self._remembered:
                encoded = self._remembered.pop(hash(features.tobytes()), None)
                if encoded is not None:
                    return encoded
            return super().encode(features)

    return RememberingModel


def _compute_type(kind: str, asked: str) -> str:
    if asked != "auto":
        return asked
    import ctranslate2

    supported = ctranslate2.get_supported_compute_types(kind)
    order = ("int8", "int8_float32", "float32") if kind == "cpu" else ("float16", "int8_float16", "float32")
    return next((name for name in order if name in supported), "default")


def _cuda_devices() -> tuple[list[str], str]:
    """The CUDA devices that CTranslate2 can use, and, where there are none, why."""
    try:
        import ctranslate2
    except ImportError:
        return [], "CTranslate2 is not installed"
    try:
        found = ctranslate2.get_cuda_device_count()
    except (RuntimeError, ValueError) as error:
        return [], str(error)
    if not found:
        return [], "no NVIDIA GPU or no driver was found"
    if not cuda.open_cublas():
        return [], f"there is a GPU, but {cuda.CUBLAS} cannot be opened; pip install 'stenograf[cuda]' brings it"
    return [f"cuda:{index}" for index in range(found)], ""


def _load_error(error: Exception, path: Path, device: str, compute_type: str) -> StenografError:
    text = str(error)
    lower = text.lower()
    if "out of memory" in lower or isinstance(error, MemoryError):
        return _out_of_memory(path.name)
    if "compute type" in lower:
        import ctranslate2

        usable = ", ".join(sorted(ctranslate2.get_supported_compute_types(device.partition(":")[0])))
        return DeviceUnavailableError(
            f"{device} does not support the compute type {compute_type}.", f"Choose auto, or one of {usable}."
        )
    if "cuda" in lower or "cublas" in lower or "cudnn" in lower:
        return DeviceUnavailableError(f"The device {device} failed: {text}.", "Try --device cpu.")
    return ModelDamagedError(
        f"The model in {path} cannot be loaded ({text or type(error).__name__}).",
        "Remove it and pull it again: stenograf models remove NAME, stenograf models pull NAME.",
    )


def _out_of_memory(what: str) -> OutOfMemoryError:
    return OutOfMemoryError(f"There is not enough memory for {what}.", "Choose a smaller model or --compute-type int8.")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn what CTranslate2 raises into our errors."""
    try:
        yield
    except StenografError:
        raise
    except MemoryError as error:
        raise _out_of_memory("this recording") from error
    except (RuntimeError, ValueError) as error:
        if "out of memory" in str(error).lower():
            raise _out_of_memory("this recording") from error
        raise EngineFailedError(
            f"The engine faster-whisper broke: {error}.", "Try again; run stenograf doctor if it happens again."
        ) from error
