"""Loops and made-up lines go, uncertain ones are marked, and nothing that was said is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT, TESTS, clips
from stenograf import guards, vad
from stenograf.audio import SAMPLE_RATE, AudioReader, Samples
from stenograf.chunk import Chunk, ChunkResult
from stenograf.engines import LoadedModel, faster_whisper, onnx_asr
from stenograf.errors import EngineMissingError
from stenograf.guards import MAX_WARNINGS, Findings, guard
from stenograf.loops import cut_loops, normal
from stenograf.options import Options
from stenograf.transcript import Segment, TranscriptWarning, Word

TIME = np.arange(10 * SAMPLE_RATE) / SAMPLE_RATE


def as_samples(sound: object) -> Samples:
    return np.asarray(sound, np.float32)


def tone(*pitches: float, level: float = 0.1) -> Samples:
    return as_samples(level * sum(np.sin(2 * np.pi * pitch * TIME) for pitch in pitches))


def noise(level: float) -> Samples:
    return as_samples(np.random.default_rng(0).normal(0, level, len(TIME)))


def music(seconds: int, seed: int) -> Samples:
    """Four plucked notes a second, of one key."""
    random = np.random.default_rng(seed)
    sound = np.zeros(seconds * SAMPLE_RATE, np.float32)
    time = np.arange(round(0.6 * SAMPLE_RATE)) / SAMPLE_RATE
    for start in range(0, len(sound), SAMPLE_RATE // 4):
        pitch = 220 * 2 ** (random.choice([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
        overtones = [np.sin(2 * np.pi * pitch * number * time) / number for number in range(1, 6)]
        note = 0.15 * np.exp(-4 * time) * np.sum(overtones, axis=0)
        end = min(len(sound), start + len(note))
        sound[start:end] += note[: end - start]
    return sound


SOUNDS = {
    "silence": as_samples(np.zeros(len(TIME))),
    "faint noise": noise(0.002),
    "loud noise": noise(0.1),
    "tone": tone(440),
    "chord": tone(261, 329, 392),
    "hum": tone(50),
    "dial tone": as_samples(tone(425) * (TIME % 1 < 0.5)),
    "music": music(10, 1),
}


def read(name: str) -> Samples:
    with AudioReader(TESTS / "audio" / name) as reader:
        return np.concatenate(list(reader.blocks()))


def joined(*sounds: Samples) -> Samples:
    return np.concatenate(sounds)


def reading(model: LoadedModel, sound: Samples, **options: object) -> tuple[Chunk, ChunkResult]:
    """What the model makes of a sound that it is given whole."""
    chunk = Chunk(0, 0.0, sound, Options(**{"language": "ru", "vad": False, "beam_size": 1} | options))  # type: ignore[arg-type]
    (result,) = model.transcribe([chunk])
    return chunk, result


def codes(warnings: tuple[TranscriptWarning, ...]) -> set[str]:
    return {warning.code for warning in warnings}


def texts(result: ChunkResult) -> list[str]:
    return [segment.text for segment in result.segments]


@pytest.fixture(scope="module")
def whisper() -> LoadedModel:
    return faster_whisper.load(TESTS / "models" / "whisper-test", device="cpu", compute_type="auto")


@pytest.fixture(scope="module")
def gigaam() -> LoadedModel:
    path = TESTS / "models" / "gigaam-test"
    return onnx_asr.load(path, device="cpu", compute_type="auto", variant="gigaam-v3-ctc")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | None], LoadedModel]:
    """Whisper of the size `tiny` with random weights: it never doubts that something was said."""
    loaded: dict[int | None, LoadedModel] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import shapes

    def load(tokens: int | None) -> LoadedModel:
        if tokens not in loaded:
            folder: Path = shapes.build("tiny", tmp_path_factory.mktemp("tiny"), tokens=tokens)
            loaded[tokens] = faster_whisper.load(folder, device="cpu", compute_type="auto")
        return loaded[tokens]

    return load


# Lines where nobody speaks


@pytest.mark.parametrize("sound", list(SOUNDS))
def test_lines_of_a_confident_whisper_where_nobody_speaks(
    untrained: Callable[[int | None], LoadedModel], sound: str
) -> None:
    chunk, result = reading(untrained(30), SOUNDS[sound])
    assert result.segments  # without the guard they would stand in the transcript
    assert all(segment.avg_logprob and segment.avg_logprob > -0.3 for segment in result.segments)
    guarded, warnings = guard(chunk, result)
    assert guarded.segments == ()
    assert codes(warnings) == {"hallucination_dropped"}
    assert len(warnings) == len(result.segments)


@pytest.mark.parametrize("word_timestamps", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lines_of_whisper_on_music(whisper: LoadedModel, seed: int, word_timestamps: bool) -> None:
    chunk, result = reading(whisper, music(10, seed), word_timestamps=word_timestamps)
    assert result.segments
    guarded, warnings = guard(chunk, result)
    assert guarded.segments == ()
    assert codes(warnings) == {"hallucination_dropped"}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lines_of_gigaam_on_music(gigaam: LoadedModel, seed: int) -> None:
    chunk, result = reading(gigaam, music(15, seed))
    assert result.segments
    guarded, warnings = guard(chunk, result)
    assert guarded.segments == ()
    assert codes(warnings) == {"hallucination_dropped"}


def test_what_is_said_before_music_stays(whisper: LoadedModel) -> None:
    said = read("ru-04.flac")
    chunk, result = reading(whisper, joined(said, as_samples(np.zeros(SAMPLE_RATE)), music(10, 2)))
    alone = texts(reading(whisper, said)[1])
    assert texts(result)[:1] == alone
    assert len(result.segments) > 1
    guarded, warnings = guard(chunk, result)
    assert texts(guarded)[:1] == alone
    assert len(guarded.segments) < len(result.segments)
    assert warnings


SPOKEN = read("ru-04.flac")  # 2.2 s, and somebody speaks from 0.3 to 1.9 s
QUIET = as_samples(np.random.default_rng(1).normal(0, 0.001, 8 * SAMPLE_RATE))


def line(text: str, start: float, end: float, **figures: float) -> Segment:
    usual = {"avg_logprob": -0.2, "no_speech_prob": 0.01, "compression_ratio": 1.0}
    return Segment(start, end, text, **(usual | figures))  # type: ignore[arg-type]


def result_of(*segments: Segment, sound: Samples = SPOKEN, vad: bool = False) -> tuple[Chunk, ChunkResult]:
    chunk = Chunk(3, 0.0, sound, Options(language="ru", vad=vad))
    return chunk, ChunkResult(3, 0.0, chunk.end, segments, "ru")


@pytest.mark.parametrize(
    "text",
    [
        "Продолжение следует...",
        "Субтитры сделал DimaTorzok",
        "Редактор субтитров А.Семкин Корректор А.Егорова",
        "Спасибо за просмотр!",
        "Thanks for watching!",
        "Subtitles by the Amara.org community",
        "[Music]",
        "you",
    ],
)
def test_a_known_line_goes_where_nobody_speaks_and_stays_where_somebody_does(text: str) -> None:
    real = line("Мне нужно в пятницу купить хлеб.", 0.0, 2.0)
    guarded, warnings = guard(*result_of(real, line(text, 4.0, 6.0), sound=joined(SPOKEN, QUIET)))
    assert texts(guarded) == [real.text]
    assert codes(warnings) == {"hallucination_dropped"}
    assert "0:04-0:06" in warnings[0].message
    assert text in warnings[0].message
    guarded, warnings = guard(*result_of(line(text, 0.3, 1.9)))
    assert texts(guarded) == [text]
    assert warnings == ()


def test_a_known_line_right_after_the_last_word() -> None:
    real = line("Мне нужно в пятницу купить хлеб.", 0.0, 2.2)
    result = result_of(real, line("Продолжение следует...", 2.4, 4.0), sound=joined(SPOKEN, QUIET))
    assert texts(guard(*result)[0]) == [real.text]


@pytest.mark.parametrize(
    "sign",
    [
        {"avg_logprob": -0.5},
        {"no_speech_prob": 0.7},
        {"compression_ratio": 2.5},
    ],
)
def test_a_line_goes_only_where_the_model_and_the_sound_agree(sign: dict[str, float]) -> None:
    drums = as_samples(np.random.default_rng(2).normal(0, 0.1, len(TIME)) * (TIME % 0.5 < 0.1))
    made_up = line("Мама уже у врача, и скоро будет дома.", 1.0, 4.0, **sign)
    assert guard(*result_of(made_up, sound=drums))[0].segments == ()
    sure = replace(made_up, avg_logprob=-0.2, no_speech_prob=0.01, compression_ratio=1.0)
    kept, warnings = guard(*result_of(sure, sound=drums))
    assert kept.segments == (replace(sure, uncertain=True),)  # a voice that Silero does not know: heard, but marked
    assert warnings == ()
    spoken, warnings = guard(*result_of(replace(made_up, start=0.3, end=1.9)))
    assert texts(spoken) == [made_up.text]
    assert warnings == ()


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("Мама уже у врача, и скоро будет дома, а потом мы поедем в город.", 2.0),
        ("Мама у врача.", 9.0),
        ("Мама уже у вра\ufffd и скоро будет дома.", 4.0),
        ("Мама yesterday 今日 уже у врача.", 4.0),
        ("М", 1.3),
    ],
)
def test_a_sure_line_that_looks_odd_goes_where_nobody_speaks(text: str, end: float) -> None:
    drums = as_samples(np.random.default_rng(2).normal(0, 0.1, len(TIME)) * (TIME % 0.5 < 0.1))
    assert guard(*result_of(line(text, 1.0, end), sound=drums))[0].segments == ()


@pytest.mark.parametrize("sound", ["silence", "faint noise", "tone", "chord", "hum"])
def test_a_sure_line_over_steady_sound_goes(sound: str) -> None:
    sure = line("Мама уже у врача, и скоро будет дома.", 1.0, 4.0)
    assert guard(*result_of(sure, sound=SOUNDS[sound]))[0].segments == ()


def test_a_line_a_little_off_its_speech_stays() -> None:
    before = line("Мне нужно", 0.0, 0.7)
    rest = line("в пятницу купить хлеб.", 2.5, 4.0, avg_logprob=-0.8)
    kept, warnings = guard(*result_of(before, replace(before, start=0.7, end=2.2), rest, sound=joined(SPOKEN, QUIET)))
    assert kept.segments[-1].text == rest.text
    assert warnings == ()


def test_a_line_with_wrong_times_stays_while_speech_is_without_a_line() -> None:
    sound = joined(QUIET, SPOKEN)
    misplaced = line("Мне нужно в пятницу купить хлеб.", 0.0, 2.0, avg_logprob=-0.6)
    kept, warnings = guard(*result_of(misplaced, sound=sound))
    assert texts(kept) == [misplaced.text]
    assert kept.segments[0].uncertain
    assert warnings == ()
    placed = line("Мне нужно в пятницу купить хлеб.", 8.0, 10.0)
    assert texts(guard(*result_of(misplaced, placed, sound=sound))[0]) == [placed.text]
    assert guard(*result_of(misplaced, placed, sound=sound))[0].segments[0].start == 8.0


def test_the_detector_runs_only_where_something_is_suspicious(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(vad, "SileroDetector", lambda: runs.append(1))
    good = line("Мне нужно в пятницу купить хлеб.", 0.2, 2.0)
    assert guard(*result_of(good, vad=True)) == (result_of(good)[1], ())
    assert runs == []
    with pytest.raises(TypeError):
        guard(*result_of(replace(good, avg_logprob=-0.5), vad=True))
    assert runs == [1]


def test_without_a_detector_nothing_is_dropped_for_its_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise EngineMissingError("No detector.", "Install it.")

    monkeypatch.setattr(vad, "SileroDetector", missing)
    phantom = line("Продолжение следует...", 1.0, 3.0, avg_logprob=-0.5)
    assert guard(*result_of(phantom, sound=QUIET)) == (result_of(phantom, sound=QUIET)[1], ())


# Loops


def test_a_loop_of_an_untrained_whisper(untrained: Callable[[int | None], LoadedModel]) -> None:
    hurried = read("ru-long.ogg")[::3].copy()
    chunk, result = reading(untrained(None), hurried, temperature=0.0)
    words = normal(" ".join(texts(result))).split()
    most = max(set(words), key=words.count)
    assert words.count(most) > 50
    guarded, warnings = guard(chunk, result)
    assert normal(" ".join(texts(guarded))).split().count(most) <= 3
    assert "loop_dropped" in codes(warnings)


def test_a_loop_of_whisper_on_a_sound_like_a_voice(whisper: LoadedModel) -> None:
    said = read("ru-03.flac")
    chunk, result = reading(whisper, np.tile(said[6000:6400], 1200))
    assert len(result.segments) >= 4
    assert len(set(texts(result))) == 1
    left, loops = cut_loops(result.segments, lambda _start, _end: 0.0, chunk.end)
    assert len(left) == 1
    assert loops[0].times == len(result.segments)


def plenty(_start: float, _end: float) -> float:
    return math.inf


def none(_start: float, _end: float) -> float:
    return 0.0


@pytest.mark.parametrize(
    "text",
    [
        "Да-да-да!",
        "Нет, нет, нет, нет.",
        "Нет, нет, нет, нет, нет, нет, нет, нет!",
        "Раз, два, три, раз, два, три, раз, два, три.",
        "Ха-ха-ха-ха-ха-ха-ха-ха-ха!",
        "Ааааааааа, го-о-о-о-ол!",
        "Ля-ля-ля-ля, ля-ля-ля-ля, ля-ля-ля-ля, ля-ля-ля-ля.",
        "We will, we will rock you! " * 4,
        "Господи, помилуй. " * 12,
        "Я уже в магазине. " * 8,
        "Ноль ноль ноль ноль ноль ноль, пять пять пять пять.",
        "1000000000000 и 8 800 000 00 00",
    ],
)
def test_what_people_repeat_stays(text: str) -> None:
    segment = line(text.strip(), 0.0, 20.0)
    assert cut_loops([segment], plenty, 20.0) == ([segment], [])
    apart = [line(part, n * 2.0, n * 2.0 + 1.5) for n, part in enumerate(text.strip().split(", "))]
    assert cut_loops(apart, plenty, 40.0) == (apart, [])


def test_somebody_who_says_the_same_again_and_again(whisper: LoadedModel) -> None:
    said = read("ru-03.flac")
    chunk, result = reading(whisper, np.tile(said, 8))
    assert len(normal(" ".join(texts(result))).split()) >= 15
    guarded, warnings = guard(chunk, result)
    assert texts(guarded) == texts(result)
    assert warnings == ()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Так вот. " + "да, " * 40, "Так вот. да, да, да"),
        ("Так вот. " + "Спасибо за просмотр! " * 14 + "Спасибо за", "Так вот. Спасибо за просмотр!"),
        ("я думаю что " * 14, "я думаю что"),
        ("ДА да, «Да»! " * 20 + "Потом ушёл.", "ДА да, «Да»! Потом ушёл."),
        ("ха-" * 60 + "ха", "ха-ха-ха"),
        ("ха-" * 60 + "ха, потом ушёл.", "ха-ха-ха потом ушёл."),
        ("А" + "а" * 80 + ", вот.", "Аааа, вот."),
        ("ни за что " * 13 + "ни разу", "ни за что ни разу"),
        ("ご視聴ありがとうございました" * 12, "ご視聴ありがとうございました"),
    ],
)
def test_what_nobody_repeats_is_cut_to_its_beginning(text: str, left: str) -> None:
    (segment,), loops = cut_loops([line(text.strip(), 10.0, 40.0, compression_ratio=9.0)], plenty, 40.0)
    assert segment.text == left
    assert len(loops) == 1
    assert segment.uncertain
    assert segment.compression_ratio is not None
    assert segment.compression_ratio < 2.4
    assert 10.0 < segment.end <= 40.0
    assert (segment.end < 40.0) == (not text.endswith(("ушёл.", "вот.", "ни разу")))


def test_fewer_repeats_go_where_there_is_not_enough_speech_for_them() -> None:
    loop = [line("Сколько стоит сумка?", n * 2.0, n * 2.0 + 2) for n in range(5)]
    other = line("Код два пять.", 10.0, 11.0)
    assert cut_loops([*loop, other], none, 12.0)[0] == [loop[0], other]
    assert cut_loops([*loop[:3], other], none, 12.0) == ([*loop[:3], other], [])
    guarded, warnings = guard(*result_of(*loop, other, sound=as_samples(np.zeros(12 * SAMPLE_RATE))))
    assert guarded.segments == ()
    assert codes(warnings) == {"loop_dropped", "hallucination_dropped"}
    assert '0:00-0:10: "Сколько стоит сумка?" came 5 times' in warnings[0].message


def test_a_phrase_over_segments_is_kept_from_the_beginning_of_its_sentence() -> None:
    first = line("Мама уже в магазине.", 0.0, 2.0)
    loop = [line("Я уже в магазине.", 2.0 + n, 3.0 + n) for n in range(14)]
    last = line("Я уже дома.", 20.0, 21.0)
    left, loops = cut_loops([first, *loop, last], plenty, 22.0)
    assert left == [first, loop[0], last]
    assert [(loop.phrase, loop.times, loop.start, loop.end) for loop in loops] == [("Я уже в магазине.", 14, 2.0, 16.0)]


def test_the_words_are_cut_with_the_text() -> None:
    spoken = ["Так", "вот,", *["да,"] * 40]
    words = tuple(Word(n * 0.5, n * 0.5 + 0.4, text, 0.9) for n, text in enumerate(spoken))
    segment = Segment(0.0, 21.0, " ".join(spoken), words)
    (left,), _ = cut_loops([segment], plenty, 21.0)
    assert left.text == "Так вот, да, да, да"
    assert [word.text for word in left.words] == ["Так", "вот,", "да,", "да,", "да"]
    assert left.words[:4] == words[:4]
    assert left.end == left.words[-1].end == 2.4


def test_a_word_that_is_a_loop_of_its_own() -> None:
    words = (Word(0.0, 1.0, "Ой,", 0.9), Word(1.0, 21.0, "ха-" * 60 + "ха.", 0.9))
    (left,), _ = cut_loops([Segment(0.0, 21.0, " ".join(word.text for word in words), words)], plenty, 21.0)
    assert left.text == "Ой, ха-ха-ха"
    assert [word.text for word in left.words] == ["Ой,", "ха-ха-ха"]
    assert 1.0 < left.end < 4.0


SAID = st.lists(st.sampled_from(("да,", "Нет!", "раз", "ха-ха", "ни")), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(SAID, st.integers(1, 30)), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_what_is_left_is_in_order_and_words_and_text_agree(
    parts: list[tuple[list[str], int]], with_words: bool, heard: bool
) -> None:
    segments, time = [], 0.0
    for said, times in parts:
        spelled = said * times
        words = tuple(Word(time + n * 0.25, time + n * 0.25 + 0.25, text) for n, text in enumerate(spelled))
        segments.append(Segment(time, words[-1].end, " ".join(spelled), words if with_words else ()))
        time = words[-1].end
    left, loops = cut_loops(segments, plenty if heard else none, time)
    before = iter(normal(" ".join(segment.text for segment in segments)).split())
    assert all(word in before for word in normal(" ".join(segment.text for segment in left)).split())
    assert (left == segments) == (not loops)
    position = 0.0
    for segment in left:
        assert position <= segment.start <= segment.end <= time
        position = segment.start
        assert "  " not in segment.text
        if with_words:
            assert normal(" ".join(word.text for word in segment.words)) == normal(segment.text)
            assert all(segment.start <= word.start <= word.end <= segment.end for word in segment.words)


# Uncertain lines


@pytest.mark.parametrize(
    ("figures", "uncertain"),
    [
        ({}, False),
        ({"avg_logprob": -0.99}, False),
        ({"avg_logprob": -1.01}, True),
        ({"compression_ratio": 2.39}, False),
        ({"compression_ratio": 2.41}, True),
    ],
)
def test_a_line_of_which_whisper_is_unsure_is_marked(figures: dict[str, float], uncertain: bool) -> None:
    segment = line("Мне нужно в пятницу купить хлеб.", 0.3, 1.9, **figures)
    guarded, warnings = guard(*result_of(segment))
    assert guarded.segments == (replace(segment, uncertain=uncertain),)
    assert warnings == ()


def test_a_line_with_improbable_words_is_marked() -> None:
    words = tuple(
        Word(n * 0.4, n * 0.4 + 0.4, text, 0.45) for n, text in enumerate(("Мне", "нужно", "купить", "хлеб."))
    )
    segment = replace(line("Мне нужно купить хлеб.", 0.0, 1.6), words=words)
    assert guard(*result_of(segment))[0].segments[0].uncertain
    likely = tuple(replace(word, probability=0.55) for word in words)
    assert not guard(*result_of(replace(segment, words=likely)))[0].segments[0].uncertain


def test_gigaam_is_unsure_in_noise_and_not_in_clear_sound(gigaam: LoadedModel) -> None:
    marked = {True: 0, False: 0}
    for name in ("ru-02.flac", "ru-04.flac", "ru-09.flac", "ru-12.flac"):
        clear = read(name)
        level = float(np.sqrt(np.mean(clear**2)))
        noisy = as_samples(clear + np.random.default_rng(0).normal(0, level, len(clear)))
        for sound, is_noisy in ((clear, False), (noisy, True)):
            guarded, warnings = guard(*reading(gigaam, sound))
            assert guarded.segments
            assert warnings == ()
            marked[is_noisy] += sum(segment.uncertain for segment in guarded.segments)
    assert marked[False] == 0
    assert marked[True] >= 4


def test_json_says_so_and_reads_it_back() -> None:
    segment = line("Да.", 0.0, 1.0)
    assert segment.to_dict(0)["uncertain"] is False
    marked = replace(segment, uncertain=True)
    assert Segment.from_dict(marked.to_dict(0)) == marked
    older = {key: value for key, value in marked.to_dict(0).items() if key != "uncertain"}
    assert not Segment.from_dict(older).uncertain


# What was said stays


@pytest.mark.parametrize("use_vad", [True, pytest.param(False, marks=pytest.mark.by_hand)])
@pytest.mark.parametrize("model", ["whisper", "gigaam"])
def test_nothing_is_lost_of_any_recording(request: pytest.FixtureRequest, model: str, use_vad: bool) -> None:
    loaded: LoadedModel = request.getfixturevalue(model)
    read_lines = 0
    for clip in clips():
        if model == "gigaam" and clip.language != "ru":
            continue
        options = Options(language=clip.language, vad=use_vad, beam_size=1, word_timestamps=not use_vad)
        with AudioReader(clip.path) as reader:
            found = list(vad.chunks(reader.blocks(), loaded.capabilities.max_chunk_seconds, vad=use_vad))
        chunks = [replace(chunk, options=options) for chunk in found]
        for chunk, result in zip(chunks, loaded.transcribe(chunks), strict=True):
            guarded, warnings = guard(chunk, result)
            assert [replace(segment, uncertain=False) for segment in guarded.segments] == list(result.segments)
            assert warnings == ()
            read_lines += len(result.segments)
    assert read_lines > 20


HALL = np.random.default_rng(0).normal(0, 1, SAMPLE_RATE // 2) * np.exp(-12 * np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE)
BAD_SOUND: dict[str, Callable[[Samples, float], object]] = {
    "far too quiet": lambda sound, _level: sound * 0.001,
    "noise as loud as the voice": lambda sound, level: sound + np.random.default_rng(0).normal(0, level, len(sound)),
    "louder noise": lambda sound, level: sound + np.random.default_rng(0).normal(0, 3 * level, len(sound)),
    "a hall": lambda sound, _level: np.convolve(sound, HALL / np.sqrt(np.sum(HALL**2)))[: len(sound)],
    "overdriven": lambda sound, _level: np.clip(sound * 30, -0.3, 0.3),
    "music behind": lambda sound, level: sound + music(8, 3)[: len(sound)] * level / 0.08,
}


@pytest.mark.parametrize("how", list(BAD_SOUND))
def test_a_doubtful_reading_of_speech_in_bad_sound_stays(how: str) -> None:
    for clip in clips():
        if clip.data.get("sentences"):
            continue
        sound = read(clip.path.name)
        bad = as_samples(BAD_SOUND[how](sound, float(np.sqrt(np.mean(sound**2)))))
        words = clip.data["words"]
        doubtful = line(clip.text, words[0]["start"], words[-1]["end"], avg_logprob=-1.2, no_speech_prob=0.7)
        guarded, warnings = guard(*result_of(doubtful, sound=bad))
        assert guarded.segments == (replace(doubtful, uncertain=True),), clip.path.name
        assert warnings == ()


# Warnings


def test_many_warnings_become_a_few_and_a_count() -> None:
    findings = Findings()
    for number in range(MAX_WARNINGS + 3):
        findings.add((TranscriptWarning("loop_dropped", f"Loop {number}."),))
    findings.add((TranscriptWarning("hallucination_dropped", "Line."),))
    found = findings.warnings()
    assert [warning.message for warning in found[:MAX_WARNINGS]] == [f"Loop {n}." for n in range(MAX_WARNINGS)]
    assert found[MAX_WARNINGS] == TranscriptWarning("loop_dropped", "The same happened in 3 more places.")
    assert found[MAX_WARNINGS + 1 :] == (TranscriptWarning("hallucination_dropped", "Line."),)
    assert Findings().warnings() == ()


def test_a_long_text_is_shortened_in_its_warning() -> None:
    long = "Субтитры сделал " + "очень " * 50
    chunk, result = result_of(line(long, 3701.0, 3703.0), sound=QUIET)
    _, warnings = guard(replace(chunk, start=3700.0), replace(result, start=3700.0, end=3708.0))
    warning = next(item for item in warnings if item.code == "hallucination_dropped")
    assert warning.message.startswith("1:01:41-1:01:4")
    assert len(warning.message) < guards.QUOTED + 60
