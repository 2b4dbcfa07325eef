"""A ten-minute recording read by us and by faster-whisper on its own, in one run, with the small test model.

Three ways, all greedy, int8, on all cores: `WhisperModel.transcribe` with its own VAD, its `BatchedInferencePipeline`,
and Stenograf. Shown are the time against the first way, and the word error rate: speed that loses words is none. The
model is tiny, so that what is measured is the way around it; with a real one the encoder weighs more.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from faster_whisper import BatchedInferencePipeline, WhisperModel
from jiwer import wer
from memory import lengthen

from stenograf.options import Options
from stenograf.runtime import Runtime
from stenograf.settings import Settings

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "tests" / "models"
MINUTES = 10
ROUNDS = 3


def plain(text: str) -> str:
    """Small letters without punctuation."""
    return "".join(c for c in text.lower() if c.isalnum() or c.isspace())


def main() -> None:
    """Print a table."""
    clips = json.loads((ROOT / "tests" / "audio" / "clips.json").read_text("utf-8"))
    clip = next(c for c in clips if c["file"] == "ru-long.ogg")
    repeats = round(MINUTES * 60 / clip["duration"])
    truth = plain(" ".join([clip["text"]] * repeats))
    bare = WhisperModel(
        str(MODELS / "whisper-test"), device="cpu", compute_type="int8", cpu_threads=os.cpu_count() or 1
    )
    batched = BatchedInferencePipeline(bare)
    ours = Runtime(Settings(models_dir=MODELS, offline=True)).reader.transcriber("whisper-test")
    common = {"language": "ru", "beam_size": 1, "vad_filter": True}

    def sequential(path: str) -> str:
        segments, _ = bare.transcribe(path, condition_on_previous_text=False, **common)
        return " ".join(segment.text for segment in segments)

    def in_batches(path: str) -> str:
        segments, _ = batched.transcribe(path, batch_size=8, without_timestamps=False, **common)
        return " ".join(segment.text for segment in segments)

    def stenograf(path: str) -> str:
        return ours.transcribe(path, Options(language="ru", beam_size=1)).text

    ways: dict[str, Callable[[str], str]] = {
        "faster-whisper": sequential,
        "faster-whisper, batched": in_batches,
        "stenograf": stenograf,
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recording.mkv")
        lengthen(ROOT / "tests" / "audio" / "ru-long.ogg", path, clip["duration"] * repeats)
        for _ in range(ROUNDS):
            for name, read in ways.items():
                started = time.perf_counter()
                texts[name] = read(str(path))
                spent[name].append(time.perf_counter() - started)
    first = statistics.median(spent["faster-whisper"])
    print(f"{'':<26}{'seconds':>9}{'ratio':>8}{'WER':>8}")
    for name, seconds in spent.items():
        median = statistics.median(seconds)
        print(f"{name:<26}{median:>9.1f}{median / first:>8.2f}{wer(truth, plain(texts[name])):>8.3f}")


if __name__ == "__main__":
    main()
