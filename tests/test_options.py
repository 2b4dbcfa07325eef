"""What may be asked of a transcription, and how languages are named."""

from __future__ import annotations

from typing import Any

import pytest

from stenograf.errors import LanguageUnknownError, OptionInvalidError
from stenograf.languages import LANGUAGES, language_code
from stenograf.options import Options


@pytest.mark.parametrize(
    ("name", "code"),
    [("ru", "ru"), ("RU", "ru"), ("ru-RU", "ru"), ("ru_RU", "ru"), ("Russian", "ru"), ("русский", "ru"), ("rus", "ru"),
     ("en", "en"), (" English ", "en"), ("haitian creole", "ht"),
     ("yue", "yue"), ("auto", None), ("", None), (None, None)],
)  # fmt: skip
def test_languages_by_code_name_and_locale(name: str | None, code: str | None) -> None:
    assert language_code(name) == code


@pytest.mark.parametrize(("name", "near"), [("rusian", "russian"), ("englsh", "english"), ("xx", ""), ("klingon", "")])
def test_a_wrong_language_gets_the_nearest_right_one(name: str, near: str) -> None:
    with pytest.raises(LanguageUnknownError) as caught:
        language_code(name)
    assert name in caught.value.message
    assert near in caught.value.hint


def test_every_language_has_a_name_of_its_own() -> None:
    assert len(set(LANGUAGES.values())) == len(LANGUAGES)
    assert all(language_code(name) == code for code, name in LANGUAGES.items())


@pytest.mark.parametrize(
    "wrong",
    [{"task": "sing"}, {"beam_size": 0}, {"beam_size": 21}, {"temperature": -0.1}, {"temperature": 1.5},
     {"trim": -1}, {"beam_size": 2.5},
     {"trim": float("nan")}, {"trim": float("inf")}, {"prompt": "x" * 4001}, {"hotwords": "x" * 4001}],
)  # fmt: skip
def test_an_option_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionInvalidError) as caught:
        Options(**wrong)
    assert caught.value.hint


def test_blank_texts_are_none() -> None:
    options = Options(prompt="  ", hotwords="\n")
    assert (options.prompt, options.hotwords) == (None, None)


def test_a_trim_of_0_reads_everything() -> None:
    assert Options(trim=0).trim is None
