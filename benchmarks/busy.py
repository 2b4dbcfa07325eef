"""An engine's threads that wait, on a machine where others want the cores: asleep, as here, or spinning.

`make bench-busy`. Twelve seconds of Russian, read with their word times by both Whisper engines (the small model of the
tests), each time in a process of its own, with and without two busy processes for each core. Shown are seconds, and
seconds of all cores, and their ratio asleep over spinning, OpenMP's default; the median of the rounds counts, and
the settings take turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROUNDS = 3
POLICIES = ("asleep", "spinning")

READ = """
import sys, time
from pathlib import Path
if sys.argv[3] == "spinning":  # OpenMP has read its settings before ours are made
    import ctranslate2
    if sys.argv[1] == "openai-whisper":
        import torch
sys.path.insert(0, sys.argv[2])
from stenograf.options import Options
from stenograf.engines import engine
from stenograf.audio import AudioReader
from stenograf.chunk import Chunk
import numpy as np
from twin import whisper_twin

tests = Path(sys.argv[2])
place = whisper_twin() if sys.argv[1] == "openai-whisper" else tests / "models" / "whisper-test"
model = engine(sys.argv[1]).load(place, device="cpu", compute_type="auto", variant=None)
with AudioReader(tests / "audio" / "ru-long.ogg") as reader:
    audio = np.concatenate(list(reader.blocks()))[: 12 * 16_000]
chunk = Chunk(0, 0.0, audio, Options(language="ru", word_timestamps=True))
list(model.transcribe([chunk]))
began, spent = time.perf_counter(), time.process_time()
list(model.transcribe([chunk]))
print(time.perf_counter() - began, time.process_time() - spent)
"""


def measured(name: str, policy: str) -> tuple[float, float]:
    """Seconds, and seconds of all cores."""
    # What others have set for this must not stand in the way.
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "KMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", READ, name, str(ROOT / "tests"), policy],
        env=plain, check=True, capture_output=True, text=True,
    )  # fmt: skip
    took, spent = done.stdout.split()[-2:]
    return float(took), float(spent)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that want a core all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Print a table."""
    cores = os.cpu_count() or 1
    print(f"{cores} cores".ljust(34) + f"{'asleep':>8}{'spins':>8}{'ratio':>7}{'CPU':>9}{'spins':>8}{'ratio':>7}")
    for name in ("faster-whisper", "openai-whisper"):
        for count in (0, 2 * cores):
            found: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
            with busy(count):
                for _ in range(ROUNDS):
                    for policy in POLICIES:
                        found[policy].append(measured(name, policy))
            line = f"{name}, {count} busy processes".ljust(34)
            for place in (0, 1):
                asleep, spins = (statistics.median(one[place] for one in found[policy]) for policy in POLICIES)
                line += f"{asleep:>8.2f}{spins:>8.2f}{asleep / spins:>7.2f}" + ("  " if place == 0 else "")
            print(line, flush=True)


if __name__ == "__main__":
    main()
