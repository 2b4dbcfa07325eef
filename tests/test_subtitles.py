"""The rules of subtitles, for transcripts of all sorts."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings

from stenograf.subtitles import Cue, speaker_label, subtitle_cues
from stenograf.transcript import Segment, Transcript, Word
from transcripts import any_transcript, spoken, transcript_of, truthful_transcript

pytestmark = pytest.mark.timeout(60)


def visible(text: str) -> str:
    """What must be kept: all but spaces, control characters, and what is no character at all."""
    return "".join(
        character
        for character in text
        if not character.isspace()
        and unicodedata.category(character) not in {"Cc", "Cs"}
        and character not in "\ufffe\uffff"
    )


def in_order(transcript: Transcript) -> list[Segment]:
    def start(segment: Segment) -> float:
        return min(segment.start, 36_000_000) if segment.start > 0 else 0.0  # nan is not

    return sorted(transcript.segments, key=lambda segment: round(start(segment), 3))


def text_of(cues: list[Cue]) -> list[str]:
    return [" | ".join(cue.lines) for cue in cues]


@settings(max_examples=300, deadline=None)
@given(any_transcript)
def test_every_cue_keeps_the_rules(transcript: Transcript) -> None:
    cues = subtitle_cues(transcript)
    for cue in cues:
        assert 1 <= len(cue.lines) <= 2
        for line in cue.lines:
            assert 0 < len(line) <= 42
            assert line == line.strip()
            assert line.splitlines() == [line]
            assert "-->" not in line
        assert 0 <= cue.start < cue.end
        assert round(cue.end * 1000) - round(cue.start * 1000) <= 7000
        for point in (cue.start, cue.end):
            assert point == round(point, 3)
    for before, after in pairwise(cues):
        assert before.end <= after.start


@settings(max_examples=300, deadline=None)
@given(any_transcript)
def test_no_character_is_lost_doubled_or_moved(transcript: Transcript) -> None:
    shown = "".join(line for cue in subtitle_cues(transcript) for line in cue.lines)
    assert visible(shown) == visible("".join(segment.text for segment in in_order(transcript)))


@settings(max_examples=100, deadline=None)
@given(any_transcript)
def test_a_label_has_room_where_the_speaker_changes(transcript: Transcript) -> None:
    speaker = None
    for cue in subtitle_cues(transcript):
        label = speaker_label(cue.speaker) if cue.speaker != speaker else ""
        speaker = cue.speaker
        assert len(label) <= 22
        assert len(label) + len(cue.lines[0]) <= 42 or len(cue.lines) == 1


@settings(max_examples=150, deadline=None)
@given(truthful_transcript)
def test_words_are_whole_and_cues_follow_their_times(transcript: Transcript) -> None:
    words = list(transcript.words)
    cues = subtitle_cues(transcript)
    assert [word for cue in cues for line in cue.lines for word in line.split()] == [word.text for word in words]
    for cue, following in zip(cues, [*cues[1:], None], strict=True):
        length = len(" ".join(cue.lines).split())
        shown, words = words[:length], words[length:]
        assert cue.start == pytest.approx(shown[0].start, abs=0.0006)
        due = min(shown[-1].end, shown[0].start + 7)
        assert cue.end >= due - 0.0011
        room = following.start - cue.start if following else 7
        characters = sum(map(len, cue.lines))
        assert cue.end - cue.start >= min(room, 1, 7) - 0.0011
        assert cue.end - cue.start >= min(room, characters / 17, 7) - 0.0011


def test_nothing_said_gives_nothing() -> None:
    assert subtitle_cues(transcript_of()) == []
    assert subtitle_cues(transcript_of(Segment(0, 2, ""), Segment(2, 4, " \n\x00"))) == []


def test_cuts_after_sentences_then_commas_then_before_conjunctions() -> None:
    cues = subtitle_cues(
        transcript_of(
            spoken(
                0,
                "Good morning, everyone. Today I would like to talk about how the weather forecast is made, "
                "because most of us look at it every day and very few of us know where the numbers come "
                "from.",
            )
        )
    )
    assert text_of(cues) == [
        "Good morning, everyone.",
        "Today I would like to talk about | how the weather forecast is made,",
        "because most of us look at it every day",
        "and very few of us know | where the numbers come from.",
    ]


def test_initials_and_abbreviations_do_not_end_sentences() -> None:
    cues = subtitle_cues(transcript_of(spoken(0, "А. С. Пушкин, т. е. тот самый поэт, родился в Москве в мае.")))
    assert text_of(cues) == ["А. С. Пушкин, т. е. тот самый поэт, | родился в Москве в мае."]


def test_no_line_begins_with_a_dash_or_an_emoji_but_that_of_a_dialogue() -> None:
    (cue,) = subtitle_cues(transcript_of(spoken(0, "Распознавание речи на своей машине — дело хорошее! 👋")))
    assert cue.lines == ("Распознавание речи на своей машине —", "дело хорошее! 👋")
    (cue,) = subtitle_cues(transcript_of(spoken(0, "— Пойдём сегодня вечером гулять? — Да, пойдём.")))
    assert cue.lines == ("— Пойдём сегодня вечером гулять?", "— Да, пойдём.")


def test_short_answers_share_a_cue_and_a_long_pause_parts_them() -> None:
    together = transcript_of(spoken(0, "Is it? No."), spoken(1.5, "Well, sometimes it is."))
    assert text_of(subtitle_cues(together)) == ["Is it? No. Well, sometimes it is."]
    apart = transcript_of(spoken(0, "Is it? No."), spoken(5, "Well, sometimes it is."))
    assert text_of(subtitle_cues(apart)) == ["Is it? No.", "Well, sometimes it is."]


def test_two_speakers_never_share_a_cue() -> None:
    cues = subtitle_cues(transcript_of(spoken(0, "Yes.", "A"), spoken(0.5, "No.", "B")))
    assert [(cue.speaker, cue.lines) for cue in cues] == [("A", ("Yes.",)), ("B", ("No.",))]


def test_a_word_longer_than_a_line_is_split_between_characters_as_readers_see_them() -> None:
    (cue,) = subtitle_cues(transcript_of(Segment(0, 7, "x" * 50)))
    assert cue.lines == ("x" * 42, "x" * 8)
    (cue,) = subtitle_cues(transcript_of(Segment(0, 7, "e\u0301\u0302\u0303" * 15)))  # 42 is no multiple of four
    assert all(line.startswith("e") for line in cue.lines)
    for cue in subtitle_cues(transcript_of(Segment(0, 7, "👨‍👩‍👧‍👦" * 12))):
        assert all(set(line.split("👨‍👩‍👧‍👦")) == {""} for line in cue.lines)


def test_cjk_is_cut_between_characters_and_no_line_begins_with_a_mark() -> None:
    text = "今天天气很好，我们一起去公园散步吧。你觉得怎么样？我觉得GPT模型可以帮助我们更好地理解这个问题。"
    cues = subtitle_cues(transcript_of(Segment(0, 20, text)))
    lines = [line for cue in cues for line in cue.lines]
    assert "".join(lines) == text
    assert all(len(line) <= 21 or "GPT" in line for line in lines)
    assert not any(line[0] in "，。？" for line in lines)
    assert lines[0] == "今天天气很好，我们一起去公园散步吧。"


def test_times_are_shared_out_by_characters_without_words() -> None:
    first, second = "a" * 30 + " " + "b" * 29 + ".", "C" * 19 + " " + "d" * 20
    cues = subtitle_cues(transcript_of(Segment(10, 20, f"{first} {second}")))
    assert [round(cue.start, 1) for cue in cues] == [10.0, 16.1]  # 60 of 99 characters
    assert cues[0].end == cues[1].start


def test_words_that_do_not_spell_the_text_are_still_its_clock() -> None:
    words = (Word(1, 2, "twenty"), Word(2, 3, "three"), Word(9, 10, "dogs"))
    cues = subtitle_cues(transcript_of(Segment(1, 10, "23 dogs barked", words)))
    assert cues[0].start == 1
    assert visible("".join(line for cue in cues for line in cue.lines)) == "23dogsbarked"
    assert cues[-1].start < 10


def test_a_segment_without_length_is_given_time() -> None:
    text = "This was said in no time at all, if the model is to be believed, which of course it is not, is it?"
    cues = subtitle_cues(transcript_of(Segment(5, 5, text), Segment(5, 5, "Nor was this."), Segment(20, 22, "So.")))
    assert cues[0].start == 5
    assert all(cue.end - cue.start >= 0.3 for cue in cues)
    assert cues[-1].start == 20


def test_an_end_that_cannot_be_true_does_not_push_what_follows() -> None:
    cues = subtitle_cues(transcript_of(Segment(0, 1000, "One."), Segment(3, 4, "Two."), Segment(7, 8, "Three.")))
    assert [(cue.start, cue.lines) for cue in cues] == [(0, ("One. Two.",)), (7, ("Three.",))]


def test_crowded_at_one_instant_all_are_there_in_order() -> None:
    crowd = tuple(Segment(1, 1, f"Number {number}.", (), str(number)) for number in range(300))
    cues = subtitle_cues(transcript_of(*crowd))
    assert [cue.lines for cue in cues] == [(f"Number {number}.",) for number in range(300)]
    assert all(before.end <= after.start for before, after in pairwise(cues))
