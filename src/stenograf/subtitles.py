"""From a transcript to subtitle cues: what is on the screen from when to when, on which lines.

Three steps, each linear in the length of the transcript:

1. `_tokens` cuts the text into the smallest pieces that a line may be broken between, and gives each its
   times. The text of a segment is the truth; its words, where it has any, are only the clock.
2. `_Run.cuts` chooses where cues end: the cheapest way through all allowed cuts, where a cut after a sentence
   costs nothing and one in mid-phrase a lot.
3. `_on_screen` decides how long each cue stays, so that it can be read and never meets the next one.

Inside this module times are whole milliseconds: both subtitle formats write no more, and a cue that is valid
here is valid in the file.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from stenograf.typography import (
    CLOSERS,
    OPENERS,
    clean,
    columns,
    cut_hard,
    ends_sentence,
    has_cjk,
    one_line,
    pieces,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from stenograf.transcript import Segment, Transcript

# What broadcasters agree on: Netflix' Timed Text Style Guide (42 characters, 2 lines, 7 s, 17 to 20
# characters a second) and the BBC Subtitle Guidelines (2 lines, cut at clauses, name who speaks when that
# changes).

LINE_COLUMNS = 42
"""Longest line, in columns; a column is a character, and wide ones (CJK, emoji) fill two."""

MAX_CUE_MS = 7_000
"""Longest that a cue stays, in milliseconds."""

COMFORTABLE_CUE_MS = 1_000
"""A cue stays this long where the next one leaves room."""

READING_MS_PER_COLUMN = 1_000 / 17
"""A cue stays long enough to be read at 17 characters a second where the next one leaves room."""

BLINK_MS = 500
"""A shorter gap between two cues is closed: a screen that is empty for less than this seems to flicker."""

PAUSE_MS = 2_000
"""Words further apart than this never share a cue."""

LABEL_COLUMNS = 20
"""Longest name in front of a line; a longer one is shortened, so that it leaves room for the text."""

# The next three bound what can be true. Nobody says 40 characters in a second, or stays on one for a quarter
# of a second all along; models give such times where they lost the voice.

FASTEST_MS_PER_CHARACTER = 25
SLOWEST_MS_PER_CHARACTER = 250
LATEST_MS = 10_000 * 3_600_000

# What makes a cue worse, in units of its own. Only the proportions matter; they were chosen by reading what
# comes out.

_CUE = 15.0  # each cue, so that a sentence that fits into one is not shown in two
_AFTER_SENTENCE, _AFTER_CLAUSE, _BEFORE_CONJUNCTION = 0.0, 20.0, 35.0  # ending a cue or a line here
_BETWEEN_WORDS, _AFTER_CLINGER, _INSIDE_WORD = 80.0, 110.0, 200.0
_OVER_SENTENCE = 25.0  # going on past the end of a sentence: better than a flash, worse than two good cues
_OVER_PAUSE_PER_MS = 0.03
_SHORT_COLUMNS, _SHORT = 28, 60.0  # at its worst for a cue without text, nothing from that many columns on
_HASTY = 80.0  # at its worst for a cue that has no time before the next one
_IMBALANCE_PER_COLUMN = 2.0

_DASHES = ("—", "–", "-")
_CLAUSE_MARKS = tuple(",;:—–،؛、，；：")
_CONJUNCTIONS = frozenset(
    (
        *("и", "а", "но", "или", "либо", "что", "чтобы", "как", "когда", "если", "хотя", "потому", "поэтому"),
        *("который", "которая", "которое", "которые", "где", "куда", "пока"),
        *("and", "but", "or", "nor", "so", "because", "that", "which", "who", "when", "where", "while", "if"),
        *("although", "though", "unless", "until", "than"),
    )
)
_CLINGERS = _CONJUNCTIONS | {  # belong to the word after them
    *(
        "в",
        "во",
        "на",
        "с",
        "со",
        "к",
        "ко",
        "по",
        "о",
        "об",
        "от",
        "до",
        "из",
        "у",
        "за",
        "для",
        "без",
        "под",
    ),
    *("над", "при", "про", "через", "между", "не", "ни"),
    *("a", "an", "the", "of", "to", "in", "on", "at", "by", "for", "with", "from", "into", "as", "is", "are"),
    *("was", "were", "not", "no", "my", "your", "his", "her", "its", "our", "their"),
}


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle: what is on the screen between two times."""

    start: float
    """Seconds, a whole number of milliseconds, not before the end of the cue before."""
    end: float
    """Seconds, a whole number of milliseconds, after `start`."""
    lines: tuple[str, ...]
    """One or two lines of at most 42 columns, none of them empty, without the name of the speaker."""
    speaker: str | None = None
    """Who speaks. Where that changes, the lines leave room for `speaker_label` before the text."""


def subtitle_cues(transcript: Transcript) -> list[Cue]:
    """The subtitles of a transcript.

    Every cue has at most two lines of at most 42 columns and stays for at most 7 s; cues are in order and do
    not overlap; every character of the segments' texts that is neither a space nor a control character is in
    exactly one cue, in order. A text without any gives no cue. Segments are taken in order of their starts.
    Times that cannot be true (reversed, overlapping, without length, not finite) are repaired.
    """
    spoken: list[_Spoken] = []
    speaker = None
    for tokens in _runs(_tokens(transcript.segments)):
        label = columns(speaker_label(tokens[0].speaker)) if tokens[0].speaker != speaker else 0
        speaker = tokens[0].speaker
        run = _Run(tokens, label)
        spoken += [
            _Spoken(tokens[first].start, tokens[end - 1].end, run.lines(first, end), speaker)
            for first, end in run.cuts()
        ]
    return _on_screen(spoken)


def speaker_label(speaker: str | None) -> str:
    """What names the speaker before a line: `Name: `, at most 22 columns; empty where nobody is named."""
    if not speaker:
        return ""
    if columns(speaker) > LABEL_COLUMNS:
        speaker = next(cut_hard(speaker, LABEL_COLUMNS - 1)).rstrip() + "…"
    return f"{speaker}: "


def milliseconds(seconds: float) -> int:
    """Whole milliseconds between 0 and 10,000 hours; 0 for what is no number."""
    # The order of the arguments matters: max(0.0, nan) is 0.0, while max(nan, 0.0) is nan.
    return round(min(max(0.0, seconds), LATEST_MS / 1000) * 1000)


# 1. Tokens: text and times


class _Token(NamedTuple):
    """A piece of text that is never cut."""

    text: str
    columns: int
    glued: bool
    """No space before it: a piece of a long word or of CJK text."""
    start: int
    end: int
    speaker: str | None
    ends_segment: bool


class _Stretch(NamedTuple):
    """Some characters and when they were spoken: what the model says of a word, or of a whole segment."""

    characters: int
    start: int
    end: int


def _tokens(segments: Iterable[Segment]) -> Iterator[_Token]:
    """All tokens in order, their times ascending and never overlapping."""
    texts = [
        (segment, _payload(segment.text))
        for segment in sorted(segments, key=lambda segment: milliseconds(segment.start))
    ]
    clocks = [(segment, text, _stretches(segment, _characters(text))) for segment, text in texts if text]
    beginnings = [stretches[0].start for *_, stretches in clocks]
    ready = 0
    for (segment, text, stretches), following in zip(clocks, [*beginnings, LATEST_MS][1:], strict=True):
        speaker = _payload(segment.speaker or "") or None
        parts = [(piece, index > 0) for word in text.split() for index, piece in enumerate(pieces(word, LINE_COLUMNS))]
        times = _times([len(piece) for piece, _ in parts], stretches, ready, following)
        for place, ((piece, glued), (start, end)) in enumerate(zip(parts, times, strict=True), start=1):
            yield _Token(piece, columns(piece), glued, start, end, speaker, place == len(parts))
            ready = end


def _payload(text: str) -> str:
    """The text on a single line, without the arrow that both formats take for a line of times."""
    return one_line(text).replace("-->", "-- >")


def _characters(text: str) -> int:
    """How many characters are no space."""
    return sum(map(len, text.split()))


def _stretches(segment: Segment, characters: int) -> list[_Stretch]:
    """When the characters of a segment were spoken, as the model has it: at least one stretch, in order."""
    timed = [(_characters(clean(word.text)), word.start, word.end) for word in segment.words]
    timed = [item for item in timed if item[0]] or [(characters, segment.start, segment.end)]
    stretches: list[_Stretch] = []
    latest = 0
    for count, begin, finish in timed:
        start = max(milliseconds(begin), latest)
        longest = max(MAX_CUE_MS, count * SLOWEST_MS_PER_CHARACTER)
        latest = min(max(milliseconds(finish), start), start + longest)
        stretches.append(_Stretch(count, start, latest))
    return stretches


def _times(
    sizes: Sequence[int], stretches: Sequence[_Stretch], ready: int, following: int
) -> Iterator[tuple[int, int]]:
    """Start and end of each piece of a segment, from its size in characters.

    `ready` is when the segment before ends, `following` is when the next one starts; the pieces lie between
    the two, unless that is less than the fastest voice takes.
    """
    total = sum(sizes)
    # The words of a model need not spell its text (numbers, marks): then they are a clock of another length.
    spelled = [0, *accumulate(stretch.characters for stretch in stretches)]
    begin = max(stretches[0].start, ready)
    finish = max(min(stretches[-1].end, following), begin + total * FASTEST_MS_PER_CHARACTER)

    def at(place: int, index: int) -> int:
        stretch = stretches[index]
        part = (place * spelled[-1] / total - spelled[index]) / stretch.characters
        time = stretch.start + round((stretch.end - stretch.start) * part)
        return min(time, finish - (total - place) * FASTEST_MS_PER_CHARACTER)

    piece_end = begin
    for place, place_after in pairwise(accumulate(sizes, initial=0)):
        # A place between two words has two times, before and after the pause: a piece starts after and ends
        # before it.
        starting = bisect_right(spelled, place * spelled[-1] / total) - 1
        ending = bisect_left(spelled, place_after * spelled[-1] / total) - 1
        piece_start = max(at(place, starting), piece_end)
        fastest = piece_start + (place_after - place) * FASTEST_MS_PER_CHARACTER
        piece_end = max(at(place_after, ending), fastest)
        yield piece_start, piece_end


# 2. Runs: where cues and lines end


def _runs(tokens: Iterable[_Token]) -> Iterator[list[_Token]]:
    """The tokens in stretches of one speaker without a long pause: no cue reaches over the end of one."""
    run: list[_Token] = []
    for token in tokens:
        if run and (token.speaker != run[-1].speaker or token.start - run[-1].end > PAUSE_MS):
            yield run
            run = []
        run.append(token)
    if run:
        yield run


class _Run:
    """Tokens that may share cues. Positions are between tokens: `first` is before one, `end` after one."""

    def __init__(self, tokens: Sequence[_Token], label: int) -> None:
        """`label` is how many columns of the very first line the name of the speaker takes."""
        self.tokens = tokens
        self.label = label
        self.begins: list[int] = []  # columns, were the run one endless line
        self.ends: list[int] = []
        column = 0
        for token in tokens:
            begin = column if token.glued else column + 1
            column = begin + token.columns
            self.begins.append(begin)
            self.ends.append(column)

    def columns(self, first: int, end: int) -> int:
        return self.ends[end - 1] - self.begins[first]

    @cached_property
    def cut_costs(self) -> list[float]:
        """What it costs to end a cue or a line after each token; nothing after the last."""
        return [*(_cut_cost(token, following) for token, following in pairwise(self.tokens)), _AFTER_SENTENCE]

    @cached_property
    def line_ends(self) -> list[int]:
        """For each position the end of the longest line that starts there."""
        line_ends = []
        end = 0
        for first in range(len(self.tokens)):
            while end < len(self.tokens) and self.columns(first, end + 1) <= LINE_COLUMNS:
                end += 1
            line_ends.append(end)
        return [*line_ends, len(self.tokens)]

    def furthest(self, first: int) -> int:
        """The end of the longest two lines that start here."""
        line_end = self.line_ends[first]
        if first == 0:
            while line_end and self.columns(0, line_end) > LINE_COLUMNS - self.label:
                line_end -= 1  # down to 0, where the label has a line of its own
        return self.line_ends[line_end]

    def cuts(self) -> list[tuple[int, int]]:
        """The cues as (first, end): of all ways to cut the run the one that costs least in total."""
        tokens, begins, ends, cut_costs = self.tokens, self.begins, self.ends, self.cut_costs
        starts = [*(token.start for token in tokens), LATEST_MS * 2]
        over = list(accumulate(map(_over_cost, cut_costs, tokens, tokens[1:]), initial=0.0))
        best = [0.0] + [inf] * len(tokens)
        came_from = [0] * len(best)
        for first in range(len(tokens)):
            start, begin = starts[first], begins[first]
            so_far = best[first] + _CUE - over[first]
            for end in range(first + 1, self.furthest(first) + 1):
                if tokens[end - 1].end - start > MAX_CUE_MS and end > first + 1:
                    break
                cost = so_far + over[end - 1] + cut_costs[end - 1]
                width = ends[end - 1] - begin
                if width < _SHORT_COLUMNS:
                    cost += _SHORT * (1 - width / _SHORT_COLUMNS) ** 2
                room = starts[end] - start
                if room < COMFORTABLE_CUE_MS:
                    cost += _HASTY * (1 - room / COMFORTABLE_CUE_MS)
                if cost < best[end]:
                    best[end] = cost
                    came_from[end] = first
        backwards = []
        end = len(tokens)
        while end:
            backwards.append((came_from[end], end))
            end = came_from[end]
        return backwards[::-1]

    def lines(self, first: int, end: int) -> tuple[str, ...]:
        """The text of a cue on one line, or on two of much the same length that are cut at a good place."""
        taken = self.label if first == 0 else 0
        middles = [
            middle
            for middle in range(first + 1, end)
            if taken + self.columns(first, middle) <= LINE_COLUMNS and self.columns(middle, end) <= LINE_COLUMNS
        ]
        # Without a middle it is one long word, which leaves no room beside the label.
        if taken + self.columns(first, end) <= LINE_COLUMNS or not middles:
            return (self._text(first, end),)

        def cost(middle: int) -> float:
            imbalance = abs(taken + self.columns(first, middle) - self.columns(middle, end))
            return self.cut_costs[middle - 1] + _IMBALANCE_PER_COLUMN * imbalance

        middle = min(middles, key=cost)
        return self._text(first, middle), self._text(middle, end)

    def _text(self, first: int, end: int) -> str:
        tokens = self.tokens[first:end]
        return "".join(token.text if token.glued else f" {token.text}" for token in tokens).lstrip(" ")


def _cut_cost(token: _Token, following: _Token) -> float:
    if following.glued and not has_cjk(token.text + following.text):
        return _INSIDE_WORD
    sentence = ends_sentence(token.text, following.text)
    if not any(map(str.isalnum, following.text)) and not (sentence and following.text in _DASHES):
        return _AFTER_CLINGER  # an emoji or a dash belongs to what is before it, but for the dash of a dialogue
    if sentence:
        return _AFTER_SENTENCE
    paused = token.ends_segment or following.start - token.end >= BLINK_MS
    if paused or token.text.rstrip(CLOSERS).endswith(_CLAUSE_MARKS):
        return _AFTER_CLAUSE
    if token.text.lstrip(OPENERS).lower() in _CLINGERS:
        return _AFTER_CLINGER
    return _BEFORE_CONJUNCTION if following.text.lower() in _CONJUNCTIONS else _BETWEEN_WORDS


def _over_cost(cut_cost: float, token: _Token, following: _Token) -> float:
    """What it costs that both are in one cue."""
    pause = following.start - token.end
    sentence = _OVER_SENTENCE if cut_cost == _AFTER_SENTENCE else 0.0
    return sentence + (_OVER_PAUSE_PER_MS * pause if pause >= BLINK_MS else 0.0)


# 3. On screen: how long cues stay


class _Spoken(NamedTuple):
    """The lines of a cue, and when they are spoken."""

    start: int
    end: int
    lines: tuple[str, ...]
    speaker: str | None


def _on_screen(spoken: Sequence[_Spoken]) -> list[Cue]:
    """The cues: each comes with the voice and stays while it is read, but goes when the next one comes."""
    cues = []
    for cue, following in zip(spoken, [*(cue.start for cue in spoken), LATEST_MS * 2][1:], strict=True):
        reading = round(sum(map(columns, cue.lines)) * READING_MS_PER_COLUMN)
        end = max(cue.end, cue.start + COMFORTABLE_CUE_MS, cue.start + reading)
        if following - end < BLINK_MS:
            end = following
        end = min(end, cue.start + MAX_CUE_MS)
        cues.append(Cue(cue.start / 1000, end / 1000, cue.lines, cue.speaker))
    return cues
