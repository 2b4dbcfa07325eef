"""`from stenograf import transcribe`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import stenograf
from conftest import Clip, clips
from stenograf import StenografError, Transcript, load_model, save, transcribe
from stenograf.errors import LanguageUnknownError, ModelNotInstalledError, OptionInvalidError
from stenograf.transcriber import Progress


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, models_dir: Path, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STENOGRAF_MODELS_DIR", str(models_dir))
    monkeypatch.setenv("STENOGRAF_DEFAULT_MODEL", "whisper-test")
    monkeypatch.setenv("STENOGRAF_OFFLINE", "1")


def short() -> Clip:
    return next(c for c in clips() if "whisper-test" in c.exact and c.language == "ru" and c.duration < 6)


def test_a_file_in_a_transcript_out(tmp_path: Path) -> None:
    seen: list[Progress] = []
    transcript = transcribe(short().path, on_progress=seen.append, word_timestamps=True)
    assert isinstance(transcript, Transcript)
    assert transcript.text == short().text
    assert transcript.language == "ru"
    assert transcript.words[0].text == short().text.split()[0]
    assert seen[-1].fraction == 1
    save(transcript, tmp_path / "a.srt")
    assert short().text.split()[0] in (tmp_path / "a.srt").read_text("utf-8")
    again = Transcript.from_dict(transcript.to_dict())
    assert again.to_dict() == transcript.to_dict()


def test_a_path_as_text_and_an_open_file() -> None:
    assert transcribe(str(short().path), language="ru").text == short().text
    with short().path.open("rb") as file:
        assert transcribe(file, language="ru").text == short().text


def test_the_last_model_stays_in_memory() -> None:
    assert load_model() is load_model()
    assert load_model("gigaam-test") is not load_model()


def test_a_model_that_was_closed_is_loaded_again() -> None:
    load_model().close()
    assert transcribe(short().path, language="ru").text == short().text


def test_threads_that_ask_at_once_load_it_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: load_model("gigaam-test"), range(8)))) == 1


def test_wrong_options_are_told_before_a_model_is_loaded() -> None:
    with pytest.raises(LanguageUnknownError):
        transcribe(short().path, language="klingon", model="large-v3")
    with pytest.raises(OptionInvalidError):
        transcribe(short().path, beam_size=0, model="large-v3")


def test_offline_and_not_there_says_what_to_do() -> None:
    with pytest.raises(ModelNotInstalledError) as caught:
        transcribe(short().path, model="base")
    assert isinstance(caught.value, StenografError)
    assert "model.bin" in str(caught.value)
    assert "stenograf models pull base" in str(caught.value)


def test_importing_the_library_is_light(run_python: Callable[[str], str]) -> None:
    code = "import sys, stenograf; print([m for m in ('numpy', 'av', 'faster_whisper') if m in sys.modules])"
    assert run_python(code) == "[]"


def test_everything_public_is_documented() -> None:
    for name in stenograf.__all__:
        if not name.startswith("__"):
            assert getattr(stenograf, name).__doc__, name
