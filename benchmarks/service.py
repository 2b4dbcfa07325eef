"""The service under load: weights of the base shape made on the spot, one run, ratios against the bare engine.

The bare engine is faster-whisper in a loop, with the same weights and the same decoding. Each part prints its figure
and what was aimed at. The weights are random, but read every window once and give 38 tokens for it; the 5 s note is
opus.

Parts: memory (idle, with the model loaded), intake (POST to 202, enqueue to start), overhead (a synchronous call
against the bare engine), share (what of a synchronous call is the service's own, with the small GigaAM of the tests),
beside (a note beside a 10-minute recording), clients (8 at once, and /health meanwhile),
upload (memory while 2 GB come in), burst (500 jobs), hour (peak memory over 60 minutes of sound; about eight minutes).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import shapes
from memory import lengthen
from serving import MODEL, Service, serving

ROOT = Path(__file__).parent.parent
TOKENS = 40
REST_SECONDS = 0.5
"""Between two turns: OpenMP's threads spin for a while after their work, and would take the cores of the other's."""

PARTS = ("memory", "intake", "overhead", "share", "beside", "clients", "upload", "burst", "hour")
BARE = """
import resource, sys, time
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8", cpu_threads=2, local_files_only=True)
started = time.monotonic()
segments, _ = model.transcribe(sys.argv[2], language="ru", condition_on_previous_text=False)
count = sum(1 for _ in segments)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.monotonic() - started)
"""


def percentile(values: list[float], share: float) -> float:
    """The value below which so much of them lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def show(what: str, figure: str, aim: str = "") -> None:
    """A line of the table."""
    print(f"{what:58} {figure:>24}  {aim}", flush=True)


def bare_loop(folder: Path, note: Path, *, workers: int, threads: int) -> Callable[[], float]:
    """A function that has the bare engine read the note; seconds."""
    from faster_whisper import WhisperModel

    model = WhisperModel(
        str(folder / "models" / MODEL), device="cpu", compute_type="int8", cpu_threads=threads, num_workers=workers,
        local_files_only=True,
    )  # fmt: skip

    def once() -> float:
        started = time.perf_counter()
        segments, _ = model.transcribe(str(note), language="ru", condition_on_previous_text=False)
        list(segments)
        return time.perf_counter() - started

    return once


def memory(service: Service, note: Path) -> None:
    """Idle, after the model was used."""
    service.transcribe(note)
    time.sleep(5)
    for process in service.processes():
        name = " ".join(process.cmdline())[-40:]
        print(f"    {process.memory_full_info().pss / 1e6:6.0f} MB  {name}")
    show("idle, model loaded, all processes", f"{service.memory():.0f} MB", "aim 350 MB")


def intake(service: Service, note: Path) -> None:
    """POST to 202, and the wait of a job that nothing is in the way of."""
    posts, waits = [], []
    for _ in range(30):
        started = time.perf_counter()
        task_id = service.send(note, trim="0.5")
        posts.append(time.perf_counter() - started)
        task = service.until(task_id, "done", "error")
        waits.append(_seconds(task, "started_at") - _seconds(task, "created_at"))
    for what, values in (("POST to 202", posts), ("enqueue to start", waits)):
        show(what, f"p50 {percentile(values, 0.5) * 1e3:.0f} ms, p95 {percentile(values, 0.95) * 1e3:.0f} ms")


def _seconds(task: dict[str, object], name: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(str(task[name])).timestamp()


def overhead(service: Service, note: Path) -> None:
    """A synchronous call against the bare engine, in turns."""
    once = bare_loop(service.folder, note, workers=1, threads=2)
    once(), service.transcribe(note)
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(20):
        for times, read in ((bare, once), (ours, partial(service.transcribe, note))):
            times.append(read())
            time.sleep(REST_SECONDS)
    more = (statistics.median(ours) - statistics.median(bare)) * 1e3
    show("a synchronous call over the bare engine, 5 s note", f"{more:+.0f} ms at p50", "aim 20 ms")
    show("    the bare engine itself", f"{statistics.median(bare) * 1e3:.0f} ms")


def share(folder: Path, note: Path) -> None:
    """What of a call is outside the run, before it, and in the run but not in the transcription; with a quick model."""
    small = folder / "small"
    shutil.copytree(ROOT / "tests" / "models" / "gigaam-test", small / "models" / MODEL)
    with serving(small) as service:
        for _ in range(5):
            service.transcribe(note)
        calls = [service.transcribe(note) for _ in range(60)]
        tasks = service.client.get("/api/v1/tasks?limit=60").json()["items"][:60]
        waits = [_seconds(task, "started_at") - _seconds(task, "created_at") for task in tasks]
        runs = [_seconds(task, "finished_at") - _seconds(task, "started_at") for task in tasks]
        reads = [
            service.client.get(f"/api/v1/tasks/{task['task_id']}/result").json()["timings"]["total"] for task in tasks
        ]
    call, wait, run, read = (statistics.median(each) * 1e3 for each in (calls, waits, runs, reads))
    show("of a synchronous call outside the run", f"{call - run - wait:.0f} ms")
    show("    from the row to the claim", f"{wait:.0f} ms")
    show("    around the transcription", f"{run - read:.0f} ms")


def beside(service: Service, note: Path, folder: Path) -> None:
    """A note while ten minutes of sound are read."""
    long = folder / "ten-minutes.mka"
    lengthen(note, long, 600)
    alone = [service.transcribe(note) for _ in range(12)]
    task_id = service.send(long)
    service.until(task_id, "processing")
    time.sleep(8)  # the worker for long recordings loads its model first
    busy = []
    for _ in range(12):
        busy.append(service.transcribe(note))
        time.sleep(0.3)
    assert service.task(task_id)["status"] == "processing", "the long recording ended too soon"
    service.client.post(f"/api/v1/tasks/{task_id}/cancel").raise_for_status()
    ratio = statistics.median(busy) / statistics.median(alone)
    show("a 5 s note beside a 10-minute file, over alone", f"{ratio:.2f} x", "aim 1.3 x; a peer 5 x")


def clients(service: Service, note: Path) -> None:
    """Eight clients at once against a bare loop of two workers with a thread each, and /health meanwhile."""
    requests, at_once = 32, 8
    once = bare_loop(service.folder, note, workers=2, threads=1)
    once()
    with ThreadPoolExecutor(2) as pool:
        started = time.perf_counter()
        list(pool.map(lambda _: once(), range(requests)))
        bare = requests / (time.perf_counter() - started)
    health: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=service.client.base_url) as client:
            while not ended.wait(0.05):
                before = time.perf_counter()
                client.get("/health").raise_for_status()
                health.append(time.perf_counter() - before)

    asking = threading.Thread(target=ask)
    asking.start()
    with ThreadPoolExecutor(at_once) as pool:
        started = time.perf_counter()
        # Each note is another one: equal requests would be taken for one that was sent twice.
        times = list(pool.map(lambda n: service.transcribe(note_like(note, n)), range(requests)))
        ours = requests / (time.perf_counter() - started)
    ended.set()
    asking.join()
    show(
        "8 clients at once, over a bare loop of 2 workers", f"{ours / bare:.2f} ({ours:.2f}/s)", "aim 1.0; a peer 0.55"
    )
    show("    a client waits", f"p50 {percentile(times, 0.5):.1f} s, p95 {percentile(times, 0.95):.1f} s")
    show("/health meanwhile", f"p95 {percentile(health, 0.95) * 1e3:.0f} ms", "aim 20 ms; peers 0.3 to 37 s")


def note_like(note: Path, number: int) -> Path:
    """The same note with other bytes: a comment that no decoder reads."""
    other = note.with_name(f"note-{number}{note.suffix}")
    if not other.exists():
        other.write_bytes(note.read_bytes() + f"{number:08}".encode())
    return other


def upload(service: Service) -> None:
    """Memory of all processes while 2 GB come in."""
    before = highest = service.memory()
    ended = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.1):
            highest = max(highest, service.memory())

    watching = threading.Thread(target=watch)
    watching.start()
    piece = os.urandom(1 << 20)
    boundary = "benchmark"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="noise.wav"\r\n\r\n'.encode()

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(2000):
            yield piece
        yield f"\r\n--{boundary}--\r\n".encode()

    started = time.perf_counter()
    answer = service.client.post(
        "/api/v1/transcribe", content=body(), headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    took = time.perf_counter() - started
    ended.set()
    watching.join()
    answer.raise_for_status()
    task_id = answer.json()["task_id"]
    service.until(task_id, "done", "error")
    service.client.delete(f"/api/v1/tasks/{task_id}").raise_for_status()
    show("memory while 2 GB are uploaded", f"{highest - before:+.0f} MB", f"aim 50 MB ({2097 / took:.0f} MB/s)")


def burst(service: Service, note: Path) -> None:
    """500 jobs as fast as 16 clients can send them."""
    times: list[float] = []

    def send(number: int) -> str:
        started = time.perf_counter()
        task_id = service.send(note_like(note, number), trim="0.2")
        times.append(time.perf_counter() - started)
        return task_id

    started = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(send, range(500)))
    took = time.perf_counter() - started
    figure = f"{len(ids) / took:.0f}/s, p95 {percentile(times, 0.95) * 1e3:.0f} ms"
    show("a burst of 500 jobs: all taken in", figure)
    with ThreadPoolExecutor(8) as pool:
        gone = list(pool.map(lambda i: service.client.delete(f"/api/v1/tasks/{i}").status_code, ids))
    assert len(set(ids)) == 500
    assert set(gone) == {204}, set(gone)


def hour(folder: Path, note: Path, minutes: float, workers: int) -> None:
    """Peak memory over 60 minutes of sound, with a fresh service, and of the bare engine."""
    long = folder / "hour.mka"
    lengthen(note, long, minutes * 60)
    asked = {"STENOGRAF_DATA_DIR": str(folder / "data-hour"), "STENOGRAF_WORKERS": str(workers)}
    with serving(folder, **asked) as service:
        peak = 0.0
        started = time.perf_counter()
        task_id = service.send(long)
        while service.task(task_id)["status"] in ("queued", "processing"):
            peak = max(peak, service.memory())
            time.sleep(0.5)
        took = time.perf_counter() - started
        assert service.task(task_id)["status"] == "done", service.task(task_id)
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(folder / "models" / MODEL), str(long)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    bare_peak, bare_took = map(float, done.stdout.split())
    show(
        f"a {minutes:.0f}-minute file: peak, all processes",
        f"{peak:.0f} MB",
        f"aim 450 MB; the bare engine {bare_peak:.0f} MB",
    )
    show("    time, over the bare engine", f"{took / bare_took:.2f} x")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; all of them if none is named")
    parser.add_argument("--minutes", type=float, default=60, help="of sound, for the part hour")
    parser.add_argument("--workers", type=int, default=0, help="processes that transcribe, for the part hour")
    arguments = parser.parse_args()
    wanted = arguments.parts or PARTS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes.build("base", folder / "models" / MODEL, tokens=TOKENS)
        note = folder / "note.ogg"
        make_note(note)
        parts: dict[str, Callable[[Service], None]] = {
            "memory": lambda s: memory(s, note),
            "intake": lambda s: intake(s, note),
            "overhead": lambda s: overhead(s, note),
            "beside": lambda s: beside(s, note, folder),
            "clients": lambda s: clients(s, note),
            "upload": upload,
            "burst": lambda s: burst(s, note),
        }
        if set(wanted) & set(parts):
            with serving(folder) as service:
                for part, run in parts.items():
                    if part in wanted:
                        run(service)
        if "hour" in wanted:
            hour(folder, note, arguments.minutes, arguments.workers)
        if "share" in wanted:
            share(folder, note)


def make_note(path: Path) -> None:
    """Five seconds of speech as messengers send it: opus in Ogg."""
    import av

    source = ROOT / "tests" / "audio" / "ru-long.ogg"
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = container.streams.audio[0]
        made = out.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.pts is None or packet.time_base is None or packet.pts * packet.time_base > 5:
                continue
            packet.stream = made
            out.mux(packet)


if __name__ == "__main__":
    main()
