"""What is written, byte for byte and by the rules of each format.

The golden files in `tests/golden/` are what `transcripts.GOLDEN` looks like in each format; of the docx it is
the text of its document. After a change that is meant, write them anew, and read what changed:

    REWRITE_GOLDEN=1 pytest tests/test_formats.py; git diff tests/golden
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import docx
import pytest
from hypothesis import given, settings

from stenograf.errors import FormatUnknownError
from stenograf.formats import FORMATS, check, media_type, render, subtitle_cues
from stenograf.subtitles import speaker_label
from stenograf.transcript import Segment, Transcript
from transcripts import GOLDEN, any_transcript, spoken, transcript_of

pytestmark = pytest.mark.timeout(60)
GOLDEN_FILES = Path(__file__).parent / "golden"


def text(transcript: Transcript, name: str) -> str:
    return render(transcript, name).decode("utf-8")


def document_xml(content: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read("word/document.xml").decode("utf-8").replace("</w:p>", "</w:p>\n")


# The names


def test_formats_are_found_by_name() -> None:
    assert list(FORMATS) == ["txt", "json", "srt", "vtt", "tsv", "docx"]
    for name, item in FORMATS.items():
        assert item.name == name
        assert item.suffix == f".{name}"
        assert media_type(name) == item.media_type
        assert re.fullmatch(r"[a-z]+/[-.a-z]+(; charset=utf-8)?", item.media_type)
    assert check(" .SRT ") == "srt"
    assert render(GOLDEN, "SRT") == render(GOLDEN, "srt")


@pytest.mark.parametrize(("wrong", "right"), [("doc", "docx"), ("str", "srt"), ("text", "txt"), ("webvtt", "vtt")])
def test_an_unknown_format_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(FormatUnknownError) as caught:
        render(GOLDEN, wrong)
    assert wrong in caught.value.message
    assert caught.value.hint == f"Did you mean {right}? The formats are txt, json, srt, vtt, tsv, docx."


def test_a_far_fetched_format_names_none() -> None:
    with pytest.raises(FormatUnknownError) as caught:
        media_type("mp3" * 100_000)
    assert caught.value.hint == "The formats are txt, json, srt, vtt, tsv, docx."
    assert len(caught.value.message) < 80


def test_word_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, stenograf.formats; sys.exit('docx' in sys.modules or 'lxml' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# The bytes


@pytest.mark.parametrize("name", FORMATS)
def test_golden(name: str) -> None:
    content = render(GOLDEN, name)
    if name == "docx":
        content = document_xml(content).encode()
    golden = GOLDEN_FILES / ("transcript.docx.xml" if name == "docx" else f"transcript.{name}")
    if os.environ.get("REWRITE_GOLDEN"):
        golden.write_bytes(content)
    assert content.decode() == golden.read_bytes().decode()


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_said(name: str) -> None:
    empty = replace(transcript_of(), language=None)
    content = render(empty, name)
    expected = {"txt": b"", "srt": b"", "vtt": b"WEBVTT\n", "tsv": b"start\tend\ttext\n"}
    assert content == expected.get(name, content)
    if name == "json":
        assert json.loads(content) == empty.to_dict()


@settings(max_examples=100, deadline=None)
@given(any_transcript)
def test_no_text_format_holds_what_a_text_file_cannot(transcript: Transcript) -> None:
    for name in set(FORMATS) - {"docx"}:
        content = text(transcript, name)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]", content)
        assert content.endswith("\n") or not content


# txt


def test_paragraphs_begin_after_a_pause_and_for_another_speaker() -> None:
    transcript = transcript_of(
        Segment(0, 2, "One."),
        Segment(4, 5, " Two. "),
        Segment(7.1, 8, "Three."),
        Segment(8, 9, "Four.", (), "Ann"),
    )
    assert text(transcript, "txt") == "One. Two.\n\nThree.\n\nAnn: Four.\n"


def test_long_speech_has_paragraphs_that_end_with_sentences() -> None:
    sentence = ("one sentence over three segments " * 3).strip()
    parts = [f"The {sentence}", sentence, f"{sentence}."] * 20
    paragraphs = text(
        transcript_of(*(Segment(index, index + 1, part) for index, part in enumerate(parts))), "txt"
    ).split("\n\n")
    assert len(paragraphs) > 3
    assert all(paragraph.strip().startswith("The") and paragraph.strip().endswith(".") for paragraph in paragraphs)
    assert all(700 <= len(paragraph) < 1100 for paragraph in paragraphs[:-1])
    unmarked = text(transcript_of(*(Segment(index, index + 1, "слово " * 20) for index in range(60))), "txt")
    assert all(1400 <= len(paragraph) < 1600 for paragraph in unmarked.split("\n\n")[:-1])


# json


def test_json_gives_back_the_transcript() -> None:
    content = text(GOLDEN, "json")
    assert Transcript.from_dict(json.loads(content)) == GOLDEN
    assert json.loads(content) == GOLDEN.to_dict()
    assert "Добрый" in content
    assert content.startswith("{\n  ")
    assert content.endswith("}\n")


def test_json_is_json_even_where_the_model_lost_count() -> None:
    broken = transcript_of(Segment(0, 1, "a\x00b\ud800", avg_logprob=float("nan"), compression_ratio=float("inf")))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (segment,) = json.loads(text(broken, "json"), parse_constant=refuse)["segments"]
    assert segment["text"] == "ab"
    assert segment["avg_logprob"] is None
    assert segment["compression_ratio"] is None


# tsv


@settings(max_examples=100, deadline=None)
@given(any_transcript)
def test_tsv_has_a_row_for_each_segment(transcript: Transcript) -> None:
    header, *rows = text(transcript, "tsv").removesuffix("\n").split("\n")
    assert header == "start\tend\ttext"
    assert len(rows) == len(transcript.segments)
    for row, segment in zip(rows, transcript.segments, strict=True):
        start, end, content = row.split("\t")
        assert start.isdigit()
        assert end.isdigit()
        if 0 <= segment.start <= 30:
            assert int(start) == round(segment.start * 1000)
        assert "".join(content.split()) == re.sub(
            "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "", "".join(segment.text.split())
        )


# srt, vtt: read back by strict readers that know nothing of the writer

Parsed = list[tuple[int, int, list[str]]]
TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)%s(\d{3})"
SRT_TIMES = re.compile(f"{TIME % ','} --> {TIME % ','}")
VTT_TIMES = re.compile(f"{TIME % '[.]'} --> {TIME % '[.]'}")


def parse_blocks(content: str, times: re.Pattern[str], numbered: bool) -> Parsed:
    if not content:
        return []
    assert content.endswith("\n")
    cues: Parsed = []
    for number, block in enumerate(content.removesuffix("\n").split("\n\n"), start=1):
        lines = block.split("\n")
        if numbered:
            assert lines.pop(0) == str(number)
        match = times.fullmatch(lines.pop(0))
        assert match, block
        numbers = [int(group) for group in match.groups()]
        start, end = (
            ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest
            for hours, minutes, seconds, rest in (numbers[:4], numbers[4:])
        )
        assert start < end
        assert not cues or cues[-1][1] <= start
        assert 1 <= len(lines) <= 2
        assert all(line.strip() and "-->" not in line for line in lines), block
        cues.append((start, end, lines))
    return cues


def parse_srt(content: str) -> Parsed:
    cues = parse_blocks(content, SRT_TIMES, numbered=True)
    assert all(len(line) <= 42 for *_, lines in cues for line in lines)
    return cues


def parse_vtt(content: str) -> list[tuple[int, int, list[str], str | None]]:
    header, _, body = content.partition("\n\n") if "\n\n" in content else (content.rstrip("\n"), "", "")
    assert header == "WEBVTT"
    parsed = []
    for start, end, lines in parse_blocks(body, VTT_TIMES, numbered=False):
        match = re.fullmatch(r"(?:<v ([^<>\n]+)>)?([^<>]+)", "\n".join(lines))
        assert match, lines
        assert all(re.match("(amp|lt|gt);", rest) for rest in "\n".join(lines).split("&")[1:])
        voice, payload = (unescape(group) if group else None for group in match.groups())
        assert payload
        parsed.append((start, end, payload.split("\n"), voice))
    return parsed


def unescape(payload: str) -> str:
    return payload.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


@settings(max_examples=200, deadline=None)
@given(any_transcript)
def test_subtitle_files_read_back_as_the_cues(transcript: Transcript) -> None:
    cues = [
        (round(cue.start * 1000), round(cue.end * 1000), list(cue.lines), cue.speaker)
        for cue in subtitle_cues(transcript)
    ]
    assert parse_vtt(text(transcript, "vtt")) == cues
    parsed = parse_srt(text(transcript, "srt"))
    assert [cue[:2] for cue in parsed] == [cue[:2] for cue in cues]
    speaker = None
    for (*_, written), (*_, lines, speaking) in zip(parsed, cues, strict=True):
        label = speaker_label(speaking) if speaking != speaker else ""
        speaker = speaking
        assert "".join("".join(written).split()) == "".join((label + "".join(lines)).split())


def test_speakers_are_named_when_they_change() -> None:
    transcript = transcript_of(
        spoken(0, "Yes.", "Ann"),
        spoken(4, "Really.", "Ann"),
        spoken(8, "No & no.", "B<o>b"),
        spoken(12, "Hm."),
    )
    srt, vtt = parse_srt(text(transcript, "srt")), parse_vtt(text(transcript, "vtt"))
    assert [lines for *_, lines in srt] == [["Ann: Yes."], ["Really."], ["B<o>b: No & no."], ["Hm."]]
    assert [voice for *_, voice in vtt] == ["Ann", "Ann", "B<o>b", None]
    assert "<v B&lt;o&gt;b>No &amp; no.\n" in text(transcript, "vtt")


def test_a_word_that_fills_the_line_has_the_label_above_it() -> None:
    srt = text(transcript_of(Segment(0, 3, "x" * 42, (), "Ann")), "srt")
    assert srt == f"1\n00:00:00,000 --> 00:00:03,000\nAnn:\n{'x' * 42}\n"


def test_days_of_speech() -> None:
    srt = text(transcript_of(Segment(100 * 3600 + 61.5, 100 * 3600 + 63, "Still here.")), "srt")
    assert srt == "1\n100:01:01,500 --> 100:01:03,000\nStill here.\n"


# docx


def test_docx_opens_and_reads() -> None:
    document = docx.Document(io.BytesIO(render(GOLDEN, "docx")))
    paragraphs = [paragraph.text for paragraph in document.paragraphs]
    assert paragraphs[:3] == [
        "Расшифровка",
        "Язык: ru · Длительность: 00:01:15 · Модель: turbo",
        "[00:00:00] Анна: Добрый день, коллеги! 👋 Сегодня мы поговорим о том, как устроено распознавание "
        "речи, потому что многие им пользуются, но мало кто знает, что происходит внутри.",
    ]
    time, speaker, _ = document.paragraphs[2].runs
    assert str(time.font.color.rgb) == "808080"
    assert speaker.bold
    properties = document.core_properties
    assert (properties.author, properties.comments, properties.title) == ("", "", "Расшифровка")
    assert properties.language == "ru"


def test_docx_is_english_for_other_languages() -> None:
    document = docx.Document(io.BytesIO(render(replace(GOLDEN, language="de"), "docx")))
    assert document.paragraphs[0].text == "Transcript"
    assert document.paragraphs[1].text == "Language: de · Duration: 00:01:15 · Model: turbo"


def test_docx_is_the_same_bytes_again() -> None:
    content = render(GOLDEN, "docx")
    assert render(GOLDEN, "docx") == content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None


@settings(max_examples=10, deadline=None)
@given(any_transcript)
def test_docx_takes_any_text(transcript: Transcript) -> None:
    document = docx.Document(io.BytesIO(render(transcript, "docx")))
    written = "".join(paragraph.text for paragraph in document.paragraphs[2:])
    for segment in transcript.segments:
        assert re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "", "".join(segment.text.split())) in (
            "".join(written.split())
        )
