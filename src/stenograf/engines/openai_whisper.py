"""Whisper in its authors' own form, `.pt` files, through openai-whisper and PyTorch: the extra `openai-whisper`."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stenograf.chunk import Chunk, ChunkResult
from stenograf.engines import Capabilities, choose_device
from stenograf.engines.faster_whisper import (
    COMPRESSION_RATIO_LIMIT,
    LOGPROB_LIMIT,
    NO_SPEECH_LIMIT,
    TEMPERATURES,
)
from stenograf.errors import (
    DeviceUnavailableError,
    EngineFailedError,
    EngineMissingError,
    ModelDamagedError,
    OutOfMemoryError,
    StenografError,
)
from stenograf.options import Options
from stenograf.transcript import Segment, Word

if TYPE_CHECKING:
    import torch

SAMPLES_TRIED = 5
"""So many samples, of which the likeliest is taken, at temperatures above 0: what faster-whisper and openai-whisper's
own command line do."""

_TURN = threading.Lock()
"""Held while any model of this engine works, in the whole process. The library keeps the state of a decoding in hooks
on the model's layers, which every other call of the same model would run too; and for the times of words it sets
`MultiHeadAttention.use_sdpa`, an attribute of the class, which all models share. PyTorch spreads one call over all
cores, so little is lost."""

_FORM = frozenset({"dims", "model_state_dict"})


def devices() -> list[str]:
    """The devices that PyTorch can really use here, best first."""
    _import()
    return [*_cuda_devices()[0], "cpu"]


def load(path: Path, *, device: str, compute_type: str, variant: str | None = None, threads: int = 0) -> LoadedWhisper:
    """Load the `.pt` file `path`, or the only one in the folder `path`; see `Engine.load`.

    `variant` has no meaning here. `threads` holds for all PyTorch models of the process, as PyTorch has one number for
    all; 0 leaves it as it is, which is all physical cores unless something changed it. Compute types are `float32` and,
    on a GPU, `float16`; the weights themselves are kept in float32, as the library does.
    """
    del variant
    _import()
    import torch

    gpus, why_not = _cuda_devices()
    chosen = choose_device(device, [*gpus, "cpu"], why_not=why_not)
    number_format = _compute_type(chosen, compute_type)
    file = _weights_file(path)
    if threads:
        torch.set_num_threads(threads)
    try:
        loaded = LoadedWhisper(_read(file, chosen), number_format)
        if chosen != "cpu":
            loaded.warm_up()  # better to learn now than in a job that the driver does not work
    except StenografError:
        raise
    except Exception as error:
        raise _load_error(error, file, chosen) from error
    return loaded


class LoadedWhisper:
    """A Whisper model of PyTorch in memory. Several threads may use it; they take turns."""

    def __init__(self, model: Any, compute_type: str) -> None:
        from whisper.tokenizer import LANGUAGES

        self._model: Any = model
        where = model.device
        self.device = "cpu" if where.type == "cpu" else f"{where.type}:{where.index or 0}"
        self.compute_type = compute_type
        several = bool(model.is_multilingual)
        self.capabilities = Capabilities(
            max_chunk_seconds=30.0,
            languages=frozenset(list(LANGUAGES)[: model.num_languages]) if several else frozenset({"en"}),
            tasks=frozenset(("transcribe", "translate") if several else ("transcribe",)),
            detects_language=several,
            takes_prompt=True,
        )

    def warm_up(self) -> None:
        """Run the encoder once on silence."""
        import torch

        with _TURN, torch.no_grad():
            self._model.encoder(self._window(torch.zeros(1600)).unsqueeze(0))

    def detect_language(self, chunk: Chunk) -> tuple[str, float]:
        """The likeliest language of a chunk and its probability."""
        if not self.capabilities.detects_language:
            return "en", 1.0
        with _TURN, _errors():
            return self._detect(chunk)

    def transcribe(self, chunks: Iterable[Chunk]) -> Generator[ChunkResult]:
        """Each chunk's result, in order, one after the other."""
        for chunk in chunks:
            yield self._transcribe_chunk(chunk)

    def close(self) -> None:
        """Give the memory back, once the chunk that is being read is done."""
        import torch

        with _TURN:
            self._model = None
            if self.device != "cpu":
                torch.cuda.empty_cache()

    def _transcribe_chunk(self, chunk: Chunk) -> ChunkResult:
        import torch
        import whisper

        with _TURN, _errors():
            self._expect_open()
            language = chunk.options.language
            if language is None:
                language = self._detect(chunk)[0] if self.capabilities.detects_language else "en"
            # Copied, since PyTorch warns of arrays that may not be written.
            found = whisper.transcribe(
                self._model,
                torch.tensor(chunk.audio),
                fp16=self.compute_type == "float16",
                language=language,
                **decoding(chunk.options),
            )
        segments = tuple(
            segment for item in found["segments"] if (segment := _segment(item, chunk.start, chunk.end)) is not None
        )
        return ChunkResult(chunk.index, chunk.start, chunk.end, segments, language)

    def _detect(self, chunk: Chunk) -> tuple[str, float]:
        import torch

        self._expect_open()
        _, probabilities = self._model.detect_language(self._window(torch.tensor(chunk.audio)))
        language = max(probabilities, key=probabilities.__getitem__)
        return language, float(probabilities[language])

    def _window(self, audio: torch.Tensor) -> torch.Tensor:
        """The log-mel window as `whisper.transcribe` decodes it: after the sound come zeros.

        The library itself detects languages in another one, where after the sound comes the mel of silence.
        faster-whisper takes zeros for both; so do we, and the engines agree.
        """
        import torch
        from whisper.audio import N_FRAMES, N_SAMPLES, log_mel_spectrogram, pad_or_trim

        mel = log_mel_spectrogram(audio, self._model.dims.n_mels, padding=N_SAMPLES)
        window = pad_or_trim(mel[:, : mel.shape[-1] - N_FRAMES], N_FRAMES)
        dtype = torch.float16 if self.compute_type == "float16" else torch.float32
        padded: torch.Tensor = window.to(self._model.device).to(dtype)
        return padded

    def _expect_open(self) -> None:
        if self._model is None:
            raise EngineFailedError("The model has been closed.", "Load it again.")


def decoding(options: Options) -> dict[str, Any]:
    """The arguments of `whisper.transcribe` for one chunk, but for the language and the number format."""
    # The library knows no hotwords: they stand before the prompt, as faster-whisper puts them. Of both together the
    # last 223 tokens are read.
    prompt = " ".join(text for text in (options.hotwords, options.prompt) if text)
    return {
        "task": options.task,
        # "<|" begins the names of special tokens, which the tokenizer refuses in a text.
        "initial_prompt": prompt.replace("<|", "< |") or None,
        "beam_size": options.beam_size if options.beam_size > 1 else None,
        "best_of": SAMPLES_TRIED,
        "temperature": TEMPERATURES if options.temperature is None else options.temperature,
        "word_timestamps": options.word_timestamps,
        "compression_ratio_threshold": COMPRESSION_RATIO_LIMIT,
        "logprob_threshold": LOGPROB_LIMIT,
        "no_speech_threshold": NO_SPEECH_LIMIT,
        # A loop would feed on itself from window to window.
        "condition_on_previous_text": False,
    }


def _segment(item: dict[str, Any], offset: float, limit: float) -> Segment | None:
    text = item["text"].strip()
    if not text:
        return None

    def clock(seconds: float) -> float:
        return min(max(offset + float(seconds), offset), limit)

    return Segment(
        start=clock(item["start"]),
        end=clock(item["end"]),
        text=text,
        words=tuple(
            Word(clock(word["start"]), clock(word["end"]), word["word"].strip(), float(word["probability"]))
            for word in item.get("words") or ()
            if word["word"].strip()
        ),
        avg_logprob=float(item["avg_logprob"]),
        no_speech_prob=float(item["no_speech_prob"]),
        compression_ratio=float(item["compression_ratio"]),
    )


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.pt"))
    if len(found) != 1:
        raise ModelDamagedError(
            f"{path} holds {len(found) or 'no'} .pt files, where openai-whisper wants one.",
            "Name the file itself, or leave one in the folder.",
        )
    return found[0]


def _read(file: Path, device: str) -> Any:
    """The model in a `.pt` file, as `whisper.load_model` builds it, but never by running code from the file.

    That function reads weights only since the release 20250625, and knows the heads that follow the words only of
    models that it downloads itself.
    """
    import torch
    import whisper
    from whisper.audio import mel_filters
    from whisper.model import ModelDimensions, Whisper

    with file.open("rb") as opened:
        checkpoint = torch.load(opened, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= _FORM:
        raise ModelDamagedError(
            f"{file} is no Whisper model of openai-whisper: it has no dims and model_state_dict.",
            "Name a file that openai-whisper can load; weights of other libraries have other engines, see "
            "stenograf models list.",
        )
    dims = ModelDimensions(**checkpoint["dims"])
    mel_filters("cpu", dims.n_mels)  # raises where the library has none for so many bins
    model = Whisper(dims)
    model.load_state_dict(checkpoint["model_state_dict"])
    heads = getattr(whisper, "_ALIGNMENT_HEADS", {}).get(file.stem)
    if heads is not None:
        with contextlib.suppress(RuntimeError, ValueError):  # weights of another shape under a name of theirs
            model.set_alignment_heads(heads)
    return model.to(device).eval()


def _import() -> None:
    try:
        import torch  # noqa: F401
        import whisper.model  # noqa: F401 - there is another package called whisper, of one module
    except (ImportError, OSError) as error:  # OSError: of a library that torch wants to open
        raise EngineMissingError(
            f"The engine openai-whisper needs the Python package openai-whisper, which cannot be used here ({error}).",
            "Run: pip install 'stenograf[openai-whisper]'.",
        ) from error


def _cuda_devices() -> tuple[list[str], str]:
    """The CUDA devices that PyTorch can use, and, where there are none, why."""
    import torch

    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())], ""
    if torch.version.cuda is None:
        return [], "the installed PyTorch has no CUDA support"
    return [], "no NVIDIA GPU or no driver was found"


def _compute_type(device: str, asked: str) -> str:
    on_gpu = device != "cpu"
    if asked in ("auto", "default"):
        return "float16" if on_gpu else "float32"
    if asked == "float32" or (asked == "float16" and on_gpu):
        return asked
    usable = "float32 or float16" if on_gpu else "float32"
    raise DeviceUnavailableError(
        f"The engine openai-whisper has no compute type {asked} on {device}.", f"Choose auto, {usable}."
    )


def _load_error(error: Exception, file: Path, device: str) -> StenografError:
    text = _first_line(error)
    if _is_memory(error):
        return _out_of_memory(file.name)
    if isinstance(error, OSError):
        return ModelDamagedError(f"The model {file} cannot be read ({error}).", "Check the file and its permissions.")
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower().replace(" ", "_"):
        text = "it holds more than weights, or is no PyTorch file"
    elif "CUDA" in text or "cuBLAS" in text or "cuDNN" in text:
        return DeviceUnavailableError(f"The device {device} failed: {text}.", "Try --device cpu.")
    return ModelDamagedError(
        f"The model {file} cannot be loaded ({text}).",
        "Remove the file and get it again (stenograf models pull NAME.pt), or name another.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".: ") or type(error).__name__


def _is_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        part in text for part in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _out_of_memory(what: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"There is not enough memory for {what}.",
        "Choose a smaller model, or the same one for faster-whisper, which needs a quarter (its name without .pt).",
    )


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn what PyTorch and the library raise into our errors."""
    try:
        yield
    except StenografError:
        raise
    except Exception as error:
        if _is_memory(error):
            raise _out_of_memory("this recording") from error
        raise EngineFailedError(
            f"The engine openai-whisper broke: {_first_line(error)}.",
            "Try again; run stenograf doctor if it happens again.",
        ) from error
