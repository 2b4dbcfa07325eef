"""A phrase that a model wrote again and again: found in the texts of one chunk, and cut to its beginning.

Decoders that feed on their own text can fall into a loop, and then repeat a phrase until the window is full. People
repeat themselves too, so a run of repeats is cut in two cases only: where the speech that can be heard is too short
for it, or where it is longer than anything that people say.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stenograf.transcript import Segment, Word

FASTEST = 30.0
"""Letters a second: nobody says more. The quickest of the test clips has 19; fluent speech has 10 to 20."""

MAX_PERIOD = 24
"""Words of the longest phrase that is looked for; more than 8 only matter where each letter counts as a word."""

NATURAL_REPEATS = 3
"""So many repeats of a phrase are never touched, whatever the sound is like."""

NATURAL_WORDS = 5
"""Nor are runs of so many words in all: "нет, нет, нет, нет, нет" is an answer."""

LONGEST_RUN = 36
"""Words. A longer run is a loop even where enough speech is heard to hold it: an answer has 2 to 6 repeats, a refrain
4 or 8. Not sourced; set so that these stay, and a prayer of two words twelve times."""

LOOP_REPEATS = 12
"""And so many repeats must be in it. Whisper can write 224 tokens in a window, twelve times some seven words."""

KEPT_WORDS = 3
"""As many repeats stay of a run as have so many words, and at least one."""

LETTER_REPEATS = 16
"""A word in which up to four letters stand so often in a row is shortened: "ааааа" and "хахахаха" are not."""

KEPT_LETTERS = 4
"""As many of them stay."""

_ALONE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, Lao, Kana, Han: no spaces between words
_TOKEN = re.compile(f"[{_ALONE}]|(?:(?![{_ALONE}])[^\\W_])+")
_STUTTER = re.compile(rf"([^\W_]{{1,4}}?)\1{{{LETTER_REPEATS - 1},}}", re.IGNORECASE)
_LOOSE_ENDS = " \t\n,;:-–—/"


@dataclass(frozen=True, slots=True)
class Loop:
    """A run of repeats that was cut."""

    start: float
    """Seconds: where the run begins."""
    end: float
    """Seconds: where it ends."""
    phrase: str
    """What was repeated, as it stands in the text."""
    times: int
    """How often it stood there."""


@dataclass(frozen=True, slots=True)
class _Token:
    segment: int
    first: int
    """Characters of the segment's text, from here up to `last`."""
    last: int
    text: str


def normal(text: str) -> str:
    """The words of a text alone, as texts are compared: no capitals, no punctuation, one space between words."""
    return " ".join(_TOKEN.findall(_folded(text)))


def letters(text: str) -> int:
    """How many letters and digits it has."""
    return sum(character.isalnum() for character in text)


def cut_loops(
    segments: Sequence[Segment], speech: Callable[[float, float], float], end: float
) -> tuple[list[Segment], list[Loop]]:
    """The segments of one chunk without loops, those that were cut marked `uncertain`; and what was cut.

    `speech` gives the seconds of speech between two times; it is asked only where there is a long run. `end` is where
    the chunk ends, in seconds.
    """
    tokens = [
        _Token(number, match.start(), match.end(), _folded(match.group()))
        for number, segment in enumerate(segments)
        for match in _TOKEN.finditer(segment.text)
    ]
    gone: list[list[tuple[int, int]]] = [[] for _ in segments]
    loops = []
    place = 0
    while place < len(tokens):
        period, length = _run(tokens, place)
        first = next((n for n in range(place, place + period) if _begins(tokens, n, segments)), place)
        repeats = (place + length - first) // period
        run = tokens[first : first + period * repeats]
        if repeats <= NATURAL_REPEATS or len(run) <= NATURAL_WORDS or not _is_loop(run, repeats, segments, speech, end):
            place += 1
            continue
        after = first + len(run)
        if place + length == len(tokens):
            after = len(tokens)  # the window was full in the middle of a phrase
        kept = first + period * max(1, KEPT_WORDS // period)
        for token, following in zip(tokens[kept:after], [*tokens[kept + 1 : after], None], strict=True):
            here = segments[token.segment].text
            joined = following is not None and following.segment == token.segment
            ends = following.first if joined and following else _past_punctuation(here, token.last)
            begins = token.first - (token.first > 0 and here[token.first - 1] in "-–—/")
            gone[token.segment].append((begins, ends))
        loops.append(_loop(run, period, repeats, segments))
        place = after
    for number, segment in enumerate(segments):
        for match in _STUTTER.finditer(segment.text):
            unit = match.group(1)
            if any(first < match.end() and match.start() < last for first, last in gone[number]):
                continue
            gone[number].append((match.start() + KEPT_LETTERS * len(unit), match.end()))
            start, stop = (_time(segment, place) for place in match.span())
            loops.append(Loop(start, stop, unit, len(match.group()) // len(unit)))
    left = [_without(segment, sorted(cuts)) if cuts else segment for segment, cuts in zip(segments, gone, strict=True)]
    return [segment for segment in left if segment is not None], loops


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().replace("ё", "е")


def _run(tokens: Sequence[_Token], place: int) -> tuple[int, int]:
    """The longest run of repeats that begins here: the words of its phrase, and those of the run."""
    best = (1, 1)
    for period in range(1, MAX_PERIOD + 1):
        same = 0
        while place + period + same < len(tokens) and (tokens[place + same].text == tokens[place + period + same].text):
            same += 1
        if same >= period and period + same > best[1]:
            best = (period, period + same)
    return best


def _begins(tokens: Sequence[_Token], place: int, segments: Sequence[Segment]) -> bool:
    """Whether a sentence begins with this word: a phrase is taken from there on."""
    here, before = tokens[place], tokens[place - 1] if place else None
    if before is None or before.segment != here.segment:
        return True
    between = segments[here.segment].text[before.last : here.first]
    return any(mark in between for mark in ".!?…。！？")


def _is_loop(
    run: Sequence[_Token],
    repeats: int,
    segments: Sequence[Segment],
    speech: Callable[[float, float], float],
    end: float,
) -> bool:
    if repeats >= LOOP_REPEATS and len(run) > LONGEST_RUN:
        return True
    # The times of a loop are not to be trusted: all that is heard up to the next text may be its.
    last = run[-1].segment
    until = segments[last + 1].start if last + 1 < len(segments) else end
    heard = speech(segments[run[0].segment].start - 1.0, max(until, segments[last].end) + 1.0)
    return sum(len(token.text) for token in run) > FASTEST * heard


def _loop(run: Sequence[_Token], period: int, repeats: int, segments: Sequence[Segment]) -> Loop:
    first, last, through = run[0], run[-1], run[period - 1]
    text = segments[first.segment].text
    phrase = text[first.first : _past_punctuation(text, through.last) if through.segment == first.segment else None]
    start = _time(segments[first.segment], first.first)
    end = _time(segments[last.segment], _past_punctuation(segments[last.segment].text, last.last))
    return Loop(start, end, phrase.strip(_LOOSE_ENDS), repeats)


def _past_punctuation(text: str, place: int) -> int:
    """Where the punctuation ends that follows a word."""
    while place < len(text) and not text[place].isspace() and not text[place].isalnum():
        place += 1
    return place


def _time(segment: Segment, place: int) -> float:
    """When the character at `place` is said, as well as can be told."""
    for word, (first, last) in zip(segment.words, _spans(segment), strict=True):
        if place <= last:
            share = max(0, place - first) / max(1, last - first)
            return word.start + share * (word.end - word.start)
    return segment.start + (segment.end - segment.start) * place / max(1, len(segment.text))


def _spans(segment: Segment) -> list[tuple[int, int]]:
    """Where in the text each word stands: looked up, or else reckoned from its time."""
    spans, place = [], 0
    length = max(segment.end - segment.start, 1e-3)
    for word in segment.words:
        found = segment.text.find(word.text, place)
        if found < 0:
            middle = round(len(segment.text) * ((word.start + word.end) / 2 - segment.start) / length)
            spans.append((middle, middle + 1))
        else:
            place = found + len(word.text)
            spans.append((found, place))
    return spans


def _without(segment: Segment, cuts: Sequence[tuple[int, int]]) -> Segment | None:
    """The segment without some of its characters; None where nothing said is left of it."""
    text = _left(segment.text, cuts).strip(_LOOSE_ENDS)
    if not letters(text):
        return None
    words = []
    for word, (first, last) in zip(segment.words, _spans(segment), strict=True):
        inside = [(max(start - first, 0), stop - first) for start, stop in cuts if start < last and stop > first]
        kept = _left(word.text, inside).strip() if last - first == len(word.text) else word.text
        if _within(first, cuts) or not letters(kept):
            continue
        share = len(kept) / len(word.text)
        words.append(
            word
            if kept == word.text
            else Word(word.start, word.start + share * (word.end - word.start), kept, word.probability)
        )
    if words and words[-1].text[-1] in _LOOSE_ENDS:
        words[-1] = replace(words[-1], text=words[-1].text.rstrip(_LOOSE_ENDS))
    end = segment.end
    if cuts[-1][1] >= len(segment.text):
        end = words[-1].end if words else _time(replace(segment, words=()), cuts[-1][0])
    ratio = None if segment.compression_ratio is None else len(text.encode()) / len(zlib.compress(text.encode()))
    return replace(
        segment,
        start=words[0].start if words and _within(0, cuts) else segment.start,
        end=max(end, segment.start),
        text=text,
        words=tuple(words),
        compression_ratio=ratio,
        uncertain=True,
    )


def _left(text: str, cuts: Sequence[tuple[int, int]]) -> str:
    """The text without some of its characters, with no more spaces where they stood than before."""
    left, place = "", 0
    for first, last in [*cuts, (len(text), len(text))]:
        piece = text[place : max(place, first)]
        left += piece.lstrip() if not left or left[-1].isspace() else piece
        place = max(place, last)
    return left


def _within(place: int, cuts: Sequence[tuple[int, int]]) -> bool:
    return any(first <= place < last for first, last in cuts)
