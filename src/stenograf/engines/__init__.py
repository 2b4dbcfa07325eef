"""The ways to run ASR models, behind one protocol.

An engine is a module with the functions of `Engine`. To add one: write the module, add its line to `ENGINES`, name
its libraries as an extra; the contract test picks it up. An engine knows no formats, HTTP, jobs or files, and imports
its libraries when a model is loaded, not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from stenograf.chunk import Chunk, ChunkResult
from stenograf.errors import DeviceUnavailableError, EngineMissingError
from stenograf.options import Task

ENGINES = {
    "faster-whisper": "stenograf.engines.faster_whisper",
    "onnx-asr": "stenograf.engines.onnx_asr",
    "openai-whisper": "stenograf.engines.openai_whisper",
}
"""Engine name -> its module."""

EXTRAS = frozenset({"openai-whisper"})
"""Engines whose libraries are not installed unless they are asked for: `pip install 'stenograf[NAME]'`."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a loaded model can do."""

    max_chunk_seconds: float
    """The longest chunk it takes."""
    languages: frozenset[str] | None
    """The codes it reads; None where it reads many and does not say which."""
    tasks: frozenset[Task]
    """`transcribe`, and `translate` where it can."""
    detects_language: bool
    """Whether `detect_language` works."""
    takes_prompt: bool
    """Whether `prompt` and `hotwords` have an effect."""


class LoadedModel(Protocol):
    """A model in memory, ready to be used by several threads at once."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    @property
    def device(self) -> str:
        """The device it really runs on: `cpu` or `cuda:N`."""
        ...

    @property
    def compute_type(self) -> str:
        """The number format it really uses, such as `int8`, `float16` or `float32`."""
        ...

    def detect_language(self, chunk: Chunk) -> tuple[str, float]:
        """The code of the language spoken in a chunk, and its probability, 0 to 1."""
        ...

    def transcribe(self, chunks: Iterable[Chunk]) -> Generator[ChunkResult]:
        """Each chunk's result, in order, as soon as it is ready; chunks are drawn as they are needed.

        Chunks may belong to different requests and carry different options. Closing the iterator stops the work
        after the chunks that are being read. Raises `EngineFailedError` or `OutOfMemoryError`.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the model is not to be used after it."""
        ...


class Engine(Protocol):
    """A module of this package."""

    def load(
        self, path: Path, *, device: str, compute_type: str, variant: str | None = None, threads: int = 0
    ) -> LoadedModel:
        """Load the model in the folder `path`.

        `device` is `auto`, `cpu`, `cuda` or `cuda:N`; `compute_type` is `auto` or a number format; `variant` tells
        apart models that the folder alone does not; `threads` is the number of processor cores to use, 0 for all.
        Raises `EngineMissingError`, `DeviceUnavailableError`, `ModelDamagedError`, `OutOfMemoryError`.
        """
        ...

    def devices(self) -> list[str]:
        """The devices that really work here, best first, such as `["cuda:0", "cpu"]`."""
        ...


def engine(name: str) -> Engine:
    """The engine called `name` (a key of `ENGINES`); its libraries are not imported yet."""
    return cast(Engine, importlib.import_module(ENGINES[name]))


def missing(engine_name: str, library: str) -> EngineMissingError:
    """The error for an engine whose `library` is not installed."""
    return EngineMissingError(
        f"The engine {engine_name} needs the Python package {library}, which is not installed.",
        f"Run: pip install '{library}'.",
    )


def choose_device(asked: str, usable: list[str], *, why_not: str = "") -> str:
    """The device to use: `cpu` or `cuda:N`. `auto` takes the first usable one; any other must be usable.

    `why_not` says what was found wrong with the ones that are not. Raises `DeviceUnavailableError`.
    """
    if asked == "auto":
        return usable[0]
    wanted = "cuda:0" if asked == "cuda" else asked
    if wanted in usable:
        return wanted
    if asked != "cpu" and not asked.startswith("cuda"):
        raise DeviceUnavailableError(f"There is no device {asked!r}.", "Choose auto, cpu, cuda or cuda:N.")
    raise DeviceUnavailableError(
        f"The device {asked} cannot be used: {why_not or 'no such device was found'}.",
        f"What works here: {', '.join(usable)}. Choose --device auto to take the best of them.",
    )
