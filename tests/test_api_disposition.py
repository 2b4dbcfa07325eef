"""Names of files as they come with a form and go out with a download."""

from __future__ import annotations

from email.message import Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stenograf.api.disposition import content_disposition, parameters, safe_name, sent_filename


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("meeting.mp3", "meeting.mp3"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\a\\rec.wav", "rec.wav"),
        ("a/b\\c/d.wav", "d.wav"),
        ("folder/", "folder"),
        ("", "recording"),
        (" \t", "recording"),
        ("..", "recording"),
        (".\0.", "recording"),
        ("///", "recording"),
        ("a\0b\r\nc\x7f\x85\u2028.wav", "abc.wav"),
        ("song\u202e3pm.exe", "song3pm.exe"),
        ("a\ud800b", "ab"),
        ("и\u0306.wav", "й.wav"),
        ("Встреча.wav".encode(), "Встреча.wav"),
        (b"na\xefve.wav", "naïve.wav"),
        ("say %22hi%22%0d%0A.wav", 'say "hi".wav'),
        ("100%25 %2F.wav", "100%25 %2F.wav"),
        ("x" * 300 + ".wav", "x" * 196 + ".wav"),
        ("x" * 300, "x" * 200),
        ("." + "x" * 300, "." + "x" * 199),
        ("x." + "y" * 300, "x." + "y" * 198),
        (".wav", ".wav"),
    ],
)
def test_safe_names(raw: str | bytes, name: str) -> None:
    assert safe_name(raw) == name


@given(st.one_of(st.text(), st.binary(), st.text("./\\%20dA\0\r\n\ud800")))
def test_safe_names_of_anything(raw: str | bytes) -> None:
    name = safe_name(raw)
    assert 1 <= len(name) <= 200
    assert not set(name) & set("/\\\0\r\n")
    assert name not in (".", "..")
    name.encode()


def test_content_disposition() -> None:
    assert content_disposition("a b.txt") == 'attachment; filename="a b.txt"'
    assert content_disposition("a.mp3", inline=True) == 'inline; filename="a.mp3"'
    assert content_disposition("Встреча.srt") == (
        "attachment; filename=\"file.srt\"; filename*=UTF-8''%D0%92%D1%81%D1%82%D1%80%D0%B5%D1%87%D0%B0.srt"
    )
    assert content_disposition("Встреча.srt", stem="019f").startswith('attachment; filename="019f.srt"; ')
    assert content_disposition("Meeting.srt", stem="019f") == 'attachment; filename="Meeting.srt"'
    assert content_disposition('é"%41.txt') == "attachment; filename=\"e__41.txt\"; filename*=UTF-8''%C3%A9%22%2541.txt"
    assert content_disposition("x\r\nSet-Cookie: a=b") == 'attachment; filename="xSet-Cookie: a=b"'
    assert content_disposition("\r\n") == 'attachment; filename="recording"'


@given(st.one_of(st.text(), st.text('ab"%;\\\r\n.я ')))
def test_content_disposition_of_anything(filename: str) -> None:
    value = content_disposition(filename)
    assert value.isascii()
    assert value.isprintable()
    kind, options = parameters(value)
    assert kind == "attachment"
    assert options.keys() <= {"filename", "filename*"}
    name = safe_name(filename.replace("%", "%\0"))  # nothing there is in percents
    assert sent_filename(options) == name
    message = Message()
    message["Content-Disposition"] = "attachment" + value[value.rindex("; filename") :]
    assert message.get_filename() == name
