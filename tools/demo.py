"""`make demo`: transcribes the recordings in samples/ with the command line, as a person would, and shows the text.

With a model hub in reach it uses what the default model needs, which is downloaded at its first use; without one, the
small model that the tests use.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from stenograf.cli.console import clock
from stenograf.runtime import Runtime
from stenograf.setting_sources import load

ROOT = Path(__file__).parent.parent
SMALL_MODEL = Path("tests/models/whisper-test")
OUTPUT = Path("demo-output")


def model_arguments(console: Console) -> list[str]:
    """The default model where it is here or can be had, else the small one of the tests, and a line that says so."""
    reader = Runtime(load().settings).reader
    for name in reader.available.needed_first() or ["base"]:
        if reader.is_here(name):
            continue
        console.print(f"Looking for the model {name} ...")
        pulled = subprocess.run(
            [sys.executable, "-m", "stenograf", "models", "pull", name],
            capture_output=not console.is_terminal,
            check=False,
        )
        if pulled.returncode:
            console.print(
                f"No model hub is in reach, so the small model of the tests reads the samples ({SMALL_MODEL}); "
                "it knows about 150 words."
            )
            return ["--model", f"./{SMALL_MODEL}"]
    return []


def main() -> int:
    """Run the command and show what it wrote."""
    os.chdir(ROOT)
    console = Console(highlight=False, soft_wrap=True)
    command = ["stenograf", "transcribe", "samples", "--output", str(OUTPUT), "--format", "txt,srt,json", "--force"]
    command += model_arguments(console)
    console.print(Text(f"\n$ {shlex.join(command)}", "bold"))
    started = time.monotonic()
    status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    seconds = time.monotonic() - started
    for written in sorted(OUTPUT.glob("*.json")):
        transcript = json.loads(written.read_text("utf-8"))
        console.print(
            Text(f"\n{written.stem}", "bold")
            + f"  {transcript['language']}, {clock(transcript['duration'])},"
            + f" read in {transcript['timings']['total']:.1f} s"
        )
        console.print(Text(written.with_suffix(".txt").read_text("utf-8").strip()))
        console.print(Text(f"subtitles: {written.with_suffix('.srt')}", "dim"))
    console.print(f"\n{seconds:.1f} s in all, with the start of the program and of the model.")
    return status


if __name__ == "__main__":
    sys.exit(main())
