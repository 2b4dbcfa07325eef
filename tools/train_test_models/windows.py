"""What a model is given: one to a few sentences with pauses, in noise, at a random loudness, as the product
cuts chunks.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from speech import RATE, Clip


@dataclass
class Window:
    """`placed` are the sentences in it, each with its start in seconds."""

    audio: np.ndarray
    placed: list[tuple[float, Clip]]


def _noise(count: int, generator: np.random.Generator) -> np.ndarray:
    """White or darker noise, sometimes with mains hum."""
    noise = generator.standard_normal(count).astype(np.float32)
    darkness = int(generator.integers(0, 4))
    if darkness:
        noise = np.convolve(noise, np.ones(2**darkness, dtype=np.float32), mode="same")
    noise /= noise.std() + 1e-6
    if generator.random() < 0.2:
        hum = np.sin(2 * np.pi * generator.choice([50, 100, 150]) * np.arange(count) / RATE)
        noise = noise + hum.astype(np.float32)
    return noise


class WindowMaker:
    """Draws windows from clips, in most of them with one voice throughout."""

    def __init__(self, clips: list[Clip], seed: int) -> None:
        self._clips = clips
        self._by_voice = defaultdict(list)
        for clip in clips:
            self._by_voice[clip.voice].append(clip)
        self._random = random.Random(seed)
        self._generator = np.random.default_rng(seed)

    def speech(self, seconds: float, most: int) -> Window:
        """Up to `most` sentences in at most `seconds`."""
        rng = self._random
        wanted = rng.randint(1, most)
        first = rng.choice(self._clips)
        while len(first.audio) / RATE > seconds - 0.5:
            first = rng.choice(self._clips)
        source = self._by_voice[first.voice] if rng.random() < 0.7 else self._clips
        # The product pads speech by 150-200 ms; Whisper's decoding refuses a first timestamp after 1.0 s.
        kind = rng.random()
        if kind < 0.25:  # the VAD finds speech late: even padded, a chunk may begin inside the first sound
            position = rng.uniform(-0.07, 0.05)
        else:
            position = rng.uniform(0.05, 0.4) if kind < 0.85 else rng.uniform(0.4, 0.95)
        position = min(position, seconds - 0.05 - len(first.audio) / RATE)
        placed: list[tuple[float, Clip]] = []
        clip = first
        while len(placed) < wanted:
            end = position + len(clip.audio) / RATE
            if end > seconds and placed:
                break
            placed.append((position, clip))
            position = end + (rng.uniform(0.1, 1.1) if rng.random() < 0.9 else rng.uniform(1.1, 1.8))
            clip = rng.choice(source)
        last_start, last = placed[-1]
        total = (
            last_start
            + len(last.audio) / RATE
            + (rng.uniform(0.02, 0.5) if rng.random() < 0.8 else rng.uniform(0.5, 2))
        )
        audio = np.zeros(min(int(total * RATE), int(seconds * RATE)), dtype=np.float32)
        for start, part in placed:
            begin = int(start * RATE)
            sound = np.asarray(part.audio, dtype=np.float32)[max(0, -begin) :] / 32768
            begin = max(0, begin)
            sound = sound[: max(0, len(audio) - begin)]
            audio[begin : begin + len(sound)] += sound
        return Window(self._worsen(audio), placed)

    def silence(self, seconds: float) -> Window:
        """Noise, hum or nothing at all."""
        count = int(self._random.uniform(0.4, seconds) * RATE)
        audio = np.zeros(count, dtype=np.float32)
        kind = self._random.random()
        if kind < 0.6:
            audio = _noise(count, self._generator) * 10 ** self._random.uniform(-4, -1)
        elif kind < 0.75:
            tone = np.sin(2 * np.pi * self._random.uniform(80, 3000) * np.arange(count) / RATE)
            audio = tone.astype(np.float32) * self._random.uniform(0.01, 0.4)
        elif kind < 0.85:
            audio = self._generator.standard_normal(count).astype(np.float32) * 1e-5
        return Window(audio, [])

    def _worsen(self, audio: np.ndarray) -> np.ndarray:
        rng = self._random
        if rng.random() < 0.5:  # a microphone's tilt
            audio[1:] += rng.uniform(-0.5, 0.6) * audio[:-1].copy()
        if rng.random() < 0.75:
            level = float(audio.std()) + 1e-6
            audio = audio + _noise(len(audio), self._generator) * (level * 10 ** (-rng.uniform(12, 50) / 20))
        peak = float(np.abs(audio).max()) + 1e-6
        return (audio * (10 ** (-rng.uniform(0, 24) / 20) * 0.9 / peak)).astype(np.float32)
