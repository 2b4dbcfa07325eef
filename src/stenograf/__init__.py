"""Stenograf: speech to text on your own machines.

    from stenograf import transcribe

    transcript = transcribe("meeting.m4a", language="ru")
    print(transcript.text)
    for segment in transcript.segments:
        print(segment.start, segment.end, segment.text)
    save(transcript, "meeting.srt")

Times are seconds as floats. Everything that goes wrong on purpose is a `StenografError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

# ONNX Runtime sends statistics about the machine to its maker unless this is set before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Threads of an engine that wait for each other are to sleep: where other programs want the same cores, those that spin
# keep them from whom they wait for (`benchmarks/threads.py`). Read once, when OpenMP is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from stenograf._version import __version__
from stenograf.errors import StenografError
from stenograf.transcript import Segment, Transcript, TranscriptWarning, Word

if TYPE_CHECKING:
    from stenograf.options import Task
    from stenograf.runtime import Runtime
    from stenograf.transcriber import Progress, Transcriber

__all__ = [
    "Segment",
    "StenografError",
    "Transcript",
    "TranscriptWarning",
    "Word",
    "__version__",
    "load_model",
    "save",
    "transcribe",
]


def transcribe(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    model: str | None = None,
    language: str | None = None,
    task: Task = "transcribe",
    prompt: str | None = None,
    hotwords: str | None = None,
    beam_size: int | None = None,
    temperature: float | None = None,
    word_timestamps: bool = False,
    vad: bool | None = None,
    trim: float | None = None,
    device: str | None = None,
    compute_type: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Transcript:
    """Transcribe a recording: a path, or an open binary file, of any format that FFmpeg's libraries read.

    Args:
        source: The recording.
        model: A catalog name (`stenograf models list`), a folder in the models directory, or a path. It is
            downloaded at its first use. `auto`: the one that suits the language, which is listened for where it is
            not given. Models that were used stay in memory for the next call.
        language: A code or a name, such as `ru` or `Russian`; None: detect it.
        task: `transcribe` writes the language spoken, `translate` writes English.
        prompt: Text that could stand before the recording: it sets the spelling of names and the style.
        hotwords: Words to look out for.
        beam_size: 1 to 20; 1 is greedy.
        temperature: 0 to 1; None: 0, rising only for a passage that comes out as a loop or as noise.
        word_timestamps: Whether to give the time of each word.
        vad: Whether to look for speech first and leave out the rest.
        trim: Seconds: read the start of the recording only.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        compute_type: `auto`, or a number format such as `int8` or `float16`.
        on_progress: Called after each chunk with a `Progress`.
        cancelled: Asked again and again; once it returns True, `CancelledError` is raised.

    None stands for what the settings say (`stenograf config`).

    Raises:
        StenografError: its subclasses in `stenograf.errors` tell what was wrong and what to do.
    """
    runtime = _runtime(device, compute_type)
    options = runtime.options(
        language=language,
        task=task,
        prompt=prompt,
        hotwords=hotwords,
        beam_size=beam_size,
        temperature=temperature,
        word_timestamps=word_timestamps,
        vad=vad,
        trim=trim,
    )
    return runtime.reader.read(
        source, options, model=model, on_progress=on_progress, cancelled=cancelled or (lambda: False)
    )


def load_model(model: str | None = None, *, device: str | None = None, compute_type: str | None = None) -> Transcriber:
    """The model in memory, ready to transcribe many recordings; the last one loaded is kept for the next call.

    `auto` stands for the one that suits the language of the settings; `transcribe` chooses anew for each recording.
    Raises the same errors as `transcribe`.
    """
    global _held  # noqa: PLW0603 - one slot a process
    runtime = _runtime(device, compute_type)
    with _loading:  # threads that ask at once load it once
        if _held is None or _held[:2] != (runtime, model) or _held[2].closed:
            _held = None  # the old one goes before the new one comes, unless someone is still using it
            _held = (runtime, model, runtime.reader.transcriber(model))
        return _held[2]


def _runtime(device: str | None, compute_type: str | None) -> Runtime:
    """One for the process as long as the settings stay, so that a loop over recordings loads its models once."""
    from stenograf.runtime import Runtime
    from stenograf.setting_sources import load

    global _last  # noqa: PLW0603 - it is one for the process
    settings = load(overrides={"device": device, "compute_type": compute_type}).settings
    with _making:
        if _last is None or _last.settings != settings:
            if _last is not None:
                _last.reader.close()  # the old models go before new ones come, unless someone is still using them
            _last = Runtime(settings)
        return _last


_loading, _making = Lock(), Lock()
_held: tuple[Runtime, str | None, Transcriber] | None = None
_last: Runtime | None = None


def save(
    transcript: Transcript,
    path: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002
    *,
    overwrite: bool = False,
) -> None:
    """Write a transcript to a file: txt, json, srt, vtt, tsv or docx, by `format` or by the name's suffix.

    The file is whole or not there at all. Raises `FormatUnknownError`, `OutputExistsError`, `OutputForbiddenError`,
    `DiskFullError` of `stenograf.errors`.
    """
    from stenograf import output

    output.save(transcript, path, format, overwrite=overwrite)
