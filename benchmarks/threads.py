"""Chunks side by side with a core each, against one chunk at a time on all cores.

Whisper of the `base` shape with random weights in int8, made on the spot: nothing is downloaded, and the length of the
decoding is fixed, so that only speed differs. For each setting: the time of one chunk alone (a voice note) and the
time a chunk when sixteen are read (a recording). Ratios are against one worker on all cores, in the same run; the
settings take turns, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel
from shapes import build

CHUNKS = 16
ROUNDS = 3
TOKENS = 60


def read(model: WhisperModel, audio: np.ndarray) -> None:
    """One chunk, with `TOKENS` tokens decoded greedily."""
    segments, _ = model.transcribe(
        audio,
        language="ru",
        beam_size=1,
        temperature=0,
        without_timestamps=True,
        suppress_tokens=[-1, 50257],
        max_new_tokens=TOKENS,
        compression_ratio_threshold=None,
        log_prob_threshold=None,
        no_speech_threshold=None,
        condition_on_previous_text=False,
    )
    list(segments)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="base")
    shape = parser.parse_args().shape
    cores = os.cpu_count() or 1
    settings = [(1, cores), (cores, 1), (cores, cores)]
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000 * 25).astype(np.float32)
    alone: dict[tuple[int, int], list[float]] = {s: [] for s in settings}
    many: dict[tuple[int, int], list[float]] = {s: [] for s in settings}
    with tempfile.TemporaryDirectory() as folder:
        path = build(shape, Path(folder, shape))
        models = {
            (workers, threads): WhisperModel(
                str(path), device="cpu", compute_type="int8", cpu_threads=threads, num_workers=workers
            )
            for workers, threads in settings
        }
        for _ in range(ROUNDS):
            for setting, model in models.items():
                read(model, audio)  # warm
                started = time.perf_counter()
                read(model, audio)
                alone[setting].append(time.perf_counter() - started)
                started = time.perf_counter()
                with ThreadPoolExecutor(setting[0]) as pool:
                    list(pool.map(lambda _, model=model: read(model, audio), range(CHUNKS)))
                many[setting].append((time.perf_counter() - started) / CHUNKS)
    first = settings[0]
    print(f"{shape}, {cores} cores, {TOKENS} tokens a chunk")
    print(f"{'workers x threads':<20}{'one, s':>9}{'ratio':>8}{'of many, s':>12}{'ratio':>8}")
    for setting in settings:
        one, each = statistics.median(alone[setting]), statistics.median(many[setting])
        print(
            f"{setting[0]} x {setting[1]:<16}{one:>9.2f}{one / statistics.median(alone[first]):>8.2f}"
            f"{each:>12.2f}{each / statistics.median(many[first]):>8.2f}"
        )


if __name__ == "__main__":
    main()
