"""Memory while a long recording is transcribed: the whole way, from an opus file to segments, with the real engine.

A recording of the wanted length is made by repeating the packets of a short one, so that nothing has to be encoded.
Prints the resident memory after the model was warmed up on one minute, and the peak while the long one is read: the
difference is what the length costs. Aim: 10 hours under 150 MB.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import av

from stenograf.options import Options
from stenograf.runtime import Runtime
from stenograf.settings import Settings
from stenograf.transcriber import Progress

ROOT = Path(__file__).parent.parent
HOURS = 10.0
LIMIT = 150


def resident() -> float:
    """Resident memory of this process now, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("This benchmark reads /proc: it runs on Linux only.")


def reset_peak() -> None:
    """Let the kernel count the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Highest resident memory since `reset_peak`, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def lengthen(source: Path, target: Path, seconds: float) -> None:
    """Repeat the packets of an opus recording until it is `seconds` long."""
    packets = []
    with av.open(str(source)) as container:
        stream = container.streams.audio[0]
        base = stream.time_base
        assert base is not None
        packets = [(bytes(p), p.duration) for p in container.demux(stream) if p.size]
        with av.open(str(target), "w", format="matroska") as out:
            made = out.add_stream_from_template(stream)
            position, index = 0, 0
            while position * base < seconds:
                data, duration = packets[index % len(packets)]
                packet = av.Packet(data)
                packet.stream, packet.time_base = made, base
                packet.pts = packet.dts = position
                packet.duration = duration
                out.mux(packet)
                position += duration or round(0.02 / base)
                index += 1


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=HOURS)
    parser.add_argument("--model", default="whisper-test", help="folder in tests/models, or a path")
    parser.add_argument("--word-timestamps", action="store_true")
    arguments = parser.parse_args()
    sample = next(iter(sorted((ROOT / "tests" / "audio").glob("ru-long.ogg"))))
    runtime = Runtime(Settings(models_dir=ROOT / "tests" / "models", offline=True))
    transcriber = runtime.reader.transcriber(arguments.model)
    options = Options(language="ru", beam_size=1, word_timestamps=arguments.word_timestamps)
    with tempfile.TemporaryDirectory() as folder:
        minute, whole = Path(folder, "minute.mkv"), Path(folder, "whole.mkv")
        lengthen(sample, minute, 60)
        lengthen(sample, whole, arguments.hours * 3600)
        transcriber.transcribe(minute, options)
        before = resident()
        reset_peak()
        started = time.monotonic()
        told = 0.0

        def on_progress(progress: Progress) -> None:
            nonlocal told
            if progress.position - told >= 3600:
                told = progress.position
                print(f"  {told / 3600:4.1f} h  {resident():7.1f} MB", flush=True)

        transcript = transcriber.transcribe(whole, options, on_progress=on_progress)
        spent = time.monotonic() - started
        highest = peak()
    print(f"audio            {transcript.duration / 3600:8.2f} h, {len(transcript.segments)} segments")
    print(f"time             {spent:8.1f} s ({transcript.duration / spent:.0f}x)")
    print(f"model, warm      {before:8.1f} MB")
    print(f"peak             {highest:8.1f} MB")
    print(f"above the model  {highest - before:8.1f} MB (aim: under {LIMIT} MB for 10 h)")


if __name__ == "__main__":
    main()
