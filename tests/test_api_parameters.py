"""Options as text and as JSON."""

from __future__ import annotations

from typing import Any

import pytest

from stenograf.api.parameters import PARAMETERS, Parameters, read, schema
from stenograf.errors import LanguageUnknownError, OptionInvalidError


@pytest.mark.parametrize(
    ("name", "sent", "value"),
    [
        ("model", " small ", "small"),
        ("language", "Russian", "ru"),
        ("language", "ru-RU", "ru"),
        ("language", "AUTO", "auto"),
        ("task", "Translate", "translate"),
        ("temperature", "0", 0.0),
        ("temperature", 1, 1.0),
        ("beam_size", " 5 ", 5),
        ("beam_size", 20, 20),
        ("word_timestamps", "TRUE", True),
        ("word_timestamps", "on", True),
        ("word_timestamps", 1, True),
        ("vad", False, False),
        ("vad", "no", False),
        ("trim", "0", 0.0),
        ("trim", "1e2", 100.0),
    ],
)
def test_what_is_understood(name: str, sent: Any, value: Any) -> None:
    found = read([(name, sent)]).options
    assert found == {name: value}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("empty", ["", "  ", None])
def test_what_is_empty_was_not_given(name: str, empty: str | None) -> None:
    assert read([(name, empty)]) == Parameters({})


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("model", 5),
        ("model", "x" * 201),
        ("model", "a\0b"),
        ("language", ["ru"]),
        ("task", "sing"),
        ("prompt", True),
        ("prompt", "\ud800"),
        ("temperature", "-0.1"),
        ("temperature", "1,5"),
        ("temperature", "nan"),
        ("temperature", True),
        ("beam_size", "0"),
        ("beam_size", "5.0"),
        ("beam_size", 5.5),
        ("beam_size", True),
        ("beam_size", "9" * 5000),
        ("beam_size", "٥"),
        ("vad", "2"),
        ("vad", "maybe"),
        ("vad", []),
        ("vad", 1.0),
        ("diarize", True),
        ("diarize", "yes"),
        ("speakers", 2),
        ("speakers", "3"),
        ("trim", "-1"),
        ("trim", "inf"),
        ("trim", 10**400),
        ("priority", 0),
        ("priority", "10"),
        ("retention", "-1"),
        ("retention", "soon"),
        ("webhook_url", 1),
        ("webhook_secret", "whsec_" + "QUJD" * 7),
        ("webhook_secret", "whsec_" + "QUJD" * 22),
        ("webhook_secret", "QUJD" * 8),
        ("webhook_secret", "whsec_!" + "QUJD" * 8),
    ],
)
def test_what_makes_no_sense(name: str, sent: Any) -> None:
    with pytest.raises(OptionInvalidError) as caught:
        read([("webhook_url", "https://a.example/"), (name, sent)])
    assert caught.value.__dict__["option"] == name
    assert len(caught.value.message) < 300
    assert name.removeprefix("webhook_") in str(caught.value).lower() or name in ("diarize", "task")


def test_speakers_that_are_not_wanted() -> None:
    assert read([("diarize", "false"), ("speakers", "0"), ("diarize", False)]).options == {}


def test_an_unknown_language() -> None:
    with pytest.raises(LanguageUnknownError):
        read([("language", "klingon")])


@pytest.mark.parametrize(
    ("name", "near"), [("Language", "language"), ("beamsize", "beam_size"), ("webhook", "webhook")]
)
def test_an_unknown_option_is_named_with_a_near_one(name: str, near: str) -> None:
    with pytest.raises(OptionInvalidError, match=repr(name)) as caught:
        read([(name, "1")])
    assert near in caught.value.hint


def test_an_option_twice() -> None:
    assert read([("vad", "1"), ("vad", "true")]).options == {"vad": True}
    with pytest.raises(OptionInvalidError, match="twice"):
        read([("vad", "1"), ("vad", "0")])


def test_what_is_not_for_the_transcription_stands_apart() -> None:
    secret = "whsec_" + "QUJD" * 8
    sent = [("priority", "2"), ("retention", "0"), ("webhook_url", "https://a.example/"), ("webhook_secret", secret)]
    assert read(sent) == Parameters({}, 2, 0.0, "https://a.example/", secret)
    with pytest.raises(OptionInvalidError, match="webhook_url"):
        read([("webhook_secret", secret)])


@pytest.mark.parametrize("secret", ["whsec_тест" + "QUJD" * 8, "whsec_QUJD", "secret"])
def test_a_secret_of_another_form_is_refused(secret: str) -> None:
    with pytest.raises(OptionInvalidError, match="whsec_"):
        read([("webhook_url", "https://a.example/"), ("webhook_secret", secret)])


def test_the_description_has_them_all() -> None:
    assert set(schema()) == set(PARAMETERS)
    assert all(item["description"] and item["type"] for item in schema().values())
