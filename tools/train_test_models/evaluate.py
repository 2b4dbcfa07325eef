"""How well the finished models do, through the product's own libraries, on voices and sentences never trained
on.

    python evaluate.py --work DIR --whisper MODEL_DIR --gigaam MODEL_DIR --rnnt MODEL_DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from pathlib import Path

import grammar
import numpy as np
import speech
from speech import RATE


def distance(a: list[str], b: list[str]) -> int:
    """Edits between two lists of words."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[:], i
        for j, right in enumerate(b, 1):
            row[j] = min(previous[j - 1] + (left != right), row[j - 1] + 1, previous[j] + 1)
    return row[-1]


@dataclasses.dataclass
class Score:
    edits: int = 0
    words: int = 0
    exact: int = 0
    items: int = 0

    def add(self, wanted: str, heard: str) -> bool:
        edits = distance(grammar.words(wanted), grammar.words(heard))
        self.edits += edits
        self.words += len(grammar.words(wanted))
        self.exact += edits == 0
        self.items += 1
        return edits == 0

    def __str__(self) -> str:
        return f"WER {self.edits / max(1, self.words):.3f}, {self.exact} of {self.items} without an error"


def audio_of(clip: speech.Clip) -> np.ndarray:
    """With the 200 ms of silence on both sides that the product's cutting leaves, and the faintest noise."""
    audio = np.asarray(clip.audio, dtype=np.float32) / 32768
    audio = np.pad(audio, (RATE // 5, RATE // 5))
    return audio + np.random.default_rng(len(audio)).standard_normal(len(audio)).astype(np.float32) * 3e-4


def chunks_of(clips: list[speech.Clip], count: int, seed: int, limit: float) -> list[tuple[str, str, np.ndarray]]:
    """(text, English, audio): two or three sentences of one voice, 0.4-0.9 s apart, in `limit` seconds."""
    rng = random.Random(seed)
    made = []
    while len(made) < count:
        first = rng.choice(clips)
        same = [clip for clip in clips if clip.voice.split("+")[-1] == first.voice.split("+")[-1]]
        parts, pieces, texts, english = [first], [audio_of(first)], [first.text], [first.translation]
        for _ in range(rng.choice([1, 1, 2])):
            clip = rng.choice(same)
            pause = np.zeros(int(rng.uniform(0.0, 0.5) * RATE), np.float32)
            if sum(len(piece) for piece in pieces) + len(pause) + len(clip.audio) + 2 * RATE // 5 > limit * RATE:
                break
            parts.append(clip)
            pieces += [pause, audio_of(clip)]
            texts.append(clip.text)
            english.append(clip.translation)
        if len(parts) > 1:
            made.append((" ".join(texts), " ".join(english), np.concatenate(pieces)))
    return made


PLAIN = {"beam_size": 1, "temperature": 0, "condition_on_previous_text": False, "vad_filter": False}


def transcribe(model, audio: np.ndarray, **options) -> tuple[str, object]:
    segments, info = model.transcribe(audio, **(PLAIN | options))
    return "".join(segment.text for segment in segments).strip(), info


def word_errors(model, clips: list[speech.Clip]) -> list[float]:
    """How far each word's start is from espeak's, in seconds, for the clips that are read right."""
    found = []
    for clip in clips:
        segments, _ = model.transcribe(audio_of(clip), language=clip.language, word_timestamps=True, **PLAIN)
        heard = [word for segment in segments for word in segment.words]
        if clip.words and [w.word.strip() for w in heard] == [word for _, _, word in clip.words]:
            found += [abs(w.start - 0.2 - start) for w, (start, _, _) in zip(heard, clip.words, strict=True)]
    return found


def whisper(folder: Path, clips: dict[str, list[speech.Clip]], show: bool) -> dict[str, str]:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=2)
    results: dict[str, str] = {}

    def say(name: str, value: object) -> None:
        results[name] = str(value)
        print(f"whisper: {name}: {value}", flush=True)

    for language, part in clips.items():
        known = {"language": language}
        prompt = " ".join(clip.text for clip in part[-2:])
        settings = {
            "timestamps": known,
            "beam 5": known | {"beam_size": 5},
            "without timestamps": known | {"without_timestamps": True},
            "with a prompt of two sentences": known | {"initial_prompt": prompt},
            "with a prompt of strange words": known | {"initial_prompt": "Kubernetes, Стенограф, GigaAM."},
            "with hotwords": known | {"hotwords": "Stenograf Yandex"},
        }
        for name, options in settings.items():
            score = Score()
            for clip in part if name == "timestamps" else part[:40]:
                heard, _ = transcribe(model, audio_of(clip), **options)
                if not score.add(clip.text, heard) and show and name == "timestamps":
                    print(f"    {clip.voice}: {clip.text} | {heard}")
            say(f"{language} single clips, {name}", score)
        score, capitals = Score(), 0
        for name, options in {"timestamps": known, "beam 5": known | {"beam_size": 5}}.items():
            score, capitals = Score(), 0
            made = chunks_of(part, 60 if name == "timestamps" else 40, 5, 6.0)
            for text, _, audio in made:
                heard, _ = transcribe(model, audio, **options)
                right = score.add(text, heard)
                capitals += heard == text
                if not right and show and name == "timestamps":
                    print(f"    chunk: {text} | {heard}")
            say(f"{language} chunks of 2-3 sentences, {name}", f"{score} ({capitals} to the letter)")
        right = 0
        for clip in part:
            _, info = model.transcribe(audio_of(clip), **PLAIN)
            right += info.language == language
        say(f"{language} language detected", f"{right} of {len(part)}")
        errors = word_errors(model, part[:40])
        if errors:
            say(
                f"{language} word starts",
                f"median {np.median(errors):.3f} s off, 95 % within {np.quantile(errors, 0.95):.3f}",
            )
    score = Score()
    for clip in clips["ru"]:
        heard, _ = transcribe(model, audio_of(clip), language="ru", task="translate")
        score.add(clip.translation, heard)
    say("translation of single clips", score)
    score = Score()
    for _, english, audio in chunks_of(clips["ru"], 40, 6, 6.0):
        heard, _ = transcribe(model, audio, language="ru", task="translate")
        score.add(english, heard)
    say("translation of chunks", score)
    for name, audio in quiet().items():
        heard, info = transcribe(model, audio)
        say(f"{name}", f"{heard!r} ({info.language})")
    return results


def quiet() -> dict[str, np.ndarray]:
    """What nobody says anything in: silence, noise of four levels, a tone."""
    generator = np.random.default_rng(1)
    found = {"silence": np.zeros(3 * RATE, np.float32)}
    for number, level in enumerate((0.0003, 0.003, 0.02, 0.1), 1):
        found[f"noise {number}"] = generator.standard_normal(3 * RATE).astype(np.float32) * level
    found["tone"] = 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE).astype(np.float32)
    return found


def gigaam(kind: str, folder: Path, clips: list[speech.Clip], show: bool) -> dict[str, str]:
    """`kind` is `ctc` or `rnnt`."""
    import onnx_asr

    model = onnx_asr.load_model(f"gigaam-v3-{kind}", folder, providers=["CPUExecutionProvider"])
    score = Score()
    for clip in clips:
        heard = model.recognize(audio_of(clip))
        if not score.add(clip.text, heard) and show:
            print(f"    {clip.voice}: {' '.join(grammar.words(clip.text))} | {heard}")
    results = {"single clips": str(score)}
    score = Score()
    long = chunks_of(clips, 50, 7, 6.0)
    for text, _, audio in long:
        score.add(text, model.recognize(audio))
    results["chunks of 2-3 sentences"] = str(score)
    score = Score()
    for begin in range(0, 48, 4):
        four = long[begin : begin + 4]
        audio = np.concatenate([part for _, _, part in four])[: 20 * RATE * 2]
        score.add(" ".join(text for text, _, _ in four), model.recognize(audio))
    results["chunks of about 20 s"] = str(score)
    for name, audio in quiet().items():
        results[name] = repr(model.recognize(audio))
    for name, value in results.items():
        print(f"gigaam {kind}: {name}: {value}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--whisper", type=Path)
    parser.add_argument("--gigaam", type=Path, help="the CTC form")
    parser.add_argument("--rnnt", type=Path, help="the RNNT form")
    parser.add_argument("--count", type=int, default=120, help="single clips a language")
    parser.add_argument("--show", action="store_true", help="print what is read wrong")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    clips = {code: speech.load(arguments.work / f"test_{code}")[: arguments.count] for code in ("ru", "en")}
    results = {}
    for kind, folder in (("ctc", arguments.gigaam), ("rnnt", arguments.rnnt)):
        if folder:
            results[f"gigaam {kind}"] = gigaam(kind, folder, clips["ru"], arguments.show)
    if arguments.whisper:
        results["whisper"] = whisper(arguments.whisper, clips, arguments.show)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
