"""What the characters of a text are to its reader: how wide, what holds together, where a sentence ends."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOSERS = "\"'»”’)]}」』）】〉》"
"""What may stand between a mark and the space after it."""

OPENERS = "\"'«“‘„([{¿¡「『（【〈《"
"""What may stand between a space and the word after it."""

_SENTENCE_MARKS = tuple(".!?…。！？؟۔।")

# What a text file cannot hold, and XML even less: control characters and halves of surrogate pairs.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

# Scripts that write no spaces, so that a line may break between any two characters: kana and Han. (Thai and
# its neighbours write none either, but may break only between words, which takes a dictionary.)
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_OPEN = "「『（【〈《“‘"
_CJK_CLING = (
    "。、，．！？；：」』）】〉》”’…ーゝゞ々ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ"
    "\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
)
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_CJK_PIECE = re.compile(f"[{_CJK_OPEN}]*[{_CJK}][{_CJK_CLING}]*|[^{_CJK}{_CJK_OPEN}]+|[{_CJK_OPEN}]+")

_ZERO_WIDTH_JOINER = "\u200d"


def clean(text: str) -> str:
    """The text without control characters and halves of surrogate pairs.

    Newlines and tabs stay; the other control characters that separate become a space.
    """
    return _FORBIDDEN.sub(lambda found: " " if found[0].isspace() else "", text)


def one_line(text: str) -> str:
    """The cleaned text on a single line, with single spaces and none at its ends."""
    return " ".join(clean(text).split())


def columns(text: str) -> int:
    """The width of a line: its characters, where wide ones (CJK, emoji) count twice."""
    if text.isascii():
        return len(text)
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def ends_sentence(text: str, following: str = "") -> bool:
    """Whether a sentence ends with this text.

    None ends before a lower-case letter ("т. е."), or with a single letter and a full stop (an initial).
    """
    bare = text.rstrip(CLOSERS)
    if not bare.endswith(_SENTENCE_MARKS) or following.lstrip(OPENERS)[:1].islower():
        return False
    initial = bare.endswith(".") and bare[-2:-1].isalpha() and not bare[-3:-2].strip()
    return not initial


def has_cjk(text: str) -> bool:
    """Whether any character of the text is kana or Han."""
    return _CJK_CHARACTER.search(text) is not None


def pieces(word: str, limit: int) -> Iterator[str]:
    """The pieces that a word may be cut into: itself, but for CJK text and words wider than `limit` columns.

    CJK text gives its characters, each with the marks that may not begin a line. Of anything else each piece
    is as long as `limit` allows. No piece is empty; together they are the word.
    """
    for part in _CJK_PIECE.findall(word) if has_cjk(word) else (word,):
        if columns(part) <= limit:
            yield part
        else:
            yield from cut_hard(part, limit)


def cut_hard(word: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` columns, cut between what a reader sees as one character where that fits."""
    piece, filled = "", 0
    for cluster in _clusters(word, limit):
        width = columns(cluster)
        if filled + width > limit:
            yield piece
            piece, filled = "", 0
        piece += cluster
        filled += width
    yield piece


def _clusters(word: str, limit: int) -> Iterator[str]:
    """What a reader sees as one character: a base with its marks, a joined emoji, a flag."""
    cluster, filled = "", 0
    for character in word:
        width = columns(character)
        if cluster and (filled + width > limit or not _joins(cluster, character)):
            yield cluster
            cluster, filled = "", 0
        cluster += character
        filled += width
    yield cluster


def _joins(cluster: str, character: str) -> bool:
    return (
        character == _ZERO_WIDTH_JOINER
        or cluster[-1] == _ZERO_WIDTH_JOINER
        or unicodedata.category(character).startswith("M")
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones
        or (len(cluster) == 1 and all("\U0001f1e6" <= letter <= "\U0001f1ff" for letter in cluster + character))
    )
