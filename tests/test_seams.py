"""Where a long recording is cut nothing is lost and nothing said twice: ten minutes against their sentences alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jiwer import process_words

from conftest import clips
from media import write
from stenograf.audio import SAMPLE_RATE, AudioReader, Samples
from stenograf.options import Options
from stenograf.transcriber import Transcriber

MINUTES = 10
WITHIN = 0.005
"""Word error rates may differ by half a point.

How well the small models read a sentence is chance within that: over eight such recordings, of other sentences with
other pauses, the CTC had 0.0110 alone and 0.0137 in one recording, the RNNT 0.0087 and 0.0084, and in the whole without
any cut 0.0162 and 0.0111. It is the company of other sentences that costs words, and not the seams.
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


@pytest.mark.parametrize("model", ["gigaam-test", "gigaam-rnnt-test"])
def test_ten_minutes_are_read_as_their_sentences_one_by_one(
    model: str, load_model: Callable[[str], Transcriber], tmp_path: Path
) -> None:
    transcriber, spoken = load_model(model), sentences()
    options = Options(language="ru", beam_size=1, temperature=0.0)
    rng, generator = random.Random(7), np.random.default_rng(7)
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
    alone = [
        transcriber.transcribe(write(tmp_path / "one.wav", whole[start:end]), options).text for start, end in places
    ]
    together = transcriber.transcribe(write(tmp_path / "all.wav", whole), options)
    by_one = process_words(" ".join(said), plain(" ".join(alone)))
    in_all = process_words(" ".join(said), plain(together.text))
    words = len(" ".join(said).split())
    print(f"{model}: WER {by_one.wer:.4f} one by one and {in_all.wer:.4f} in one recording, where of {words} words "
          f"{in_all.deletions} are lost and {in_all.insertions} too many")  # fmt: skip
    assert abs(in_all.wer - by_one.wer) <= WITHIN
