"""Transcripts that tests are made of: one by hand, and strategies for any that a model might give."""

from __future__ import annotations

from hypothesis import strategies as st

from stenograf.transcript import Segment, Transcript, TranscriptWarning, Word


def transcript_of(*segments: Segment, language: str | None = "en") -> Transcript:
    return Transcript(segments, language, 0.98, 60.0, "turbo", "faster-whisper", "cpu", "int8")


def spoken(start: float, text: str, speaker: str | None = None) -> Segment:
    """A segment with words, said at 12 characters a second with a breath after each word."""
    words = []
    time = start
    for word in text.split():
        end = time + len(word) / 12
        words.append(Word(round(time, 3), round(end, 3), word, 0.9))
        time = end + (0.4 if word[-1] in ".!?" else 0.05)
    return Segment(start, words[-1].end, text, tuple(words), speaker, -0.21, 0.01, 1.4)


GOLDEN = Transcript(
    segments=(
        spoken(0.52, "Добрый день, коллеги! 👋", "Анна"),
        spoken(
            3.9,
            "Сегодня мы поговорим о том, как устроено распознавание речи, потому что многие им пользуются, "
            "но мало кто знает, что происходит внутри.",
            "Анна",
        ),
        spoken(18.0, "Понятно?", "Борис"),
        spoken(18.9, "Да.", "Анна"),
        Segment(
            19.6,
            24.1,
            "Then let us switch to English: R&D said that x < 3 --> is fine, and it is.",
            speaker="Анна",
        ),
        Segment(
            30.0,
            43.0,
            "It begins with measurements: balloons, ships, aircraft and satellites, which report "
            "temperature, pressure and wind.  Then a supercomputer\ndivides the atmosphere into boxes and "
            "calculates what happens in each of them next.",
        ),
        Segment(45.5, 45.5, "Время кончилось 🙂"),
    ),
    language="ru",
    language_probability=0.9876,
    duration=75.25,
    model="turbo",
    engine="faster-whisper",
    device="cpu",
    compute_type="int8",
    warnings=(TranscriptWarning("audio_damaged", "The last 2 s could not be decoded."),),
    timings={"load": 0.5, "total": 4.25},
)

# Text that has broken subtitle files before, somewhere.
_NASTY = (
    "1",
    "00:00:01,000 --> 00:00:02,000",
    "--->",
    "a\n\nb",
    "a\r\n \r\n2\r\n",
    "\x00nul\x1b[31m\x85\ud800\ufffe",
    "<b>&amp; <v Bob>",
    "NOTE",
    "WEBVTT",
    "e\u0301" * 50,
    "a" + "\u0301" * 90,
    "👨‍👩‍👧‍👦" * 12,
    "🇷🇺" * 30,
    "שלום עולם, מה שלומך היום?",
    "今天天气很好，我们一起去公园散步吧。你觉得GPT怎么样？「はい」、そうです。",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "\u200b",
    "\u2028 \u00a0 \u3000",
    "",
)
_PROSE = (
    *("Это", "было", "давно", "и", "никто,", "кроме", "нас,", "не", "помнит.", "Why", "not?", "Because", "—"),
    *("well,", "it's", "a", "long", "story...", "Да!"),
)

_any_text = st.one_of(
    st.sampled_from(_NASTY),
    st.text(max_size=100),
    st.lists(st.sampled_from(_PROSE), max_size=40).map(" ".join),
    st.lists(st.sampled_from((*_NASTY, *_PROSE)), max_size=8).map("".join),
)
_any_time = st.one_of(
    st.floats(0, 30),
    st.sampled_from((0.0, 5.0, -1.0, 360_000.5, 1e300, float("inf"), float("-inf"), float("nan"))),
)
_any_speaker = st.one_of(st.none(), st.sampled_from(("A", "Анна", "", "<x> --> &", "a\n\nb", "long name " * 8)))


@st.composite
def _segments(draw: st.DrawFn) -> Segment:
    text = draw(_any_text)
    spelled = draw(st.sampled_from((text.split(), [draw(_any_text)], [])))
    words = tuple(Word(draw(_any_time), draw(_any_time), word) for word in spelled)
    return Segment(draw(_any_time), draw(_any_time), text, words, draw(_any_speaker))


any_transcript = st.lists(_segments(), max_size=6).map(lambda segments: transcript_of(*segments))


@st.composite
def _truthful(draw: st.DrawFn) -> Transcript:
    """Segments as a good model gives them: in order, with words that spell the text, at a human pace."""
    segments = []
    time = 0.0
    for length in draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)):
        words = []
        for text in draw(st.lists(st.sampled_from(_PROSE), min_size=length, max_size=length)):
            start = time + draw(st.sampled_from((0.0, 0.05, 0.3, 0.8, 3.0)))
            time = start + max(0.1, len(text) / draw(st.integers(8, 20)))
            words.append(Word(start, time, text))
        segments.append(Segment(words[0].start, time, " ".join(word.text for word in words), tuple(words)))
    return transcript_of(*segments)


truthful_transcript = _truthful()
