"""Settings -> the objects that do the work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stenograf.errors import LanguageUnknownError, ModelNotInstalledError, OptionInvalidError
from stenograf.options import Options
from stenograf.runtime import Runtime
from stenograf.settings import Settings


def runtime(folder: Path, **settings: object) -> Runtime:
    return Runtime(Settings(models_dir=folder, offline=True, **settings))  # type: ignore[arg-type]


def test_none_stands_for_the_settings(models_dir: Path) -> None:
    made = runtime(models_dir, default_language="ru", beam_size=2, vad=False, default_trim=7.0)
    assert made.options() == Options(language="ru", beam_size=2, vad=False, trim=7.0)
    given = made.options(language="en", beam_size=1, vad=True, trim=0, prompt="x")
    assert given == Options(language="en", beam_size=1, vad=True, prompt="x")
    assert made.options(language="auto").language is None


def test_the_default_model(models_dir: Path) -> None:
    assert runtime(models_dir, default_model="gigaam-test").reader.files().engine == "onnx-asr"
    with pytest.raises(ModelNotInstalledError):
        runtime(models_dir, default_model="base").reader.files()


def test_the_catalog_knows_what_the_weights_do_not_tell(tmp_path: Path, models_dir: Path) -> None:
    shutil.copytree(models_dir / "whisper-test", tmp_path / "turbo")
    shutil.copytree(models_dir / "whisper-test", tmp_path / "distil-large-v3")
    turbo = runtime(tmp_path).reader.transcriber("turbo")
    with pytest.raises(OptionInvalidError, match="turbo cannot translate"):
        turbo.check(Options(task="translate"))
    assert turbo.check(Options(language="ru")) == []
    distilled = runtime(tmp_path).reader.transcriber("distil-large-v3")
    with pytest.raises(LanguageUnknownError, match="distil-large-v3"):
        distilled.check(Options(language="ru"))
