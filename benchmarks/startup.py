"""How soon the command line answers, against the interpreter alone. Aim for `stenograf --help`: 0.2 s."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "stenograf --help": [sys.executable, "-m", "stenograf", "--help"],
    "stenograf transcribe --help": [sys.executable, "-m", "stenograf", "transcribe", "--help"],
    "stenograf config": [sys.executable, "-m", "stenograf", "config"],
}
RUNS = 11


def seconds(command: list[str]) -> float:
    """The median of `RUNS` runs, after one that is not counted."""
    spent = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        spent.append(time.perf_counter() - started)
    return statistics.median(spent[1:])


def main() -> None:
    """Print a table."""
    alone = None
    for name, command in COMMANDS.items():
        median = seconds(command)
        alone = alone or median
        print(f"{name:<30}{median:7.3f} s{median / alone:7.1f} x")


if __name__ == "__main__":
    main()
