"""Where a long recording is cut nothing is lost and nothing said twice: ten minutes against their sentences alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from jiwer import WordOutput, process_words

from conftest import clips
from media import write
from stenograf.audio import SAMPLE_RATE, AudioReader, Samples
from stenograf.options import Options
from stenograf.transcriber import Transcriber

MINUTES = 10
WITHIN = 0.005
"""Word error rates may differ by half a point.

How well the small models read a sentence is chance of that size: over eight such recordings (`make bench-seams`) the
CTC had 0.0130 alone and 0.0152 in one recording, the RNNT 0.0076 and 0.0092; one of the sixteen differed by more.
"""

NOISE = 0.003
"""Between digital silences the small models are not themselves; a room has some noise."""

PAUSES = (0.25, 0.4, 0.7, 1.2, 3.0)
"""Seconds between sentences, from a breath, where only a full chunk is cut, to some where it always is."""

MARGIN = SAMPLE_RATE // 4
"""Samples around a sentence that is read alone."""


def plain(text: str) -> str:
    return "".join(c for c in text.lower().replace("ё", "е") if c.isalnum() or c.isspace())


def samples(path: Path) -> Samples:
    with AudioReader(path) as reader:
        return np.concatenate(list(reader.blocks()))


def sentences() -> list[tuple[Samples, str]]:
    """Russian ones, each with its text: short clips, and those of the long recording."""
    found = []
    for clip in clips():
        if clip.language != "ru":
            continue
        audio = samples(clip.path)
        parts = clip.data.get("sentences") or [{"start": 0.02, "end": clip.duration, "text": clip.text}]
        for part in parts:
            cut = audio[int((part["start"] - 0.02) * SAMPLE_RATE) : int((part["end"] + 0.05) * SAMPLE_RATE)]
            found.append((cut, plain(part["text"])))
    return found


@dataclass(frozen=True)
class Joined:
    """A recording of ten minutes, and where its sentences are."""

    said: str
    samples: Samples
    places: list[tuple[int, int]]


def joined(seed: int) -> Joined:
    """Sentences drawn by chance, with pauses, in a room that is not quite silent."""
    rng, generator, spoken = random.Random(seed), np.random.default_rng(seed), sentences()
    said: list[str] = []
    pieces: list[Samples] = []
    places: list[tuple[int, int]] = []
    position = 0
    while position < MINUTES * 60 * SAMPLE_RATE:
        audio, text = rng.choice(spoken)
        said.append(text)
        places.append((max(position - MARGIN, 0), position + len(audio) + MARGIN))
        pieces += [audio, np.zeros(int(rng.choice(PAUSES) * SAMPLE_RATE), np.float32)]
        position += len(audio) + len(pieces[-1])
    whole = np.concatenate(pieces)
    whole = whole + NOISE * generator.standard_normal(len(whole)).astype(np.float32)
    return Joined(" ".join(said), whole, places)


def compare(transcriber: Transcriber, recording: Joined, folder: Path) -> tuple[WordOutput, WordOutput]:
    """How the sentences are read one by one, and in one recording."""
    options = Options(language="ru", beam_size=1, temperature=0.0)
    alone = [
        transcriber.transcribe(write(folder / "one.wav", recording.samples[start:end]), options).text
        for start, end in recording.places
    ]
    together = transcriber.transcribe(write(folder / "all.wav", recording.samples), options)
    return process_words(recording.said, plain(" ".join(alone))), process_words(recording.said, plain(together.text))


@pytest.mark.by_hand
@pytest.mark.parametrize("model", ["gigaam-test", "gigaam-rnnt-test"])
def test_ten_minutes_are_read_as_their_sentences_one_by_one(
    model: str, load_model: Callable[[str], Transcriber], tmp_path: Path
) -> None:
    recording = joined(seed=7)
    by_one, in_all = compare(load_model(model), recording, tmp_path)
    words = len(recording.said.split())
    print(f"{model}: WER {by_one.wer:.4f} one by one and {in_all.wer:.4f} in one recording, where of {words} words "
          f"{in_all.deletions} are lost and {in_all.insertions} too many")  # fmt: skip
    assert abs(in_all.wer - by_one.wer) <= WITHIN
