"""The formats a transcript is written in: txt, json, srt, vtt, tsv, docx.

This is the one place that writes them; the APIs, the command line and the web page call `render`. A new
format is a function that takes a transcript and gives bytes, and a line in `FORMATS`.

Text is UTF-8 without a byte order mark, lines end with a newline. Characters that a text file cannot hold,
such as NUL, are left out everywhere.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from stenograf.errors import FormatUnknownError
from stenograf.subtitles import LINE_COLUMNS, Cue, milliseconds, speaker_label, subtitle_cues
from stenograf.typography import clean, columns, ends_sentence, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from stenograf.transcript import Segment, Transcript

__all__ = ["FORMATS", "Cue", "Format", "check", "media_type", "render", "subtitle_cues"]

PARAGRAPH_PAUSE = 2.0
"""Seconds of silence after which running text starts a new paragraph."""

PARAGRAPH_CHARACTERS = 700
"""A paragraph of at least this many characters ends with its sentence, one of twice as many with its segment.
That is about a minute of speech, and as much as one reads without wishing for a break."""

NO_DATE = datetime(1980, 1, 1, tzinfo=UTC)
"""The date of everything in a docx file, the earliest that ZIP can hold: one transcript, the same bytes."""


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write a transcript into a file."""

    name: str
    """What people call it: `srt`."""
    suffix: str
    """What the names of its files end with: `.srt`."""
    media_type: str
    """What HTTP calls it, as the value of Content-Type."""
    write: Callable[[Transcript], bytes]
    """Gives the content of the file."""


def render(transcript: Transcript, format: str) -> bytes:  # noqa: A002 - the word that every caller uses
    """The content of a file that holds the transcript; raises `FormatUnknownError` for an unknown format."""
    return FORMATS[check(format)].write(transcript)


def media_type(format: str) -> str:  # noqa: A002
    """What HTTP calls the format, as the value of Content-Type; raises `FormatUnknownError`."""
    return FORMATS[check(format)].media_type


def check(name: str) -> str:
    """The name of a format as `FORMATS` has it; capitals, spaces around it and a leading dot do not matter.

    Raises `FormatUnknownError`, with the nearest right name and the list of all, for a name it does not have.
    """
    wanted = name.strip().lower().removeprefix(".")
    if wanted in FORMATS:
        return wanted
    # No name of a format is long: what comes after the first characters cannot make it nearer.
    nearest = get_close_matches(wanted[:16], FORMATS, n=1)
    suggestion = f"Did you mean {nearest[0]}? " if nearest else ""
    known = ", ".join(FORMATS)
    raise FormatUnknownError(f"There is no format {name[:40]!r}.", f"{suggestion}The formats are {known}.")


# Running text: txt, docx


@dataclass(frozen=True, slots=True)
class _Paragraph:
    start: float
    speaker: str
    text: str


def _paragraphs(segments: Iterable[Segment]) -> Iterator[_Paragraph]:
    """The text in paragraphs: a new one after a pause, for another speaker, when one grows too long."""
    start, end, speaker = 0.0, 0.0, ""
    texts: list[str] = []
    length = 0
    for segment in segments:
        text, label = one_line(segment.text), one_line(segment.speaker or "")
        if not text:
            continue
        if texts:
            enough = PARAGRAPH_CHARACTERS * (1 if ends_sentence(texts[-1], text) else 2)
            if label != speaker or segment.start - end > PARAGRAPH_PAUSE or length >= enough:
                yield _Paragraph(start, speaker, " ".join(texts))
                texts, length = [], 0
        if not texts:
            start, speaker = segment.start, label
        texts.append(text)
        length += len(text)
        end = segment.end
    if texts:
        yield _Paragraph(start, speaker, " ".join(texts))


def _txt(transcript: Transcript) -> bytes:
    """Paragraphs of running text with an empty line between them, each after the label of its speaker."""
    paragraphs = _paragraphs(transcript.segments)
    blocks = (f"{item.speaker}: {item.text}\n" if item.speaker else f"{item.text}\n" for item in paragraphs)
    return "\n".join(blocks).encode()


def _docx(transcript: Transcript) -> bytes:
    """A Word document: a heading, a line on the recording, and paragraphs with their times and speakers."""
    import docx
    from docx.shared import RGBColor

    grey = RGBColor(0x80, 0x80, 0x80)
    russian = transcript.language == "ru"
    title = "Расшифровка" if russian else "Transcript"
    document = docx.Document()
    document.add_heading(title, level=0)
    document.add_paragraph().add_run(_about(transcript, russian)).font.color.rgb = grey
    for item in _paragraphs(transcript.segments):
        paragraph = document.add_paragraph()
        paragraph.add_run(f"[{_clock(milliseconds(item.start))}] ").font.color.rgb = grey
        if item.speaker:
            paragraph.add_run(f"{item.speaker}: ").bold = True
        paragraph.add_run(item.text)

    # The template is in American English, and Word checks the spelling by that.
    language = one_line(transcript.language or "") or "en-US"
    for element in document.styles.element.xpath("//w:lang"):
        for attribute in list(element.attrib):
            element.set(attribute, language)
    properties = document.core_properties
    properties.title, properties.language = title, language
    properties.author = properties.last_modified_by = properties.comments = ""
    properties.created = properties.modified = NO_DATE
    buffer = io.BytesIO()
    document.save(buffer)
    return _without_dates(buffer)


def _about(transcript: Transcript, russian: bool) -> str:
    """What a reader may want to know of a transcript, in a line."""
    names = ("Язык", "Длительность", "Модель") if russian else ("Language", "Duration", "Model")
    values = (
        one_line(transcript.language or ""),
        _clock(milliseconds(transcript.duration)),
        one_line(transcript.model),
    )
    return " · ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True) if value)


def _without_dates(archive: io.BytesIO) -> bytes:
    """The same ZIP archive without the times at which its files were written."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            entry = zipfile.ZipInfo(name, NO_DATE.timetuple()[:6])
            target.writestr(entry, source.read(name), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _clock(time: int) -> str:
    """Milliseconds as 00:01:15, with as many hours as there are."""
    minutes, second = divmod(time // 1000, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"


# Data: json, tsv


def _json(transcript: Transcript) -> bytes:
    """`Transcript.to_dict`, with null for numbers that JSON does not have."""
    return f"{json.dumps(_plain(transcript.to_dict()), ensure_ascii=False, indent=2)}\n".encode()


def _plain(value: Any) -> Any:
    """The value with nothing in it that UTF-8 or JSON cannot hold."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tsv(transcript: Transcript) -> bytes:
    """As openai-whisper writes it: a header, then a row for each segment, times in whole milliseconds."""
    rows = (
        f"{milliseconds(segment.start)}\t{milliseconds(segment.end)}\t{one_line(segment.text)}\n"
        for segment in transcript.segments
    )
    return "".join(("start\tend\ttext\n", *rows)).encode()


# Subtitles: srt, vtt


def _srt(transcript: Transcript) -> bytes:
    """SubRip; a speaker is named where someone else spoke before, as broadcasters do."""
    blocks = []
    speaker = None
    for number, cue in enumerate(subtitle_cues(transcript), start=1):
        label = speaker_label(cue.speaker) if cue.speaker != speaker else ""
        speaker = cue.speaker
        if columns(label + cue.lines[0]) > LINE_COLUMNS:
            label = f"{label.rstrip()}\n"  # a long word, which left this line for the label
        text = "\n".join(cue.lines)
        blocks.append(f"{number}\n{_span(cue, ',')}\n{label}{text}\n")
    return "\n".join(blocks).encode()


def _vtt(transcript: Transcript) -> bytes:
    """WebVTT; the speaker is the voice of each cue."""
    blocks = ["WEBVTT\n"]
    for cue in subtitle_cues(transcript):
        voice = f"<v {_escape(cue.speaker)}>" if cue.speaker else ""
        text = _escape("\n".join(cue.lines))
        blocks.append(f"{_span(cue, '.')}\n{voice}{text}\n")
    return "\n".join(blocks).encode()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _span(cue: Cue, point: str) -> str:
    """When the cue comes and goes: 00:01:15.250 --> 00:01:17.000, with the decimal point of the format."""
    times = (round(cue.start * 1000), round(cue.end * 1000))
    return " --> ".join(f"{_clock(time)}{point}{time % 1000:03}" for time in times)


_DOCX_MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

FORMATS: Mapping[str, Format] = {
    item.name: item
    for item in (
        Format("txt", ".txt", "text/plain; charset=utf-8", _txt),
        Format("json", ".json", "application/json", _json),
        Format("srt", ".srt", "application/x-subrip; charset=utf-8", _srt),
        Format("vtt", ".vtt", "text/vtt; charset=utf-8", _vtt),
        Format("tsv", ".tsv", "text/tab-separated-values; charset=utf-8", _tsv),
        Format("docx", ".docx", _DOCX_MEDIA_TYPE, _docx),
    )
}
"""All formats by name, in the order in which they are offered."""
