"""Synthetic speech: espeak-ng in this process (with word times), festival and flite as programs.

`python speech.py --work DIR` makes the corpus: for each language one flat int16 array of all clips at 16
kHz and a JSON list saying where each clip lies, what it says, who says it, and when each word is said.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import json
import random
import subprocess
import tempfile
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grammar
import numpy as np
import soxr

if TYPE_CHECKING:
    from collections.abc import Iterable

RATE = 16_000

# espeak-ng variants that load and sound like a person: no robots, croaks or klatt voices.
TRAINING_VARIANTS = [
    "f1", "f3", "f4", "f5", "m1", "m2", "m4", "m5", "m6", "m7", "m8", "Alex", "Andy", "Annie",
    "Denis", "Gene", "Lee", "Marco", "Mario", "Mike", "adam", "anika", "antonio", "belinda",
    "benjamin", "boris", "caleb", "david", "ed", "grandma", "iven", "max", "michel", "pablo",
    "pedro", "rob", "robert", "sandro", "steph", "travis", "victor", "zac",
]  # fmt: skip
TEST_VARIANTS = ["m3", "f2", "Michael", "linda", "paul"]
ESPEAK_LANGUAGES = {"ru": ["ru"], "en": ["en-us", "en-us", "en"]}
FESTIVAL_VOICES = {"ru": ["msu_ru_nsh_clunits"], "en": ["kal_diphone", "ked_diphone"]}
FLITE_VOICES = {"ru": [], "en": ["rms", "slt", "awb"]}


@dataclass
class Clip:
    """One spoken sentence; `words` are (start, end, text) in seconds from its start, empty when not known."""

    text: str
    language: str
    voice: str
    audio: np.ndarray
    words: list[tuple[float, float, str]] = field(default_factory=list)
    translation: str = ""


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_SYNCHRONOUS, _WORD_EVENT, _POS_CHARACTER, _UTF8 = 2, 1, 1, 1
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3


class Espeak:
    """libespeak-ng through ctypes: far quicker than starting the program for each sentence."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        if self._rate <= 0:
            raise RuntimeError("libespeak-ng does not start")
        self._audio: list[np.ndarray] = []
        self._events: list[tuple[int, int]] = []
        self._callback = _CALLBACK(self._collect)  # kept here, or Python frees it while C still calls it
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes.Array, count: int, events: ctypes.Array) -> int:
        if samples and count > 0:
            self._audio.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        index = 0
        while events[index].type != 0:
            if events[index].type == _WORD_EVENT:
                self._events.append((events[index].text_position - 1, events[index].sample))
            index += 1
        return 0

    def say(self, text: str, language: str, voice: str, rate: int, pitch: int) -> Clip | None:
        """None when the voice does not load or says nothing."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            return None
        self._library.espeak_SetParameter(_PARAMETER_RATE, rate, 0)
        self._library.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
        self._audio, self._events = [], []
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, _POS_CHARACTER, 0, _UTF8, None, None)
        if not self._audio:
            return None
        audio = soxr.resample(np.concatenate(self._audio).astype(np.float32) / 32768, self._rate, RATE)
        starts = self._word_starts(text)
        return _trimmed(audio, text, language, f"espeak:{voice}", starts)

    def _word_starts(self, text: str) -> list[float]:
        """A start for each word; one that espeak joined to its neighbour shares the time by letters."""
        spans, position = [], 0
        for word in text.split():
            position = text.index(word, position)
            spans.append(position)
            position += len(word)
        known: dict[int, float] = {}
        for position, sample in self._events:
            index = max((i for i, start in enumerate(spans) if start <= position), default=0)
            known.setdefault(index, sample / self._rate)
        if 0 not in known or len(known) < len(spans) * 0.6:
            return []
        points = sorted(known)
        return [
            float(np.interp(spans[i], [spans[p] for p in points], [known[p] for p in points]))
            for i in range(len(spans))
        ]


def _trimmed(audio: np.ndarray, text: str, language: str, voice: str, starts: list[float]) -> Clip | None:
    """Cut the silence off both ends, shift the word times, and end the last word where the sound ends."""
    frame = RATE // 100
    energy = np.sqrt(np.mean(audio[: len(audio) // frame * frame].reshape(-1, frame) ** 2, axis=1))
    loud = np.flatnonzero(energy > max(0.004, float(energy.max()) * 0.02))
    if not len(loud):
        return None
    first, last = max(0, int(loud[0]) - 2), int(loud[-1]) + 3
    audio = audio[first * frame : last * frame]
    peak = float(np.abs(audio).max())
    if len(audio) < RATE // 4 or len(audio) > RATE * 8 or peak < 0.01:
        return None
    duration = len(audio) / RATE
    moved = [min(max(0.0, start - first / 100), duration) for start in starts]
    spoken = text.split()
    words = []
    if len(moved) == len(spoken):
        words = [
            (round(start, 3), round(end, 3), word)
            for start, end, word in zip(moved, [*moved[1:], duration], spoken, strict=True)
        ]
    return Clip(text, language, voice, (audio * (0.5 / peak)).astype(np.float32), words)


def _read_wave(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        rate, data = file.getframerate(), file.readframes(file.getnframes())
    audio = np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768
    return audio if rate == RATE else soxr.resample(audio, rate, RATE)


def festival(texts: list[str], language: str, voice: str) -> list[Clip]:
    """Festival starts slowly: one start for many sentences. It tells the end of each word."""
    clips = []
    with tempfile.TemporaryDirectory() as folder:
        script = [f"(voice_{voice})"]
        for index, text in enumerate(texts):
            script += [
                f'(set! u (Utterance Text "{text}"))',
                "(utt.synth u)",
                f'(utt.save.wave u "{folder}/{index}.wav")',
                f'(utt.save.words u "{folder}/{index}.words")',
            ]
        (Path(folder) / "all.scm").write_text("\n".join(script), encoding="utf-8")
        subprocess.run(["festival", "-b", f"{folder}/all.scm"], check=False, capture_output=True)
        for index, text in enumerate(texts):
            path = Path(folder) / f"{index}.wav"
            if not path.exists():
                continue
            lines = (Path(folder) / f"{index}.words").read_text(encoding="utf-8").splitlines()[1:]
            ends = [float(line.split()[0]) for line in lines if line.strip()]
            starts = [0.0, *ends[:-1]] if len(ends) == len(text.split()) else []
            clip = _trimmed(_read_wave(path), text, language, f"festival:{voice}", starts)
            if clip:
                clips.append(clip)
    return clips


def flite(texts: list[str], language: str, voice: str) -> list[Clip]:
    """Flite gives no word times here."""
    clips = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.wav"
        for text in texts:
            subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True, capture_output=True)
            clip = _trimmed(_read_wave(path), text, language, f"flite:{voice}", [])
            if clip:
                clips.append(clip)
    return clips


def espeak_clips(
    drawn: Iterable[grammar.Sentence], language: str, variants: list[str], seed: int, engine: Espeak
) -> list[Clip]:
    """Each sentence by a random variant, at a random rate and pitch."""
    rng = random.Random(seed)
    clips = []
    for sentence in drawn:
        base = rng.choice(ESPEAK_LANGUAGES[language])
        voice = f"{base}+{rng.choice(variants)}"
        clip = engine.say(sentence.text(language), language, voice, rng.randint(135, 225), rng.randint(25, 75))
        if clip:
            clip.translation = sentence.en
            clips.append(clip)
    return clips


def _program_clips(kind, drawn: list[grammar.Sentence], language: str, voice: str) -> list[Clip]:
    english = {sentence.text(language): sentence.en for sentence in drawn}
    clips = kind([sentence.text(language) for sentence in drawn], language, voice)
    for clip in clips:
        clip.translation = english[clip.text]
    return clips


def make_corpus(language: str, espeak_count: int, program_count: int, seed: int, engine: Espeak) -> list[Clip]:
    """The training clips of one language."""
    jobs = []
    with ThreadPoolExecutor(2) as pool:
        for number, (kind, voices) in enumerate([(festival, FESTIVAL_VOICES), (flite, FLITE_VOICES)]):
            for index, voice in enumerate(voices[language]):
                part = grammar.sentences(program_count, seed + 100 * number + index + 1, held_out=False)
                for begin in range(0, len(part), 200):
                    jobs.append(pool.submit(_program_clips, kind, part[begin : begin + 200], language, voice))
        drawn = grammar.sentences(espeak_count, seed, held_out=False)
        clips = espeak_clips(drawn, language, TRAINING_VARIANTS, seed, engine)
        for job in jobs:
            clips += job.result()
    return clips


def save(clips: list[Clip], path: Path) -> None:
    """PATH.npy: the samples; PATH.json: the rest, with `begin` and `end` in samples."""
    entries, position = [], 0
    for clip in clips:
        entry = asdict(clip)
        del entry["audio"]
        entries.append(entry | {"begin": position, "end": position + len(clip.audio)})
        position += len(clip.audio)
    samples = np.concatenate([np.round(clip.audio * 32767).astype(np.int16) for clip in clips])
    np.save(path.with_suffix(".npy"), samples)
    path.with_suffix(".json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def load(path: Path) -> list[Clip]:
    samples = np.load(path.with_suffix(".npy"), mmap_mode="r")
    clips = []
    for entry in json.loads(path.with_suffix(".json").read_text(encoding="utf-8")):
        audio = samples[entry.pop("begin") : entry.pop("end")]
        clips.append(Clip(**entry, audio=audio))
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpus")
    parser.add_argument("--espeak", type=int, default=7000, help="espeak-ng clips a language")
    parser.add_argument("--programs", type=int, default=800, help="clips for each festival or flite voice")
    parser.add_argument("--languages", nargs="+", default=["ru", "en"], choices=["ru", "en"])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    engine = Espeak()
    for number, language in enumerate(["ru", "en"]):
        if language not in arguments.languages:
            continue
        began = time.monotonic()
        clips = make_corpus(language, arguments.espeak, arguments.programs, 1000 * (number + 1), engine)
        save(clips, arguments.work / f"train_{language}")
        test = espeak_clips(
            grammar.sentences(400, 77 + number, held_out=True), language, TEST_VARIANTS, 78 + number, engine
        )
        save(test, arguments.work / f"test_{language}")
        seconds = sum(len(clip.audio) for clip in clips) / RATE
        timed = sum(bool(clip.words) for clip in clips)
        print(
            f"{language}: {len(clips)} clips, {seconds / 3600:.2f} h, {timed} with word times, "
            f"{len({clip.voice for clip in clips})} voices, {len(test)} test clips, "
            f"made in {time.monotonic() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
