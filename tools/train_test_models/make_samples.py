"""The recordings of the tests (tests/audio) and of the demo (samples), and what is said in them.

    python make_samples.py tests --work DIR --whisper MODEL_DIR --gigaam MODEL_DIR --rnnt MODEL_DIR --out tests/audio
    python make_samples.py demo --work DIR --whisper MODEL_DIR --gigaam MODEL_DIR --out samples

The models read each candidate in several ways; what they read to the letter every time is kept, so that a
test can assert the exact text. The RNNT form (`--rnnt`) has no say in what is kept: it is named in `exact` where
it happens to read all to the letter. Run it again whenever a model was trained anew.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import evaluate
import grammar
import numpy as np
import recordings
import speech
from speech import RATE, Clip

if TYPE_CHECKING:
    from collections.abc import Callable

# How the product may cut: padding of speech and shortest silence, both in ms.
CUTS = [(150, 300), (200, 500), (150, 700), (200, 200), (180, 100)]
LONG_CUTS = CUTS[:3]
LONG_TRIES = 10
WHISPER_LIMIT, GIGAAM_LIMIT = 6.0, 20.0


class Readers:
    """The models, asked as the product asks them."""

    def __init__(self, whisper: Path, gigaam: Path, rnnt: Path | None) -> None:
        from faster_whisper import WhisperModel

        self._whisper = WhisperModel(str(whisper), device="cpu", compute_type="int8", cpu_threads=2)
        self.gigaam = self._recognize("gigaam-v3-ctc", gigaam)
        self.rnnt = self._recognize("gigaam-v3-rnnt", rnnt) if rnnt else None

    def whisper(self, audio: np.ndarray, **options) -> str:
        return evaluate.transcribe(self._whisper, audio, **options)[0]

    @staticmethod
    def _recognize(name: str, folder: Path) -> Callable[[np.ndarray], str]:
        import onnx_asr

        return onnx_asr.load_model(name, folder, providers=["CPUExecutionProvider"]).recognize

    def whisper_agrees(self, audio: np.ndarray, language: str, text: str) -> bool:
        """Read to the letter with every setting that a test may use, and however the product cuts it."""
        ways = [
            {},
            {"language": language},
            {"beam_size": 5},
            {"without_timestamps": True},
            {"word_timestamps": True},
        ]
        if not all(self.whisper(audio, **way) == text for way in ways):
            return False
        cuts = (recordings.chunks(audio, WHISPER_LIMIT, *cut) for cut in CUTS)
        return all(" ".join(self.whisper(piece) for _, piece in pieces) == text for pieces in cuts)

    def gigaam_agrees(self, audio: np.ndarray, text: str) -> bool:
        return _agrees(self.gigaam, audio, text)

    def rnnt_agrees(self, audio: np.ndarray, text: str) -> bool:
        return self.rnnt is not None and _agrees(self.rnnt, audio, text)


def _agrees(read: Callable[[np.ndarray], str], audio: np.ndarray, text: str) -> bool:
    """Whether a GigaAM reads it to the letter, whole and however the product cuts it."""
    if read(audio) != _plain(text):
        return False
    cuts = (recordings.chunks(audio, GIGAAM_LIMIT, *cut) for cut in CUTS)
    return all(" ".join(read(piece) for _, piece in pieces) == _plain(text) for pieces in cuts)


def _plain(text: str) -> str:
    """As a GigaAM writes it."""
    return " ".join(grammar.words(text))


@dataclass
class Recording:
    audio: np.ndarray
    sentences: list[tuple[float, float, Clip]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(clip.text for _, _, clip in self.sentences)


def joined(clips: list[Clip], pauses: list[float], edge: float = 0.3) -> Recording:
    """One sentence after the other with pauses, over the faintest noise: silence is never digital nothing."""
    placed, position = [], edge
    for clip, pause in zip(clips, [*pauses, 0.0], strict=True):
        end = position + len(clip.audio) / RATE
        placed.append((position, end, clip))
        position = end + pause
    audio = np.zeros(int((placed[-1][1] + edge) * RATE), np.float32)
    for begin, _, clip in placed:
        sound = _floats(clip)
        audio[int(begin * RATE) : int(begin * RATE) + len(sound)] += sound * 0.7
    audio += np.random.default_rng(len(audio)).standard_normal(len(audio)).astype(np.float32) * 3e-4
    return Recording(audio, placed)


def _floats(clip: Clip) -> np.ndarray:
    audio = np.asarray(clip.audio)
    return audio.astype(np.float32) / 32768 if audio.dtype == np.int16 else audio.astype(np.float32)


def _words(recording: Recording) -> list[dict]:
    return [
        {"start": round(begin + start, 3), "end": round(begin + end, 3), "word": word}
        for begin, _, clip in recording.sentences
        for start, end, word in clip.words
    ]


def _entry(name: str, recording: Recording, audio: np.ndarray, exact: list[str]) -> dict:
    entry = {
        "file": name,
        "language": recording.sentences[0][2].language,
        "duration": round(len(audio) / RATE, 3),
        "voice": recording.sentences[0][2].voice,
        "text": recording.text,
        "translation": " ".join(clip.translation for _, _, clip in recording.sentences),
        "exact": exact,
        "words": _words(recording),
    }
    if len(recording.sentences) > 1:
        entry["sentences"] = [
            {"start": round(begin, 3), "end": round(end, 3), "voice": clip.voice, "text": clip.text}
            for begin, end, clip in recording.sentences
        ]
    return entry


def _singles(readers: Readers, clips: list[Clip], count: int, out: Path) -> list[dict]:
    """Short recordings of one sentence: different voices, different beginnings, read right in every way."""
    entries: list[dict] = []
    beginnings: dict[str, int] = {}
    voices: dict[str, int] = {}
    for clip in clips:
        if len(entries) == count:
            break
        start, voice = clip.text.split()[0], clip.voice
        if beginnings.get(start, 0) >= 1 + count // 10 or voices.get(voice, 0) >= 1 + count // 3:
            continue
        recording = joined([clip], [])
        name = f"{clip.language}-{len(entries) + 1:02}.flac"
        recordings.write(out / name, recording.audio)
        audio = recordings.read(out / name)
        exact = ["whisper-test"] if readers.whisper_agrees(audio, clip.language, clip.text) else []
        if exact and clip.language == "ru" and readers.gigaam_agrees(audio, clip.text):
            exact.append("gigaam-test")
        if len(exact) < (2 if clip.language == "ru" else 1):
            (out / name).unlink()
            continue
        if clip.language == "ru" and readers.rnnt_agrees(audio, clip.text):
            exact.append("gigaam-rnnt-test")
        beginnings[start] = beginnings.get(start, 0) + 1
        voices[voice] = voices.get(voice, 0) + 1
        entries.append(_entry(name, recording, audio, exact))
    return entries


def _long(
    readers: Readers, clips: list[Clip], seconds: float, path: Path, pauses: tuple[float, float], seed: int
) -> tuple[Recording, np.ndarray, list[str]]:
    """A recording of many sentences. What is misread is replaced, again and again; the best version stays."""
    language, rng = clips[0].language, random.Random(seed)
    queue, seen = [], set()
    for clip in clips:
        audio = joined([clip], [], 0.2).audio
        # As a late VAD may cut it too: at the first sound, and 30 ms inside it.
        cuts = [audio[skipped:] for skipped in (0, RATE // 5, RATE * 23 // 100)]
        if clip.text in seen or any(readers.whisper(cut) != clip.text for cut in cuts):
            continue
        wanted = _plain(clip.text)
        if language == "en" or all(readers.gigaam(cut) == wanted for cut in cuts):
            queue.append(clip)
            seen.add(clip.text)
    rng.shuffle(queue)
    chosen, gaps, length = [], [], 0.0
    while length < seconds and queue:
        chosen.append(queue.pop())
        gaps.append(rng.uniform(*pauses))
        length += len(chosen[-1].audio) / RATE + gaps[-1]
    best: tuple[int, list[Clip]] | None = None
    for _ in range(LONG_TRIES):
        recording, _, wrong = _attempt(readers, chosen, gaps, path)
        misread = set().union(*wrong.values())
        if best is None or len(misread) < best[0]:
            best = (len(misread), list(chosen))
        if not misread or len(queue) < len(misread):
            break
        for index in misread:
            chosen[index] = queue.pop()
    recording, audio, wrong = _attempt(readers, best[1], gaps, path)  # the file must hold the best one
    counts = {model: len(indices) for model, indices in wrong.items()}
    print(f"{path.name}: {len(chosen)} sentences, {len(audio) / RATE:.1f} s, misread: {counts}", flush=True)
    exact = [model for model, count in counts.items() if not count]
    if language == "ru" and readers.rnnt and not _misread(readers.rnnt, audio, recording, GIGAAM_LIMIT, _plain):
        exact.append("gigaam-rnnt-test")
    return recording, audio, exact


def _attempt(
    readers: Readers, chosen: list[Clip], gaps: list[float], path: Path
) -> tuple[Recording, np.ndarray, dict[str, set[int]]]:
    recording = joined(chosen, gaps[:-1])
    recordings.write(path, recording.audio, 32_000)
    audio = recordings.read(path)
    wrong = {"whisper-test": _misread(readers.whisper, audio, recording, WHISPER_LIMIT, str)}
    if chosen[0].language == "ru":
        wrong["gigaam-test"] = _misread(readers.gigaam, audio, recording, GIGAAM_LIMIT, _plain)
    return recording, audio, wrong


def _misread(
    read: Callable[[np.ndarray], str],
    audio: np.ndarray,
    recording: Recording,
    limit: float,
    written: Callable[[str], str],
) -> set[int]:
    """The sentences that are not read to the letter in one of the ways of cutting."""
    wrong: set[int] = set()
    for cut in LONG_CUTS:
        for start, piece in recordings.chunks(audio, limit, *cut):
            heard, end = read(piece), start + len(piece) / RATE
            inside = [
                (index, written(clip.text))
                for index, (begin, finish, clip) in enumerate(recording.sentences)
                if start < (begin + finish) / 2 < end
            ]
            if heard != " ".join(text for _, text in inside):
                missing = {index for index, text in inside if text not in heard}
                wrong |= missing or {index for index, _ in inside}
    return wrong


def make_tests(readers: Readers, work: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for language, count, seconds, seed in (("ru", 12, 60, 31), ("en", 8, 45, 32)):
        clips = speech.load(work / f"test_{language}")
        random.Random(seed).shuffle(clips)
        entries += _singles(readers, clips, count, out)
        name = f"{language}-long.ogg"
        by_voice = [clip for clip in clips if clip.voice.endswith(("+Michael", "+m3"))]
        recording, audio, exact = _long(readers, by_voice, seconds, out / name, (0.6, 1.5), 12)
        entries.append(_entry(name, recording, audio, exact))
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    (out / "clips.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for entry in entries:
        print(entry["file"], entry["duration"], entry["voice"], entry["exact"], entry["text"])


# What a person would say in a message. Every sentence is the grammar's, so the small models know its words.
NOTES = {
    "Голосовое сообщение.ogg": (
        "ru",
        ["Вчера купил продукты на две с половиной тысячи.", "Не забудь забрать посылку."],
    ),
    "Напоминание.ogg": ("ru", ["Напомни завтра утром позвонить маме.", "Я буду дома через двадцать минут."]),
    "Voice message.ogg": (
        "en",
        ["Bought groceries for two and a half thousand.", "Do not forget to pick up the parcel."],
    ),
}


def _say(engine: speech.Espeak, text: str, language: str, translation: str) -> list[Clip]:
    """One sentence by several voices, the most human first."""
    if language == "ru":
        made = speech.festival([text], language, "msu_ru_nsh_clunits")
    else:
        made = [clip for voice in ("slt", "rms") for clip in speech.flite([text], language, voice)]
    base = "ru" if language == "ru" else "en-us"
    for variant in [*speech.TEST_VARIANTS, "f4", "m1", "f1", "m7"]:
        clip = engine.say(text, language, f"{base}+{variant}", 165, 50)
        if clip:
            made.append(clip)
    for clip in made:
        clip.translation = translation
    return made


def make_demo(readers: Readers, work: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    engine = speech.Espeak()
    for name, (language, texts) in NOTES.items():
        spoken = [_say(engine, text, language, "") for text in texts]
        for voice in range(len(spoken[0])):
            recording = joined([clips[voice] for clips in spoken], [0.5] * (len(spoken) - 1))
            recordings.write(out / name, recording.audio, 28_000)
            audio = recordings.read(out / name)
            right = readers.whisper_agrees(audio, language, recording.text)
            if right and (language == "en" or readers.gigaam_agrees(audio, recording.text)):
                print(f"{name}: {spoken[0][voice].voice}, {len(audio) / RATE:.1f} s")
                break
        else:
            print(f"{name}: no voice is read right")
    drawn = list({s.ru: s for s in grammar.sentences(400, 9, held_out=True)}.values())
    clips = []
    texts = {sentence.ru: sentence.en for sentence in drawn}
    for begin in range(0, len(drawn), 60):
        part = [sentence.ru for sentence in drawn[begin : begin + 60]]
        clips += speech.festival(part, "ru", "msu_ru_nsh_clunits")
    for clip in clips:
        clip.translation = texts[clip.text]
    _long(readers, clips, 150, out / "Дневник за неделю.m4a", (0.6, 1.4), 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["tests", "demo"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--whisper", type=Path, required=True)
    parser.add_argument("--gigaam", type=Path, required=True)
    parser.add_argument("--rnnt", type=Path, help="the RNNT form of GigaAM")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    readers = Readers(arguments.whisper, arguments.gigaam, arguments.rnnt)
    (make_tests if arguments.command == "tests" else make_demo)(readers, arguments.work, arguments.out)


if __name__ == "__main__":
    main()
