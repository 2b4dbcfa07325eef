"""What the padding of a chunk and the pauses bridged inside it are good for, on the recordings of the tests.

The first table: word error rate of both test models over all single clips, with more and less silence kept around
speech. The second: how full the windows of 30 s are when pauses of up to a fixed length are bridged; sentences stand
between random pauses of 0.3 to 2.8 s, as of someone who thinks while speaking.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jiwer import wer

from stenograf import vad
from stenograf.audio import SAMPLE_RATE, AudioReader, Samples
from stenograf.options import Options
from stenograf.runtime import Runtime
from stenograf.settings import Settings

TESTS = Path(__file__).parent.parent / "tests"
WINDOW_SECONDS = 30.0
MINUTES = 20


def sound(file: str) -> Samples:
    """The whole recording."""
    with AudioReader(TESTS / "audio" / file) as reader:
        return np.concatenate(list(reader.blocks()))


def plain(text: str) -> str:
    """Small letters without punctuation."""
    return "".join(c for c in text.lower() if c.isalnum() or c.isspace())


def padding(clips: list[dict[str, str]]) -> None:
    """Word error rate by padding."""
    runtime = Runtime(Settings(models_dir=TESTS / "models", offline=True))
    models = {name: runtime.reader.transcriber(name) for name in ("whisper-test", "gigaam-test")}
    print(f"{'padding, s':<12}" + "".join(f"{name + ', WER':>20}" for name in models))
    for seconds in (0.0, 0.05, 0.1, 0.25, 0.4):
        vad.PADDING = round(seconds * SAMPLE_RATE)
        rates = []
        for name, model in models.items():
            chosen = [c for c in clips if name == "whisper-test" or c["language"] == "ru"]
            read = [
                model.transcribe(TESTS / "audio" / c["file"], Options(language=c["language"], beam_size=1)).text
                for c in chosen
            ]
            rates.append(wer([plain(c["text"]) for c in chosen], [plain(text) for text in read]))
        print(f"{seconds:<12}" + "".join(f"{rate:>20.3f}" for rate in rates))


def pauses(clips: list[dict[str, str]]) -> None:
    """How full the windows are, by the longest pause that is bridged."""
    random = np.random.default_rng(0)
    pieces: list[Samples] = []
    while sum(map(len, pieces)) < MINUTES * 60 * SAMPLE_RATE:
        pieces.append(sound(clips[random.integers(len(clips))]["file"]))
        pieces.append(np.zeros(int(random.uniform(0.3, 2.8) * SAMPLE_RATE), np.float32))
    speech = np.concatenate(pieces)
    print(f"\n{'bridged, s':<12}{'chunks':>8}{'filled':>8}")
    for seconds in (0.5, 1.5, 3.0):
        vad.MERGE_BOUNDS = (round(seconds * SAMPLE_RATE),) * 2
        found = list(vad.chunks([speech], WINDOW_SECONDS))
        filled = sum(len(chunk.audio) for chunk in found) / (len(found) * WINDOW_SECONDS * SAMPLE_RATE)
        print(f"{seconds:<12}{len(found):>8}{filled:>8.0%}")


def main() -> None:
    """Print both tables."""
    listed = json.loads((TESTS / "audio" / "clips.json").read_text("utf-8"))
    clips = [clip for clip in listed if not clip.get("sentences")]
    kept = vad.PADDING
    padding(clips)
    vad.PADDING = kept
    pauses(clips)


if __name__ == "__main__":
    main()
