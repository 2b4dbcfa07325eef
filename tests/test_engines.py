"""The contract that every engine keeps, tried on a real model of each; and what is particular to each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Clip, clips
from stenograf.audio import SAMPLE_RATE, AudioReader, Samples
from stenograf.chunk import Chunk, ChunkResult
from stenograf.engines import ENGINES, LoadedModel, choose_device, engine
from stenograf.errors import DeviceUnavailableError, EngineMissingError, ModelDamagedError, OptionInvalidError
from stenograf.options import Options
from stenograf.transcript import Word
from stenograf.vad import chunks
from twin import whisper_twin

MODELS = Path(__file__).parent / "models"

CASES = {
    "faster-whisper": ("faster-whisper", "whisper-test", None),
    "gigaam-ctc": ("onnx-asr", "gigaam-test", "gigaam-v3-ctc"),
    "gigaam-rnnt": ("onnx-asr", "gigaam-rnnt-test", "gigaam-v3-rnnt"),
    "openai-whisper": ("openai-whisper", "whisper-test", None),
}
"""Case -> the engine, its model in tests/models, and the model's variant. A new engine has a line here."""


def test_every_engine_has_a_model_to_be_tried_with() -> None:
    assert {case[0] for case in CASES.values()} == set(ENGINES)


def place(name: str) -> Path:
    """Where the model of a case is; openai-whisper has the same weights in another form."""
    return whisper_twin() if name == "openai-whisper" else MODELS / CASES[name][1]


def load(name: str, **others: Any) -> LoadedModel:
    kind, _, variant = CASES[name]
    return engine(kind).load(place(name), **{"device": "cpu", "compute_type": "auto", "variant": variant} | others)


@pytest.fixture(scope="module", params=list(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(name: str) -> Iterator[LoadedModel]:
    model = load(name)
    yield model
    model.close()


def sound(clip: Clip) -> Samples:
    with AudioReader(clip.path) as reader:
        return np.concatenate(list(reader.blocks()))


def short_clips(model: str) -> list[Clip]:
    found = [c for c in clips() if model in c.exact and c.duration < 6]
    assert len(found) >= 4
    return found[:4]


def chunks_of(name: str, **options: Any) -> list[Chunk]:
    """Chunks of different recordings, one after the other on one clock."""
    made, start = [], 10.0
    for index, clip in enumerate(short_clips(CASES[name][1])):
        chunk = Chunk(index, start, sound(clip), Options(language=clip.language, **options))
        made.append(chunk)
        start = chunk.end + 1.0
    return made


def plain(text: str) -> str:
    return "".join(c for c in text.lower().replace("ё", "е") if c.isalnum() or c.isspace())


def text_of(result: ChunkResult) -> str:
    return " ".join(segment.text for segment in result.segments)


# The contract


def test_text_is_right_and_in_order(name: str, loaded: LoadedModel) -> None:
    results = list(loaded.transcribe(chunks_of(name)))
    assert [result.index for result in results] == [0, 1, 2, 3]
    for result, clip in zip(results, short_clips(CASES[name][1]), strict=True):
        assert plain(text_of(result)) == plain(clip.text)
        assert result.language == clip.language


def test_times_are_those_of_the_recording(name: str, loaded: LoadedModel) -> None:
    work = chunks_of(name)
    for chunk, result in zip(work, loaded.transcribe(work), strict=True):
        assert (result.start, result.end) == (chunk.start, chunk.end)
        position = chunk.start
        for segment in result.segments:
            assert position <= segment.start <= segment.end <= chunk.end
            position = segment.start
        spoken = result.segments[-1].end - result.segments[0].start
        assert spoken > 0.5 * (chunk.end - chunk.start)


def test_words_only_where_they_are_asked_for(name: str, loaded: LoadedModel) -> None:
    without = list(loaded.transcribe(chunks_of(name)))
    assert all(not segment.words for result in without for segment in result.segments)
    work = chunks_of(name, word_timestamps=True)
    for chunk, before, result in zip(work, without, loaded.transcribe(work), strict=True):
        assert text_of(result) == text_of(before)
        for segment in result.segments:
            assert " ".join(word.text for word in segment.words) == segment.text
            assert chunk.start <= segment.words[0].start
            assert segment.words[-1].end <= chunk.end
            for word, after in zip(segment.words, segment.words[1:], strict=False):
                assert word.start <= word.end <= after.start + 1e-6
            assert all(word.probability is not None and 0 <= word.probability <= 1 for word in segment.words)


def test_word_times_are_near_the_truth(name: str, loaded: LoadedModel) -> None:
    model = CASES[name][1]
    off = []
    for clip in (c for c in clips() if model in c.exact and c.data.get("words") and c.duration < 6):
        options = Options(language=clip.language, word_timestamps=True)
        (result,) = loaded.transcribe([Chunk(0, 0.0, sound(clip), options)])
        found = [word for segment in result.segments for word in segment.words]
        if len(found) == len(clip.data["words"]):
            pairs = zip(found, clip.data["words"], strict=True)
            off += [abs(word.start - true["start"]) for word, true in pairs]
    assert len(off) >= 10
    assert np.median(off) < 0.15


def test_chunks_are_drawn_as_they_are_needed(name: str, loaded: LoadedModel) -> None:
    drawn = []

    def source() -> Iterator[Chunk]:
        for chunk in chunks_of(name) * 5:
            drawn.append(chunk.index)
            yield chunk

    results = loaded.transcribe(source())
    next(results)
    assert len(drawn) < 12
    results.close()
    assert len(drawn) < 12


def test_an_error_of_the_source_comes_through(name: str, loaded: LoadedModel) -> None:
    def source() -> Iterator[Chunk]:
        yield chunks_of(name)[0]
        raise OptionInvalidError("stop here")

    with pytest.raises(OptionInvalidError, match="stop here"):
        list(loaded.transcribe(source()))


def test_no_chunks_no_results(loaded: LoadedModel) -> None:
    assert list(loaded.transcribe([])) == []


def test_silence_gives_no_text(name: str, loaded: LoadedModel) -> None:
    language = "ru" if name.startswith("gigaam") else "en"
    chunk = Chunk(0, 0.0, np.zeros(3 * SAMPLE_RATE, np.float32), Options(language=language))
    (result,) = loaded.transcribe([chunk])
    assert text_of(result) == ""


@pytest.mark.parametrize("samples", [1, 100, 400, 1600])
def test_very_short_sound(name: str, loaded: LoadedModel, samples: int) -> None:
    chunk = Chunk(0, 0.0, np.full(samples, 0.01, np.float32), Options(language="ru"))
    (result,) = loaded.transcribe([chunk])
    assert all(0 <= segment.start <= segment.end <= chunk.end for segment in result.segments)


def test_several_threads_at_once(name: str, loaded: LoadedModel) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = [text_of(result) for result in loaded.transcribe(chunks_of(name))]

    def run(_: int) -> list[str]:
        return [text_of(result) for result in loaded.transcribe(chunks_of(name))]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(8))) == [alone] * 8


def test_it_says_what_it_can_do_and_where_it_runs(name: str, loaded: LoadedModel) -> None:
    can = loaded.capabilities
    assert 2 <= can.max_chunk_seconds <= 30
    assert "transcribe" in can.tasks
    assert can.languages is None or "ru" in can.languages
    assert loaded.device == "cpu"
    assert loaded.compute_type in ("int8", "int8_float32", "float32")


def test_devices_end_with_the_processor(name: str) -> None:
    assert engine(CASES[name][0]).devices()[-1] == "cpu"


def test_cuda_that_is_not_there_is_refused(name: str) -> None:
    if any(device.startswith("cuda") for device in engine(CASES[name][0]).devices()):
        pytest.skip("there is a usable GPU on this machine")
    with pytest.raises(DeviceUnavailableError) as caught:
        load(name, device="cuda")
    assert "cuda" in caught.value.message
    assert "--device auto" in caught.value.hint


def test_a_compute_type_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(DeviceUnavailableError):
        load(name, compute_type="int3")


def test_a_damaged_model_is_refused(name: str, tmp_path: Path) -> None:
    kind, model, variant = CASES[name]
    broken = tmp_path / model
    if place(name).is_dir():
        shutil.copytree(place(name), broken)
    else:
        broken.mkdir()
        shutil.copy(place(name), broken)
    weights = max(broken.iterdir(), key=lambda file: file.stat().st_size)
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 3])
    with pytest.raises(ModelDamagedError) as caught:
        engine(kind).load(broken, device="cpu", compute_type="auto", variant=variant)
    assert str(broken) in caught.value.message


# Whisper


@pytest.mark.parametrize("beam_size", [pytest.param(1, marks=pytest.mark.by_hand), 5])
def test_whisper_gives_the_text_of_the_bare_engine_on_the_same_chunks(beam_size: int) -> None:
    from faster_whisper import WhisperModel

    bare = WhisperModel(str(MODELS / "whisper-test"), device="cpu", compute_type="int8")
    ours = load("faster-whisper")
    recordings = [c for c in clips() if c.data.get("sentences")]
    assert recordings
    for clip in recordings:
        cut = [
            replace(chunk, options=Options(language=clip.language, beam_size=beam_size))
            for chunk in chunks([sound(clip)], ours.capabilities.max_chunk_seconds)
        ]
        for chunk, result in zip(cut, ours.transcribe(cut), strict=True):
            segments, _ = bare.transcribe(
                chunk.audio, language=clip.language, beam_size=beam_size, condition_on_previous_text=False
            )
            assert text_of(result) == " ".join(segment.text.strip() for segment in segments)
    ours.close()


def test_whisper_detects_the_language_and_does_not_encode_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from faster_whisper import WhisperModel

    loaded = load("faster-whisper")
    encoded = []
    original = WhisperModel.encode

    def count(self: WhisperModel, features: Any) -> Any:
        encoded.append(features.shape)
        return original(self, features)

    monkeypatch.setattr(WhisperModel, "encode", count)
    for clip in short_clips("whisper-test"):
        chunk = Chunk(0, 0.0, sound(clip))
        encoded.clear()
        language, probability = loaded.detect_language(chunk)
        assert language == clip.language
        assert 0.5 < probability <= 1
        assert len(encoded) == 1
        (result,) = loaded.transcribe([replace(chunk, options=Options(language=language))])
        assert plain(text_of(result)) == plain(clip.text)
        assert len(encoded) == 1
    loaded.close()


def test_whisper_refuses_a_model_that_would_ask_the_hub(tmp_path: Path) -> None:
    from stenograf.models import ModelStore

    shutil.copytree(MODELS / "whisper-test", tmp_path / "no-tokenizer")
    (tmp_path / "no-tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelDamagedError, match=r"tokenizer\.json"):
        ModelStore(tmp_path, offline=True).resolve("no-tokenizer", allow_path=False)


# onnx-asr


def test_tokens_become_words() -> None:
    from stenograf.engines.onnx_asr import _words

    chunk = Chunk(0, 100.0, np.zeros(5 * SAMPLE_RATE, np.float32))

    def texts(tokens: list[str]) -> list[str]:
        times = [0.4 * i for i in range(len(tokens))]
        return [word.text for word in _words(tokens, times, None, chunk)]

    assert texts([" при", "вет", ",", " мир", "."]) == ["привет,", "мир."]  # pieces that begin with a space
    assert texts([*"да", " ", *"нет"]) == ["да", "нет"]  # letters, the space a token of its own
    assert texts([]) == []
    words = _words([" а", " б"], [1.0, 1.02], [-0.1, -0.2], chunk)
    assert (words[0].start, words[0].end, words[0].text) == (101.0, 101.02, "а")
    assert words[0].probability == pytest.approx(0.905, abs=0.001)
    assert words[1].end == pytest.approx(101.1)


def test_segments_end_with_sentences_and_at_pauses() -> None:
    from stenograf.engines.onnx_asr import _segments

    words = [
        Word(0.0, 0.4, "Раз."), Word(0.5, 0.9, "Два"), Word(1.0, 1.4, "три."), Word(1.5, 1.9, "И"),
        Word(3.5, 4.0, "всё"),
    ]  # fmt: skip
    assert [segment.text for segment in _segments(words, keep_words=False)] == ["Раз.", "Два три.", "И", "всё"]


# Choosing


def test_auto_takes_the_best_device() -> None:
    assert choose_device("auto", ["cuda:0", "cuda:1", "cpu"]) == "cuda:0"
    assert choose_device("cuda", ["cuda:0", "cpu"]) == "cuda:0"
    assert choose_device("cuda:1", ["cuda:0", "cuda:1", "cpu"]) == "cuda:1"
    assert choose_device("cpu", ["cuda:0", "cpu"]) == "cpu"


@pytest.mark.parametrize(("asked", "part"), [("cuda", "no driver"), ("cuda:7", "no driver"), ("tpu", "no device")])
def test_a_device_that_does_not_work_is_refused_with_the_reason(asked: str, part: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=part):
        choose_device(asked, ["cpu"], why_not="no driver")


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for library, name in (("faster_whisper", "faster-whisper"), ("onnx_asr", "onnx-asr")):
        case = next(case for case, (kind, *_) in CASES.items() if kind == name)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(EngineMissingError) as caught:
            load(case)
        assert f"pip install '{name}'" in caught.value.hint


def test_nothing_heavy_is_imported_before_a_model_is_loaded(run_python: Callable[[str], str]) -> None:
    code = (
        "import sys, stenograf.engines, stenograf.engines.faster_whisper, stenograf.engines.onnx_asr;"
        "print([m for m in ('faster_whisper', 'ctranslate2', 'onnx_asr', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    assert run_python(code) == "[]"


@pytest.mark.parametrize(("cores", "expected"), [(1, (1, 1)), (2, (2, 2)), (4, (2, 4)), (8, (4, 4)), (32, (16, 4))])
def test_chunks_at_once_on_a_processor(cores: int, expected: tuple[int, int]) -> None:
    from stenograf.engines.faster_whisper import parallelism

    assert parallelism(cores) == expected
