"""`model=auto`: which model reads a recording, by its language, the device, and what can be had.

Who reads Russian best (the authors' figures, in docs/models.md): GigaAM v3, with a word error rate of 8 to 12 where
Whisper large-v3 has 21; its kinds that write punctuation and capitals go first. Of these the RNNT makes fewer mistakes,
and the CTC is several times as fast on a GPU, where the RNNT decodes in a loop. Everything else is Whisper's: as large
as the device bears. turbo was not trained to translate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stenograf.errors import ModelNotInstalledError
from stenograf.languages import language_name
from stenograf.options import Task

AUTO = "auto"
"""The name that stands for "the right one"."""

SPECIAL = ("ru", "kk", "ky", "uz")
"""Languages that other models than Whisper may read."""

OWN_WHISPER = "whisper"
"""The kind of a Whisper that is in no catalog."""

WEAK_CORES = 4
"""With fewer processor cores, `base` keeps up with speech and `small` does not always (docs/benchmarks.md)."""

Want = Literal["read", "translate", "detect"]
Tier = tuple[str, ...]
"""Kinds that are about equally good: one that is here is taken before one that is to be downloaded."""

_GIGAAM_CPU: tuple[Tier, ...] = (
    ("gigaam-v3-e2e-rnnt", "gigaam-v3-e2e-rnnt-int8"),
    ("gigaam-v3-e2e-ctc", "gigaam-v3-e2e-ctc-int8"),
)
_GIGAAM_PLAIN: tuple[Tier, ...] = (
    ("gigaam-v3-rnnt", "gigaam-v3-ctc"),
    ("gigaam-v2-rnnt", "gigaam-v2-ctc"),
    ("gigaam-multilingual-large-ctc", "gigaam-multilingual-ctc"),
)
_RUSSIAN_OTHERS: tuple[Tier, ...] = (
    ("fastconformer-ru-rnnt", "fastconformer-ru-ctc"),
    ("parakeet-tdt-0.6b-v3", "parakeet-tdt-0.6b-v3-int8"),
    ("t-one", "vosk-model-ru"),
)
_LARGE: Tier = ("large-v3", "large-v2", "large-v1")
_SMALLEST: tuple[Tier, ...] = (("tiny",), ("vosk-model-small-ru",))
_TURKIC: tuple[Tier, ...] = (("gigaam-multilingual-large-ctc", "gigaam-multilingual-ctc"),)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that could be taken."""

    name: str
    kind: str
    """The catalog's name for such a model, also where it lies in a folder of another name; `OWN_WHISPER`."""
    languages: frozenset[str] | None
    """Codes; None where it reads many and does not say which."""
    tasks: frozenset[Task]
    here: bool
    """On this machine, and whole."""
    why_not: str = ""
    """Why it cannot be had, as the end of a sentence; empty if it can."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen."""

    name: str
    reason: str
    """One line for people."""
    second_best: str = ""
    """One line that says which would be better, and why it is not taken; empty if none."""


def is_auto(name: str) -> bool:
    """Whether a model's name stands for the right one."""
    return name.strip().lower() == AUTO


def choose(
    candidates: Iterable[Candidate], *, language: str | None, want: Want = "read", gpu: bool = False, cores: int = 8
) -> Choice:
    """The model to take. `language` is a code, or None for one that is not known, which most likely no GigaAM reads.

    Raises `ModelNotInstalledError` where nothing that suits can be had.
    """
    suited = [item for item in candidates if _suits(item, language, want)]
    order = tiers(language, want, gpu=gpu, cores=cores)
    missed: Candidate | None = None
    for tier in order:
        kinds = [item for kind in tier for item in sorted(suited, key=_own_last) if item.kind == kind]
        taken = next((item for item in kinds if item.here), None) or next(
            (item for item in kinds if not item.why_not), None
        )
        if taken is not None:
            return Choice(taken.name, _reason(language, want, gpu=gpu), _second_best(missed))
        missed = missed or next(iter(kinds), None)
    hint = "stenograf models list shows what can be had."
    if missed is not None:
        hint = f"The model {missed.name} would, but {missed.why_not}."
    raise ModelNotInstalledError(f"No model that can be had here {_purpose(language, want)}.", hint)


def tiers(language: str | None, want: Want, *, gpu: bool, cores: int) -> Sequence[Tier]:
    """The kinds of models for a purpose, best first."""
    quick: Tier = ("base", "small") if cores < WEAK_CORES else ("small", "base")
    if want == "detect":
        return (("base", "tiny", "small"), ("medium", "turbo", *_LARGE), (OWN_WHISPER,))
    if want == "translate":
        return (_LARGE[:2], ("medium",), ("small", "base", "large-v1"), (OWN_WHISPER,), ("tiny",))
    whisper: tuple[Tier, ...] = (
        (("turbo",), _LARGE, ("medium",), quick) if gpu else (quick, ("medium", "turbo"), _LARGE)
    ) + ((OWN_WHISPER,), ("tiny",))
    if language == "ru":
        best = tuple(reversed(_GIGAAM_CPU)) if gpu else _GIGAAM_CPU
        return (*best, *_GIGAAM_PLAIN, *_RUSSIAN_OTHERS, *(whisper if gpu else tuple(reversed(whisper[:3]))), *whisper,
                *_SMALLEST)  # fmt: skip
    if language in ("kk", "ky", "uz"):
        return (*_TURKIC, *whisper)
    return (*whisper, ("parakeet-tdt-0.6b-v3", "parakeet-tdt-0.6b-v3-int8"))


def _suits(item: Candidate, language: str | None, want: Want) -> bool:
    many = item.languages is None or len(item.languages) > 1
    if want == "detect":
        return many and _is_whisper(item)
    if ("translate" if want == "translate" else "transcribe") not in item.tasks:
        return False
    return many if language is None else item.languages is None or language in item.languages


def _is_whisper(item: Candidate) -> bool:
    return item.kind == OWN_WHISPER or item.kind in ("tiny", "base", "small", "medium", "turbo", *_LARGE)


def _own_last(item: Candidate) -> bool:
    return item.name != item.kind


def _reason(language: str | None, want: Want, *, gpu: bool) -> str:
    return f"chosen because it {_purpose(language, want)} on {'a GPU' if gpu else 'a processor'}"


def _purpose(language: str | None, want: Want) -> str:
    if want == "detect":
        return "tells languages apart"
    shown = language_name(language) if language else None
    if want == "translate":
        return f"translates {shown}" if shown else "translates"
    return f"reads {shown}" if shown else "reads many languages"


def _second_best(missed: Candidate | None) -> str:
    return f"The model {missed.name} would do better, but {missed.why_not}." if missed else ""
