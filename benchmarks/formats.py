"""How the time to write a transcript grows with its length: a tenth of ten hours against all of them.

Ratio 10 is linear growth. Each format is written three times and the quickest counts.
"""

from __future__ import annotations

import time

from stenograf import formats
from stenograf.transcript import Segment, Transcript, Word

WORDS = 100_000
"""Ten hours of speech, about."""


def transcript(words: int) -> Transcript:
    """Segments of ten words, 0.36 s a word."""
    segments = []
    for first in range(0, words, 10):
        spoken = tuple(
            Word(0.36 * n, 0.36 * n + 0.3, f"слово{n % 977}{'.' if n % 10 == 9 else ''}", 0.9)
            for n in range(first, first + 10)
        )
        text = " ".join(word.text for word in spoken)
        segments.append(Segment(spoken[0].start, spoken[-1].end, text, spoken, None, -0.2, 0.01, 1.3))
    return Transcript(tuple(segments), "ru", 1.0, 0.36 * words, "m", "e", "cpu", "int8")


def seconds(text: Transcript, name: str) -> float:
    """The quickest of three."""
    spent = []
    for _ in range(3):
        started = time.process_time()
        formats.render(text, name)
        spent.append(time.process_time() - started)
    return min(spent)


def main() -> None:
    """Print a table."""
    short, long = transcript(WORDS // 10), transcript(WORDS)
    print(f"{'format':<8}{'10 h, s':>10}{'10 h / 1 h':>12}")
    for name in formats.FORMATS:
        whole = seconds(long, name)
        print(f"{name:<8}{whole:>10.2f}{whole / max(seconds(short, name), 1e-4):>12.1f}")


if __name__ == "__main__":
    main()
