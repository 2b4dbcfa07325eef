"""What is particular to the engine openai-whisper; what it shares with the others is in `test_engines.py`."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from whisper.model import ModelDimensions, Whisper

from conftest import Clip, clips
from stenograf.audio import SAMPLE_RATE, AudioReader, Samples
from stenograf.chunk import Chunk, ChunkResult
from stenograf.engines import LoadedModel, engine
from stenograf.engines.openai_whisper import decoding
from stenograf.errors import DeviceUnavailableError, EngineFailedError, EngineMissingError, ModelDamagedError
from stenograf.options import Options
from twin import whisper_twin

# The library's tokenizer leaves closing the file of its vocabulary to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")

TINY = ModelDimensions(80, 1500, 24, 6, 1, 51865, 448, 24, 6, 4)
"""So many layers and heads in the decoder as `tiny` has, and hardly a weight."""


def load(path: Path, **others: Any) -> LoadedModel:
    return engine("openai-whisper").load(path, **{"device": "cpu", "compute_type": "auto"} | others)


@pytest.fixture(scope="module")
def twin() -> Iterator[LoadedModel]:
    model = load(whisper_twin())
    yield model
    model.close()


def saved(path: Path, shape: ModelDimensions = TINY, /, **changes: Any) -> Path:
    """A `.pt` file of random weights; `changes` take the place of what it should hold, None of nothing."""
    checkpoint = {"dims": dataclasses.asdict(shape), "model_state_dict": Whisper(shape).half().state_dict()}
    torch.save({name: value for name, value in (checkpoint | changes).items() if value is not None}, path)
    return path


def sound(clip: Clip) -> Samples:
    with AudioReader(clip.path) as reader:
        return np.concatenate(list(reader.blocks()))


def short_clips() -> list[Clip]:
    found = [c for c in clips() if "whisper-test" in c.exact and c.duration < 6]
    assert {c.language for c in found} == {"ru", "en"}
    return [found[0], found[1], found[-1]]


def chunk_of(clip: Clip, start: float = 0.0, **options: Any) -> Chunk:
    return Chunk(0, start, sound(clip), Options(**{"language": clip.language} | options))


def text_of(result: ChunkResult) -> str:
    return " ".join(segment.text for segment in result.segments)


def plain(text: str) -> str:
    return "".join(c for c in text.lower().replace("ё", "е") if c.isalnum() or c.isspace())


# Reading


def test_text_words_and_language(twin: LoadedModel) -> None:
    for clip in short_clips():
        chunk = chunk_of(clip, 100.0, language=None, word_timestamps=True)
        language, probability = twin.detect_language(chunk)
        assert language == clip.language
        assert 0.5 < probability <= 1
        (result,) = twin.transcribe([chunk])
        assert plain(text_of(result)) == plain(clip.text)
        assert result.language == clip.language
        words = [word for segment in result.segments for word in segment.words]
        assert " ".join(word.text for word in words) == text_of(result)
        assert all(chunk.start <= word.start <= word.end <= chunk.end for word in words)
        assert all(word.probability is not None and 0 <= word.probability <= 1 for word in words)
        for segment in result.segments:
            assert segment.avg_logprob is not None
            assert segment.avg_logprob > -1
            assert segment.no_speech_prob is not None
            assert segment.compression_ratio is not None


def test_the_language_is_looked_for_in_the_window_that_is_decoded(
    twin: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = twin._model  # type: ignore[attr-defined]
    decoded, original = [], model.decode

    def decode(window: torch.Tensor, options: Any) -> Any:
        decoded.append(window)
        return original(window, options)

    monkeypatch.setattr(model, "decode", decode, raising=False)
    chunk = chunk_of(short_clips()[0])
    list(twin.transcribe([chunk]))
    window = twin._window(torch.tensor(chunk.audio))  # type: ignore[attr-defined]
    assert torch.equal(window, decoded[0])
    frames = len(chunk.audio) // 160
    assert window.shape == (80, 3000)
    assert not window[:, frames:].any()
    assert window[:, :frames].any()


def test_a_prompt_may_hold_the_names_of_special_tokens(twin: LoadedModel) -> None:
    clip = short_clips()[0]
    chunk = chunk_of(clip, prompt="<|endoftext|>", hotwords="<|startoftranscript|>", temperature=0.0)
    (result,) = twin.transcribe([chunk])
    assert result.language == clip.language


def test_a_sound_that_may_not_be_written(twin: LoadedModel) -> None:
    audio = np.zeros(SAMPLE_RATE, np.float32)
    audio.flags.writeable = False
    (result,) = twin.transcribe([Chunk(0, 0.0, audio, Options(language="en"))])
    assert result.segments == ()


def test_options_are_those_of_faster_whisper() -> None:
    from stenograf.engines import faster_whisper

    options = Options(
        prompt="Вступление", hotwords="Гермес, Афина", beam_size=3, word_timestamps=True, task="translate"
    )
    theirs, ours = faster_whisper.decoding(options), decoding(options)
    renamed = {"logprob_threshold": "log_prob_threshold"}
    for name in ours.keys() - {"initial_prompt", "best_of"}:
        assert ours[name] == theirs[renamed.get(name, name)], name
    assert ours["initial_prompt"] == "Гермес, Афина Вступление"
    assert theirs.keys() - {renamed.get(name, name) for name in ours} == {"language", "hotwords", "vad_filter"}


def test_greedy_and_a_fixed_temperature() -> None:
    ours = decoding(Options(beam_size=1, temperature=0.3))
    assert (ours["beam_size"], ours["temperature"], ours["initial_prompt"]) == (None, 0.3, None)


def test_two_models_at_once(twin: LoadedModel) -> None:
    """The times of words need a switch that all models of the process share."""
    other = load(whisper_twin())
    work = [chunk_of(clip, word_timestamps=True) for clip in short_clips()[1:]]
    alone = [result.segments for result in twin.transcribe(work)]

    def run(model: LoadedModel) -> list[Any]:
        return [result.segments for result in model.transcribe(work)]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, [twin, other] * 2):
            assert [[word for s in one for word in s.words] for one in found] == [
                [word for s in one for word in s.words] for one in alone
            ]
    other.close()


# Loading


def test_what_the_weights_say(tmp_path: Path) -> None:
    several = load(saved(tmp_path / "a.pt"))
    assert several.capabilities.languages is not None
    assert len(several.capabilities.languages) == 99
    assert several.capabilities.tasks == {"transcribe", "translate"}
    assert (several.device, several.compute_type) == ("cpu", "float32")
    more = load(saved(tmp_path / "b.pt", dataclasses.replace(TINY, n_mels=128, n_vocab=51866)))
    assert more.capabilities.languages == several.capabilities.languages | {"yue"}
    english = load(saved(tmp_path / "c.pt", dataclasses.replace(TINY, n_vocab=51864)))
    assert english.capabilities.languages == frozenset({"en"})
    assert english.capabilities.tasks == {"transcribe"}
    assert not english.capabilities.detects_language
    assert english.detect_language(Chunk(0, 0.0, np.zeros(1600, np.float32))) == ("en", 1.0)


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    with pytest.raises(ModelDamagedError, match=r"holds no \.pt files"):
        load(tmp_path)
    saved(tmp_path / "a.pt")
    assert load(tmp_path).device == "cpu"
    saved(tmp_path / "b.pt")
    with pytest.raises(ModelDamagedError, match=r"holds 2 \.pt files") as caught:
        load(tmp_path)
    assert str(tmp_path) in caught.value.message


def test_the_heads_that_follow_the_words_are_those_of_the_name(tmp_path: Path) -> None:
    import whisper

    true = Whisper(TINY)
    true.set_alignment_heads(whisper._ALIGNMENT_HEADS["tiny"])

    def heads(path: Path, dims: ModelDimensions = TINY) -> torch.Tensor:
        found: torch.Tensor = load(saved(path, dims))._model.alignment_heads  # type: ignore[attr-defined]
        return found.to_dense()

    assert torch.equal(heads(tmp_path / "tiny.pt"), true.alignment_heads.to_dense())
    by_default = Whisper(TINY).alignment_heads.to_dense()
    assert torch.equal(heads(tmp_path / "mine.pt"), by_default)
    other = dataclasses.replace(TINY, n_text_layer=2)
    assert torch.equal(heads(tmp_path / "base.pt", other), Whisper(other).alignment_heads.to_dense())


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (trace,)

    pickle.loads(pickle.dumps(Trap()))
    assert trace.exists()  # so it would
    trace.unlink()
    with pytest.raises(ModelDamagedError, match="more than weights"):
        load(saved(tmp_path / "trap.pt", dims=Trap()))
    assert not trace.exists()


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(saved(path).read_bytes()))


@pytest.mark.parametrize(
    "make",
    [
        bytes_of(lambda whole: whole[: len(whole) // 3]),
        bytes_of(lambda whole: b""),
        bytes_of(lambda whole: b"no model at all"),
        lambda path: torch.save([1, 2], path),
        lambda path: saved(path, dims=None),
        lambda path: saved(path, model_state_dict=None),
        lambda path: saved(path, model_state_dict={"encoder.conv1.weight": torch.zeros(1)}),
        lambda path: saved(path, dims={"n_mels": 80}),
        lambda path: saved(path, dims=dataclasses.asdict(TINY) | {"n_mels": 40}),
        lambda path: saved(path, dims=dataclasses.asdict(TINY) | {"n_text_layer": 2}),
    ],
    ids=["cut off", "empty", "text", "a list", "no dims", "no weights", "other weights", "few dims", "mels", "layers"],
)  # fmt: skip
def test_what_is_no_whole_model_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "broken.pt"
    make(path)
    with pytest.raises(ModelDamagedError) as caught:
        load(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", ["int8", "float16", "int3"])
def test_a_compute_type_that_it_lacks_on_a_processor(tmp_path: Path, asked: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=f"{asked} on cpu") as caught:
        load(saved(tmp_path / "a.pt"), compute_type=asked)
    assert caught.value.hint == "Choose auto, float32."


def test_threads_hold_for_the_process(tmp_path: Path) -> None:
    path, before = saved(tmp_path / "a.pt"), torch.get_num_threads()
    try:
        load(path, threads=3)
        assert torch.get_num_threads() == 3
        load(path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_closing_gives_the_memory_back(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path / "a.pt"))
    model = weakref.ref(loaded._model)  # type: ignore[attr-defined]
    loaded.close()
    gc.collect()
    assert model() is None
    chunk = Chunk(0, 0.0, np.zeros(1600, np.float32), Options(language="en"))
    for use in (lambda: list(loaded.transcribe([chunk])), lambda: loaded.detect_language(chunk)):
        with pytest.raises(EngineFailedError, match="closed"):
            use()


@pytest.mark.parametrize("other", [None, types.ModuleType("whisper")], ids=["none", "another package of the name"])
def test_a_missing_extra_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: types.ModuleType | None
) -> None:
    path = saved(tmp_path / "a.pt")
    for name in [name for name in sys.modules if name.split(".")[0] == "whisper"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "whisper", other)
    for ask in (lambda: load(path), engine("openai-whisper").devices):
        with pytest.raises(EngineMissingError) as caught:
            ask()
        assert "pip install 'stenograf[openai-whisper]'" in caught.value.hint


def test_nothing_heavy_is_imported_before_a_model_is_loaded(run_python: Callable[[str], str]) -> None:
    code = (
        "import sys, stenograf.engines.openai_whisper;"
        "print([m for m in ('torch', 'whisper', 'numba', 'ctranslate2', 'av') if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_memory_that_does_not_suffice_is_told_as_such() -> None:
    from stenograf.engines.openai_whisper import _errors
    from stenograf.errors import OutOfMemoryError

    with pytest.raises(OutOfMemoryError), _errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(OutOfMemoryError), _errors():
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    with pytest.raises(EngineFailedError, match="something else"), _errors():
        raise RuntimeError("something else\nand its trace")
