"""What a model makes up is found and dropped, what it was unsure of is marked: over one chunk's result at a time.

Nothing that was said may be lost. So a line goes only where two things that know nothing of each other agree: the
model's own figures or the look of the text on one side, and the sound on the other, in which Silero hears nobody.
The detector runs where something is suspicious, and nowhere else. docs/quality.md tells this to users.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stenograf import vad
from stenograf.audio import SAMPLE_RATE
from stenograf.chunk import Chunk, ChunkResult
from stenograf.errors import EngineMissingError
from stenograf.loops import FASTEST, Loop, cut_loops, letters, normal
from stenograf.transcript import Segment, TranscriptWarning

LOUDNESS = 0.5
"""Peak to which quiet stretches are raised before Silero listens. It does not hear clips at -60 dB, which Whisper, to
whom loudness means nothing, reads as well as ever; raised, it does."""

MAX_GAIN = 1000.0
"""Raised by no more than 60 dB: what is quieter than that has no sound in it."""

HEARD = 0.2
"""A window of Silero's with at least this score may hold speech. Far below its own 0.5: each of the 20 short test clips
keeps half a second above it when whispered, at -60 dB, in a hall, or with white noise ten times as strong (-10 dB),
where no model reads a word. Tones, hum, silence and faint noise have none; 20 s of loud noise or music up to 0.2 s."""

NOBODY = 0.1
"""Seconds: less speech than this is none. The shortest region that the chunker takes for speech."""

HARDLY = 0.3
"""Seconds: less speech than this is none for a long line; see `_is_made_up`."""

MARGIN = 1.0
"""Seconds around a line in which a voice speaks for it: Whisper's times can be off by as much."""

PHANTOM_MARGIN = 0.3
"""The same for a line that Whisper is known to make up: it often comes right after the last word."""

UNCLAIMED = 0.3
"""Seconds of sure speech in the chunk that no line stands over: then a line's times may be wrong, and it stays."""

SURE = math.log(0.7)
"""A mean log-probability from here on is that of a sure model: for 0.7 a token."""

LOGPROB_LIMIT = -1.0
"""Below it Whisper's text is likely wrong: openai-whisper's limit for trying again."""

TOKEN_LOGPROB_LIMIT = math.log(0.7)
"""The same for models of CTC and RNN-T kind, which are surer of themselves: GigaAM's test model has -0.16 and better on
clear clips, -0.28 to -0.77 and wrong words in noise as strong as the voice, -0.7 to -1 on music."""

WORD_LIMIT = 0.5
"""Mean probability of the words: below it they are likelier wrong than right."""

COMPRESSION_RATIO_LIMIT = 2.4
"""Above it a text repeats itself: openai-whisper's limit."""

NO_SPEECH_LIMIT = 0.6
"""Above it Whisper itself believes that nobody speaks: openai-whisper's limit."""

SLOWEST = 2.0
"""Letters a second: a line with fewer stands over a stretch that is mostly something else."""

STEADY = 3.0
"""Decibels: where the level changes less, the sound is silence, a tone or noise. Speech changes by 40, speech in noise
of its own strength by 7."""

MAX_WARNINGS = 5
"""Of one kind in one recording; the rest are counted."""

QUOTED = 60
"""Characters of a dropped text that a warning shows."""

PHANTOMS = frozenset(
    {
        *("продолжение следует", "спасибо за просмотр", "спасибо за внимание", "благодарю за внимание"),
        *("спасибо за субтитры", "всем пока", "до новых встреч", "до встречи", "конец", "аплодисменты", "смех"),
        *("музыка", "спокойная музыка", "веселая музыка", "динамичная музыка", "тревожная музыка", "тишина"),
        *("музыкальная заставка", "подписывайтесь на канал", "подписывайтесь на мой канал", "ставьте лайки"),
        *("you", "thank you", "thank you very much", "thanks for watching", "thank you for watching", "bye", "bye bye"),
        *("see you next time", "see you in the next video", "please subscribe", "please subscribe to my channel"),
        *("like and subscribe", "don t forget to subscribe", "to be continued", "the end", "music", "applause"),
        *("blank audio", "silence"),
    }
)
"""Whole lines, in `normal` form, that Whisper is known to write where nobody speaks: it learned them from subtitles."""

PHANTOM_BEGINNINGS = (
    *("субтитры сделал", "субтитры делал", "субтитры создавал", "субтитры подготовил", "субтитры подогнал"),
    *("субтитры добавил", "субтитры предоставил", "субтитры от ", "субтитры и перевод", "редактор субтитров"),
    *("корректор субтитров", "корректор а ", "перевод субтитров", "подпишись на канал", "не забудьте подписаться"),
    *("subtitles by", "subtitled by", "captions by", "captioned by", "closed captioning", "transcribed by"),
    *("transcription by", "translated by", "amara org", "www ", "thanks for watching", "спасибо за просмотр"),
)
"""Beginnings of such lines, where names follow."""


def guard(chunk: Chunk, result: ChunkResult) -> tuple[ChunkResult, tuple[TranscriptWarning, ...]]:
    """The chunk's result without loops and without lines where nobody speaks, uncertain ones marked.

    Also gives a warning for each thing that was dropped; `Findings` puts those of a recording together. `chunk` is
    the one that `result` was read from. Without Silero's file no line is dropped for what the sound is like.
    """
    if not result.segments:
        return result, ()
    sound = _Sound(chunk)
    segments, loops = cut_loops(result.segments, sound.speech, chunk.end)
    warnings = [(loop.start, _loop_warning(loop)) for loop in loops]
    kept = []
    for segment in segments:
        if _is_made_up(segment, segments, sound):
            warnings.append((segment.start, _made_up_warning(segment)))
        else:
            kept.append(segment)
    marked = tuple(
        replace(segment, uncertain=True) if _is_uncertain(segment) or _is_unheard(segment, sound) else segment
        for segment in kept
    )
    warnings.sort(key=lambda item: item[0])
    return replace(result, segments=marked), tuple(warning for _, warning in warnings)


class Findings:
    """Puts the warnings of a recording's chunks together, so that hours of music do not bring hundreds."""

    def __init__(self) -> None:
        self._shown: dict[str, list[TranscriptWarning]] = {}
        self._more: dict[str, int] = {}

    def add(self, warnings: Iterable[TranscriptWarning]) -> None:
        """Take the warnings of the next chunk."""
        for warning in warnings:
            shown = self._shown.setdefault(warning.code, [])
            if len(shown) < MAX_WARNINGS:
                shown.append(warning)
            else:
                self._more[warning.code] = self._more.get(warning.code, 0) + 1

    def warnings(self) -> tuple[TranscriptWarning, ...]:
        """The first of each kind in order, and after them how many more there are."""
        found: list[TranscriptWarning] = []
        for code, shown in self._shown.items():
            found += shown
            if more := self._more.get(code):
                found.append(TranscriptWarning(code, f"The same happened in {more} more {_places(more)}."))
        return tuple(found)


class _Sound:
    """A chunk's sound as the guards look at it. Times are seconds of the recording."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk

    @property
    def vad(self) -> bool:
        """Whether only stretches with speech were handed to the model."""
        return self._chunk.options.vad

    def speech(self, start: float, end: float, score: float = HEARD) -> float:
        """Seconds of speech between two times; infinite where there is no detector, so that nothing is dropped."""
        if self._scores is None:
            return math.inf
        first, last = self._windows(start, end)
        return float(np.count_nonzero(self._scores[first:last] >= score)) * vad.WINDOW / SAMPLE_RATE

    def unclaimed(self, segments: Sequence[Segment]) -> float:
        """Seconds of sure speech outside of all segments."""
        if self._scores is None:
            return math.inf
        sure = self._scores >= vad.THRESHOLD
        for segment in segments:
            first, last = self._windows(segment.start - PHANTOM_MARGIN, segment.end + PHANTOM_MARGIN)
            sure[first:last] = False
        return float(np.count_nonzero(sure)) * vad.WINDOW / SAMPLE_RATE

    def is_steady(self, start: float, end: float) -> bool:
        """Whether the level hardly changes; half a second at least is looked at."""
        first, last = self._windows(min(start, end - 0.5), end)
        levels = self._levels[first:last]
        return len(levels) > 0 and float(np.percentile(levels, 95) - np.percentile(levels, 5)) < STEADY

    def _windows(self, start: float, end: float) -> tuple[int, int]:
        first, last = ((time - self._chunk.start) * SAMPLE_RATE / vad.WINDOW for time in (start, end))
        return max(0, math.floor(first)), max(0, math.ceil(last))

    @cached_property
    def _cut(self) -> npt.NDArray[np.float32]:
        audio = self._chunk.audio
        return np.pad(audio, (0, -len(audio) % vad.WINDOW)).reshape(-1, vad.WINDOW)

    @cached_property
    def _scores(self) -> npt.NDArray[np.float32] | None:
        try:
            return vad.SileroDetector()(_raised(self._cut))
        except EngineMissingError:
            return None

    @cached_property
    def _levels(self) -> npt.NDArray[np.float64]:
        power = np.mean(np.square(self._cut, dtype=np.float64), axis=1)
        return np.asarray(10 * np.log10(power + 1e-9))  # all below -90 dB is silence


def _raised(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The sound with quiet stretches made loud, by the peak of the second on either side."""
    around = round(MARGIN * SAMPLE_RATE / vad.WINDOW)
    peaks = np.pad(np.abs(windows).max(axis=1), around)
    nearby = np.lib.stride_tricks.sliding_window_view(peaks, 2 * around + 1).max(axis=1)
    gains = np.clip(LOUDNESS / np.maximum(nearby, 1e-9), 1.0, MAX_GAIN)
    middles = np.arange(len(windows)) * vad.WINDOW + vad.WINDOW / 2
    gain = np.interp(np.arange(windows.size), middles, gains).reshape(windows.shape)
    return np.asarray(windows * gain, np.float32)


def _is_made_up(segment: Segment, segments: Sequence[Segment], sound: _Sound) -> bool:
    phantom = _is_phantom(segment.text)
    unsure = phantom or _is_unsure(segment)
    if not unsure and not _is_odd(segment, sound):
        return False
    margin = PHANTOM_MARGIN if phantom else MARGIN
    # Too many letters for the speech; Silero may have missed half of it, unless the model is unsure as well.
    needed = letters(segment.text) / (FASTEST if unsure else 2 * FASTEST)
    heard = sound.speech(segment.start - margin, segment.end + margin)
    if heard >= max(NOBODY, min(HARDLY, needed)):
        return False
    return phantom or sound.unclaimed(segments) < UNCLAIMED


def _is_phantom(text: str) -> bool:
    line = normal(text)
    return line in PHANTOMS or line.startswith(PHANTOM_BEGINNINGS)


def _is_unsure(segment: Segment) -> bool:
    """Whether the model's own figures say that the text is likely wrong."""
    whisper = segment.compression_ratio is not None
    limit = LOGPROB_LIMIT if whisper else TOKEN_LOGPROB_LIMIT
    if segment.avg_logprob is not None and segment.avg_logprob < limit:
        return True
    if segment.compression_ratio is not None and segment.compression_ratio > COMPRESSION_RATIO_LIMIT:
        return True
    known = [word.probability for word in segment.words if word.probability is not None]
    return bool(known) and sum(known) / len(known) < WORD_LIMIT


def _is_odd(segment: Segment, sound: _Sound) -> bool:
    """Whether anything at all speaks against it. True for many a good line: it only makes us listen."""
    if segment.avg_logprob is not None and segment.avg_logprob < SURE:
        return True
    if segment.no_speech_prob is not None and segment.no_speech_prob > NO_SPEECH_LIMIT:
        return True
    length = letters(segment.text)
    rate = length / max(segment.end - segment.start, 0.1)
    if length == 1 or not SLOWEST <= rate <= FASTEST or _is_garbled(segment.text):
        return True
    return sound.is_steady(segment.start, segment.end)


def _is_garbled(text: str) -> bool:
    """Whether bytes did not make characters, or three alphabets meet in one line."""
    alphabets = (
        any("a" <= character <= "z" for character in text.lower()),
        any("\u0400" <= character <= "\u052f" for character in text),
        any("\u3040" <= character <= "\u9fff" or "\uac00" <= character <= "\ud7af" for character in text),
        any("\u0590" <= character <= "\u0fff" for character in text),
    )
    return "\ufffd" in text or sum(alphabets) > 2


def _is_uncertain(segment: Segment) -> bool:
    return segment.uncertain or _is_unsure(segment)


def _is_unheard(segment: Segment, sound: _Sound) -> bool:
    """Whether Silero hears nobody in it, where the model was given all the sound; such a line stays if it is sure."""
    return not sound.vad and sound.speech(segment.start - MARGIN, segment.end + MARGIN) < NOBODY


def _loop_warning(loop: Loop) -> TranscriptWarning:
    return TranscriptWarning(
        "loop_dropped",
        f"{_span(loop.start, loop.end)}: {_quoted(loop.phrase)} came {loop.times} times in a row; "
        "the repeats were dropped.",
    )


def _made_up_warning(segment: Segment) -> TranscriptWarning:
    return TranscriptWarning(
        "hallucination_dropped",
        f"{_span(segment.start, segment.end)}: {_quoted(segment.text)} was dropped; nobody speaks there.",
    )


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= QUOTED else f'"{line[: QUOTED - 1].rstrip()}…"'


def _span(start: float, end: float) -> str:
    return f"{_clock(start)}-{_clock(end)}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _places(count: int) -> str:
    return "place" if count == 1 else "places"
