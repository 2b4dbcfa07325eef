"""Which model reads a recording, chosen for real between the two small ones; memory and the hub."""

from __future__ import annotations

import io
import os
import shutil
import threading
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import Clip, clips
from stenograf.chunk import ChunkResult
from stenograf.errors import (
    CancelledError,
    DownloadFailedError,
    LanguageUnknownError,
    ModelDamagedError,
    ModelNotInstalledError,
    ModelTooLargeError,
)
from stenograf.runtime import Runtime
from stenograf.settings import Settings


def runtime(folder: Path, **settings: object) -> Runtime:
    return Runtime(Settings(models_dir=folder, **{"offline": True, "beam_size": 1, **settings}))  # type: ignore[arg-type]


def clip(language: str, model: str) -> Clip:
    return next(c for c in clips() if model in c.exact and c.language == language and c.duration < 6)


@pytest.fixture
def two(tmp_path: Path, models_dir: Path) -> Path:
    """A folder with a Whisper that knows Russian and English, and a GigaAM."""
    for name in ("whisper-test", "gigaam-test"):
        (tmp_path / name).symlink_to(models_dir / name)
    return tmp_path


def plain(text: str) -> str:
    return "".join(c for c in text.lower().replace("ё", "е") if c.isalnum() or c.isspace())


def test_russian_is_heard_and_read_by_gigaam(two: Path) -> None:
    made, russian = runtime(two), clip("ru", "gigaam-test")
    transcript = made.reader.read(russian.path, made.options())
    assert plain(transcript.text) == plain(russian.text)
    assert (transcript.model, transcript.engine, transcript.language) == ("gigaam-test", "onnx-asr", "ru")
    assert 0.5 < (transcript.language_probability or 0) <= 1
    reason = "chosen because it reads Russian on a processor; whisper-test heard Russian"
    assert transcript.model_reason == reason
    (note,) = transcript.warnings
    assert (note.code, note.message.split(" would")[0]) == ("second_best", "The model gigaam-v3-e2e-rnnt")
    assert transcript.to_dict()["model_reason"] == reason


def test_english_is_heard_and_read_by_whisper(two: Path) -> None:
    made, english = runtime(two), clip("en", "whisper-test")
    transcript = made.reader.read(english.path, made.options())
    assert plain(transcript.text) == plain(english.text)
    assert (transcript.model, transcript.language) == ("whisper-test", "en")
    assert [held.name for held in made.reader.loaded()] == [str(two / "whisper-test")]


def test_a_language_that_is_given_is_not_listened_for(two: Path) -> None:
    made = runtime(two)
    transcript = made.reader.read(clip("ru", "gigaam-test").path, made.options(language="ru"))
    assert (transcript.model, transcript.language_probability) == ("gigaam-test", None)
    assert transcript.model_reason == "chosen because it reads Russian on a processor"
    assert len(made.reader.loaded()) == 1


def test_a_model_that_is_named_is_taken_without_a_reason(two: Path) -> None:
    made = runtime(two)
    transcript = made.reader.read(clip("ru", "whisper-test").path, made.options(), model="whisper-test")
    assert (transcript.model, transcript.model_reason, transcript.warnings) == ("whisper-test", None, ())


def test_translations_are_whispers(two: Path) -> None:
    made = runtime(two)
    russian = clip("ru", "whisper-test")
    transcript = made.reader.read(russian.path, made.options(language="ru", task="translate"))
    assert transcript.model == "whisper-test"
    assert transcript.text.isascii()


def test_without_a_model_that_tells_languages_apart(tmp_path: Path, models_dir: Path) -> None:
    (tmp_path / "gigaam-test").symlink_to(models_dir / "gigaam-test")
    made, russian = runtime(tmp_path), clip("ru", "gigaam-test")
    transcript = made.reader.read(russian.path, made.options())
    assert plain(transcript.text) == plain(russian.text)
    assert "so it was read as Russian: name the language, or pull base." in transcript.warnings[0].message
    assert transcript.warnings[0].code == "language_assumed"
    with pytest.raises(ModelNotInstalledError, match="reads Kyrgyz"):
        made.reader.read(russian.path, made.options(language="ky"))
    with pytest.raises(ModelNotInstalledError, match="reads English"):
        made.reader.read(russian.path, made.options(language="en"))


def test_without_a_hub_to_fetch_the_listener_from(tmp_path: Path, models_dir: Path) -> None:
    (tmp_path / "gigaam-test").symlink_to(models_dir / "gigaam-test")
    made = runtime(tmp_path, offline=False, hub_endpoint="http://127.0.0.1:9")
    russian = clip("ru", "gigaam-test")
    transcript = made.reader.read(russian.path, made.options())  # the first, too
    assert plain(transcript.text) == plain(russian.text)
    assert transcript.warnings[0].code == "language_assumed"
    empty = runtime(tmp_path / "empty", offline=False, hub_endpoint="http://127.0.0.1:9")
    with pytest.raises(DownloadFailedError):
        empty.reader.read(russian.path, empty.options())


def test_a_listener_that_cannot_be_loaded(tmp_path: Path, models_dir: Path) -> None:
    (tmp_path / "gigaam-test").symlink_to(models_dir / "gigaam-test")
    shutil.copytree(models_dir / "whisper-test", tmp_path / "whisper-test")
    weights = tmp_path / "whisper-test" / "model.bin"
    weights.write_bytes(weights.read_bytes()[:3_000_000])
    made, russian = runtime(tmp_path), clip("ru", "gigaam-test")
    transcript = made.reader.read(russian.path, made.options())
    assert (transcript.model, transcript.warnings[0].code) == ("gigaam-test", "language_assumed")


def test_whisper_alone_finds_the_language_by_itself(tmp_path: Path, models_dir: Path) -> None:
    (tmp_path / "whisper-test").symlink_to(models_dir / "whisper-test")
    made, russian = runtime(tmp_path), clip("ru", "whisper-test")
    transcript = made.reader.read(russian.path, made.options())
    assert plain(transcript.text) == plain(russian.text)
    assert (transcript.model, transcript.language) == ("whisper-test", "ru")
    assert transcript.model_reason == "chosen because it reads many languages on a processor"


def test_nothing_at_all_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelNotInstalledError) as caught:
        runtime(tmp_path).reader.available.choose("ru")
    assert "stenograf models pull gigaam-v3-e2e-rnnt" in caught.value.hint


def sound(samples: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(16_000)
        written.writeframes((samples * 32767).astype("<i2").tobytes())
    file.seek(0)
    return file


def test_silence_loads_no_second_model(two: Path) -> None:
    made = runtime(two)
    transcript = made.reader.read(sound(np.zeros(32_000)), made.options())
    assert (transcript.text, transcript.language) == ("", None)
    assert transcript.model_reason == "chosen because nobody speaks in the recording"
    assert len(made.reader.loaded()) == 1


def test_a_pipe_can_be_listened_to_and_read(two: Path) -> None:
    made, russian = runtime(two), clip("ru", "gigaam-test")
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(russian.path.read_bytes())

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        transcript = made.reader.read(pipe, made.options())
    thread.join(20)
    assert plain(transcript.text) == plain(russian.text)


def test_an_open_file_is_read_from_where_it_stands(two: Path) -> None:
    made, russian = runtime(two), clip("ru", "gigaam-test")
    with russian.path.open("rb") as file:
        assert plain(made.reader.read(file, made.options()).text) == plain(russian.text)


def test_what_was_begun_by_one_model_is_ended_by_it(two: Path) -> None:
    made, russian = runtime(two), clip("ru", "whisper-test")
    read: list[ChunkResult] = []
    made.reader.read(russian.path, made.options(language="ru"), model="whisper-test", on_chunk=read.append)
    transcript = made.reader.read(russian.path, made.options(), done=read, earlier="whisper-test")
    assert (transcript.model, transcript.model_reason) == ("whisper-test", "chosen when the recording was begun")
    assert plain(transcript.text) == plain(russian.text)


def test_a_default_model_that_changed_meanwhile_is_not_mixed_in(two: Path) -> None:
    """Chunks are cut to the model's length: another model would go on elsewhere in the recording."""
    long = next(c for c in clips() if c.data.get("sentences") and c.language == "ru")
    first = runtime(two, default_model="gigaam-test")
    read: list[ChunkResult] = []
    whole = first.reader.read(long.path, first.options(language="ru"), on_chunk=read.append)
    second = runtime(two, default_model="whisper-test")
    again = second.reader.read(long.path, second.options(language="ru"), done=read[:2], earlier="gigaam-test")
    assert (again.model, again.text) == ("gigaam-test", whole.text)


def test_one_folder_that_is_of_no_use_does_not_stop_the_choice(two: Path) -> None:
    (two / "gigaam-v3-e2e-rnnt").mkdir()
    (two / "gigaam-v3-e2e-rnnt" / "v3_e2e_rnnt_encoder.onnx").write_bytes(b"half")
    (two / "mine:large").symlink_to(two / "whisper-test")
    made = runtime(two)
    choice = made.reader.available.choose("ru")
    assert choice.name == "gigaam-test"
    assert "it is damaged here (stenograf models pull gigaam-v3-e2e-rnnt mends it)" in choice.second_best
    assert made.reader.available.needed_first() == ["whisper-test", "gigaam-test"]


def test_one_that_cannot_be_loaded_is_done_without(tmp_path: Path, models_dir: Path) -> None:
    for name in ("whisper-test", "gigaam-test"):
        (tmp_path / name).symlink_to(models_dir / name)
    shutil.copytree(models_dir / "gigaam-rnnt-test", tmp_path / "gigaam-v3-rnnt")
    weights = tmp_path / "gigaam-v3-rnnt" / "v3_rnnt_encoder.onnx"
    weights.write_bytes(weights.read_bytes()[:100_000])  # its name and place are right
    made, russian = runtime(tmp_path), clip("ru", "gigaam-test")
    transcript = made.reader.read(russian.path, made.options(language="ru"))
    assert (transcript.model, plain(transcript.text)) == ("gigaam-test", plain(russian.text))
    with pytest.raises(ModelDamagedError) as caught:  # named, it is told
        made.reader.read(russian.path, made.options(language="ru"), model="gigaam-v3-rnnt")
    assert "stenograf models pull gigaam-v3-rnnt" in caught.value.hint


def test_without_a_whole_model_the_damage_is_told(tmp_path: Path, models_dir: Path) -> None:
    shutil.copytree(models_dir / "gigaam-test", tmp_path / "mine")
    (tmp_path / "mine" / "v3_ctc.onnx").write_bytes(b"half")
    made = runtime(tmp_path)
    with pytest.raises(ModelDamagedError) as caught:
        made.reader.read(clip("ru", "gigaam-test").path, made.options(language="ru"))
    assert caught.value.hint == "It is a model of your own: copy it there again from where it came."


def test_a_model_that_comes_in_one_format_says_that_another_was_passed_over(tmp_path: Path, models_dir: Path) -> None:
    (tmp_path / "gigaam-v3-ctc").symlink_to(models_dir / "gigaam-test")
    made, russian = runtime(tmp_path, compute_type="int8"), clip("ru", "gigaam-test")
    transcript = made.reader.read(russian.path, made.options(language="ru"))
    assert (transcript.model, transcript.compute_type) == ("gigaam-v3-ctc", "float32")
    assert "option_ignored" in [note.code for note in transcript.warnings]


def test_listening_counts_as_time(two: Path) -> None:
    made = runtime(two)
    transcript = made.reader.read(clip("ru", "gigaam-test").path, made.options())
    assert 0 < transcript.timings["language"] < transcript.timings["total"]


def test_a_library_call_is_called_off_while_it_waits_for_a_model(two: Path) -> None:
    made = runtime(two)
    with pytest.raises(CancelledError):
        made.reader.read(clip("ru", "gigaam-test").path, made.options(language="ru"), cancelled=lambda: True)
    assert made.reader.loaded() == [] or not made.reader.loaded()[0].users


def test_what_cannot_be_fetched_is_done_without_and_said(two: Path) -> None:
    made = runtime(two, offline=False, hub_endpoint="http://127.0.0.1:9")  # where nobody listens
    transcript = made.reader.read(clip("ru", "gigaam-test").path, made.options(language="ru"))
    assert transcript.model == "gigaam-test"
    assert transcript.warnings[0].message.startswith(
        "The model gigaam-v3-e2e-rnnt would do better, but it could not be downloaded a moment ago"
    )
    assert made.reader.available.choose("en").name == "whisper-test"


def test_nothing_here_and_no_hub(tmp_path: Path) -> None:
    made = runtime(tmp_path, offline=False, hub_endpoint="http://127.0.0.1:9")
    with pytest.raises(DownloadFailedError):
        made.reader.read(clip("ru", "gigaam-test").path, made.options(language="ru"))


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(two: Path) -> None:
    made = runtime(two, model_memory=100)
    with pytest.raises(ModelTooLargeError, match=r"whisper-test takes about 1\d\d MB .* may take 100 MB"):
        made.reader.read(clip("ru", "whisper-test").path, made.options(), model="whisper-test")
    assert made.reader.loaded() == []
    with pytest.raises(ModelNotInstalledError, match="reads Russian") as caught:
        made.reader.available.choose("ru")
    assert "it takes 1,300 MB of memory, and models may take 100 MB here" in caught.value.hint


def test_a_download_that_would_not_fit_is_not_begun(tmp_path: Path) -> None:
    asked = {"model_memory": 900, "offline": False, "hub_endpoint": "http://127.0.0.1:9"}
    made = runtime(tmp_path, **asked)
    with pytest.raises(ModelTooLargeError, match="large-v3"):
        made.reader.files("large-v3")
    # 900 MB are enough for the smaller kind, beside the model that listens for the language.
    assert made.reader.available.choose("ru").name == "gigaam-v3-e2e-rnnt-int8"
    assert (
        runtime(tmp_path, **asked | {"model_memory": 1500}).reader.available.choose("ru").name
        == "gigaam-v3-e2e-rnnt-int8"
    )
    whole = runtime(tmp_path, **asked | {"model_memory": 1500, "default_language": "ru"})
    assert whole.reader.available.choose("ru").name == "gigaam-v3-e2e-rnnt"


def test_options_are_held_against_the_model_that_was_chosen(two: Path) -> None:
    made = runtime(two)
    with pytest.raises(LanguageUnknownError):
        made.reader.read(clip("ru", "gigaam-test").path, made.options(language="en"), model="gigaam-test")


def test_who_waits_for_a_model_can_be_called_off(two: Path) -> None:
    made = runtime(two)

    def stop() -> None:
        raise CancelledError("Enough.", "")

    with pytest.raises(CancelledError):
        made.reader.read(clip("ru", "gigaam-test").path, made.options(language="ru"), headway=stop)


def test_the_models_to_load_first(two: Path, tmp_path: Path) -> None:
    assert runtime(two, preload_models=("small", "base")).reader.available.needed_first() == ["small", "base"]
    assert runtime(two, default_model="base").reader.available.needed_first() == ["base"]
    assert runtime(two).reader.available.needed_first() == ["whisper-test", "gigaam-test"]
    assert runtime(two, default_language="en").reader.available.needed_first() == ["whisper-test"]
    assert runtime(tmp_path / "none").reader.available.needed_first() == []


def test_idle_models_leave_the_memory(two: Path) -> None:
    made = runtime(two, model_idle=0.01)
    told: list[tuple[str, str]] = []
    made.reader.on_evict = lambda *event: told.append(event)
    made.reader.read(clip("ru", "gigaam-test").path, made.options(language="ru"))
    assert runtime(two, model_idle=0).reader.close_idle() == []
    threading.Event().wait(0.05)
    assert made.reader.close_idle() == [str(two / "gigaam-test")]
    assert told == [(str(two / "gigaam-test"), "idle")]
    assert made.reader.loaded() == []


LOADS = """
import sys
from pathlib import Path
from stenograf import allocation
allocation.spare()  # as workers do
import psutil
from stenograf.options import Options
from stenograf.runtime import Runtime
from stenograf.settings import Settings
asked = {{"models_dir": Path({models!r}), "default_model": "gigaam-test", "offline": True}}
made = Runtime(Settings(max_models=1, threads=1, **asked))
evicted = []
made.reader.on_evict = lambda name, reason: evicted.append(name)
options = Options(language="ru", beam_size=1, temperature=0.0)
figures = []
for _ in range(27):
    for name in ("whisper-test", "gigaam-test"):  # one model at a time: each evicts the other
        assert made.reader.read({recording!r}, options, model=name).text
    allocation.give_back()
    figures.append(psutil.Process().memory_info().rss)
print(len(evicted), figures[1], figures[-1])  # the first round also loaded the libraries
"""


@pytest.mark.by_hand
def test_memory_comes_back_after_fifty_loads(models_dir: Path, run_python: Callable[[str], str]) -> None:
    recording = str(clip("ru", "gigaam-test").path)
    evicted, first, last = map(int, run_python(LOADS.format(models=str(models_dir), recording=recording)).split())
    print(f"{first / 1e6:.0f} MB at first, {last / 1e6:.0f} MB after {evicted} evictions")
    assert evicted >= 50
    assert last < 1.1 * first
