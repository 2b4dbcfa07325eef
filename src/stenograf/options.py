"""What a caller may ask of a transcription: one name each, the same on every interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from stenograf.errors import OptionInvalidError
from stenograf.languages import language_code

Task = Literal["transcribe", "translate"]

MAX_BEAM_SIZE = 20
"""Memory and time grow with it, the text hardly improves above 5."""

MAX_PROMPT_CHARACTERS = 4000
"""Whisper reads the last 223 tokens of a prompt only; this is far above that."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to transcribe. Raises `OptionInvalidError` or `LanguageUnknownError` for what makes no sense."""

    language: str | None = None
    """ISO 639 code, or a name; None: detect it."""
    task: Task = "transcribe"
    """`transcribe` writes the language spoken, `translate` writes English."""
    prompt: str | None = None
    """Text that could stand before the recording: it sets the spelling of names and the style."""
    hotwords: str | None = None
    """Words to look out for, separated by spaces or commas."""
    beam_size: int = 5
    """Candidates kept while decoding, 1 to 20; 1 is greedy: faster, a little less exact."""
    temperature: float | None = None
    """0 to 1: randomness of the decoding. None: 0, rising only for a passage that comes out as a loop or as noise."""
    word_timestamps: bool = False
    """Whether to give the time of each word."""
    vad: bool = True
    """Whether to look for speech first and leave out the rest."""
    trim: float | None = None
    """Seconds: read the start of the recording only. None or 0: all of it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", language_code(self.language))
        if self.task not in get_args(Task):
            raise OptionInvalidError(f"There is no task {self.task!r}.", "Choose transcribe or translate.")
        if not isinstance(self.beam_size, int) or not 1 <= self.beam_size <= MAX_BEAM_SIZE:
            raise OptionInvalidError(
                f"A beam size of {self.beam_size} is out of range.", f"Choose a whole number from 1 to {MAX_BEAM_SIZE}."
            )
        if self.temperature is not None and not 0 <= self.temperature <= 1:
            raise OptionInvalidError(f"A temperature of {self.temperature} is out of range.", "Choose 0 to 1.")
        object.__setattr__(self, "trim", self.trim or None)
        if self.trim is not None and not 0 < self.trim < float("inf"):
            raise OptionInvalidError(f"A trim of {self.trim} s is out of range.", "Give a number of seconds above 0.")
        for name in ("prompt", "hotwords"):
            text = getattr(self, name)
            if text is not None and len(text) > MAX_PROMPT_CHARACTERS:
                raise OptionInvalidError(
                    f"The {name} has {len(text)} characters.", f"Give at most {MAX_PROMPT_CHARACTERS}."
                )
            object.__setattr__(self, name, (text or "").strip() or None)
