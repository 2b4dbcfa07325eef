"""What a fleet can do around its engines: the job system over real servers, with an engine that sleeps.

PostgreSQL writes to the disk as it does in earnest (fsync); Redis and RabbitMQ are this machine's own. All of it shares
the processors of one machine: jobs a second are a lower bound for several, and the work of a job (seconds of processor
time, transactions, bytes of the log) is what can be carried over.

Parts: workers (jobs a second by the number of processes, against the ideal, and the most that there can be where the
engine takes no time), queued (what waiting jobs cost: claims, new jobs, places in the queue), start (from the row to
the claim), replicas (what idle programs ask the database), limits (counting what callers ask).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx2
from capacity_plot import Points, draw
from fleets import CALLED, KINDS, NOTE, Cost, Fleet, cpu, fill, percentile
from sleeping import name

from stenograf.api.counters import Counter, InDatabase, InMemory, InRedis
from stenograf.jobs.job import LANES, NewJob
from stenograf.jobs.lease import Leases
from stenograf.jobs.store import JobStore

PARTS = ("workers", "queued", "start", "replicas", "limits")
PROCESSES = (1, 2, 4, 8)
CHUNKS, SLEEP = 5, 0.1
"""Of a job in `workers`: with the engine alone, a process does two of them a second."""

EACH = 6
"""Jobs for each process."""

NO_WORK = 120
"""Jobs whose engine takes no time."""

WAITING = (0, 1_000, 100_000, 1_000_000)
STARTS = 100
IDLE_SECONDS = 15.0
SETTLE_SECONDS = 11.0
"""PostgreSQL learns within ten seconds what a session did that is idle now."""

WATCHED = 200


def workers(folder: Path, points: Points) -> None:
    """Jobs a second by processes, and what a job costs."""
    for kind in KINDS:
        for count in PROCESSES:
            with tempfile.TemporaryDirectory(dir=folder) as own, Fleet(Path(own), kind) as fleet:
                with fleet.workers(count) as program:
                    started = fleet.cost()
                    asleep = _pace(fleet, EACH * count, name(CHUNKS, SLEEP))
                    before = fleet.cost()
                    most = _pace(fleet, NO_WORK, name(1, 0))
                    held = fleet.connections() if fleet.postgres else 0
                    until = fleet.cost()
                    program.stop()  # now the server knows of all transactions
                after = fleet.cost()
            ideal = count / (CHUNKS * SLEEP)
            points.add("asleep", kind, count, asleep)
            points.add("no work", kind, count, most)
            print(
                f"{CALLED[kind]:22} {count} processes: {asleep:6.2f} jobs/s of {ideal:4.0f} ({asleep / ideal:4.0%});"
                f" no work: {most:5.1f} jobs/s",
                flush=True,
            )
            _show_cost(until - before, after - before, held)
            _show_chunks(before - started, EACH * count, until - before)


def _pace(fleet: Fleet, count: int, filename: str) -> float:
    """Jobs a second, by the database's clock, from the first claim to the last result."""
    fleet.clear()
    with fleet.hinting() as hint:
        fleet.fill(count, filename)
        hint()
        fleet.until_done()
    began, ended = fleet.ask("SELECT min(started_at) FROM jobs")[0], fleet.ask("SELECT max(finished_at) FROM jobs")[0]
    return count / float(ended - began)


def _show_cost(work: Cost, counted: Cost, connections: int) -> None:
    took = work.at
    parts = [f"processor: workers {work.worker_cpu / NO_WORK * 1e3:.1f} ms a job ({work.worker_cpu / took:.0%})"]
    if connections:
        parts += [f"PostgreSQL {work.database_cpu / NO_WORK * 1e3:.1f} ms ({work.database_cpu / took:.0%})"]
        if work.broker_cpu:
            parts += [f"broker {work.broker_cpu / NO_WORK * 1e3:.1f} ms ({work.broker_cpu / took:.0%})"]
        parts += [
            f"{counted.transactions / NO_WORK:.1f} transactions",
            f"{counted.rows_written / NO_WORK:.1f} rows written",
            f"{work.wal_bytes / NO_WORK / 1e3:.1f} kB of log",
            f"{work.wal_syncs / NO_WORK:.1f} syncs",
            f"{connections} connections",
        ]
    print(f"{'':25}{', '.join(parts)}", flush=True)


def _show_chunks(asleep: Cost, count: int, work: Cost) -> None:
    """What a chunk more costs: a job of several, less one of one."""
    figures = [
        f"{(getattr(asleep, field) / count - getattr(work, field) / NO_WORK) / (CHUNKS - 1) * scale:.1f} {unit}"
        for field, scale, unit in (
            ("worker_cpu", 1e3, "ms of the workers' processor"),
            ("database_cpu", 1e3, "ms of PostgreSQL's"),
            ("wal_bytes", 1e-3, "kB of log"),
        )
        if getattr(work, field)
    ]
    print(f"{'':25}each further chunk: {', '.join(figures)}", flush=True)


def queued(folder: Path, points: Points) -> None:
    """What is asked of the table while so many jobs wait."""
    for kind in ("postgres", "sqlite"):
        with tempfile.TemporaryDirectory(dir=folder) as own, Fleet(Path(own), kind) as fleet:
            for count in WAITING:
                _asked(fleet, count, points)
        print(f"{CALLED[kind]:22} a claim with {WAITING[-1]:,} waiting, over one with {WAITING[1]:,}: ", end="")
        for what in ("claim", "claim, work"):
            most, few = (points.latest(what, kind, count) for count in (WAITING[-1], WAITING[1]))
            print(f"{most / few:.2f} of the {'processor' if 'work' in what else 'time'}", end="  ")
        print(flush=True)


def _asked(fleet: Fleet, count: int, points: Points) -> None:
    fleet.clear()
    if count:
        fill(fleet.database, count, "a.ogg")
    if fleet.database.is_shared:  # else its autovacuum does so, some time in the middle
        with fleet.database.read() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE jobs")
    leases, store = Leases(fleet.database), JobStore(fleet.database)
    bounded = JobStore(fleet.database, max_queued=10_000_000)
    last = store.add(NewJob("ann", {}, "a.ogg", size=1000))[0]

    def add() -> None:
        store.add(NewJob("ann", {}, "a.ogg", size=1000))

    def count_and_add() -> None:
        bounded._count_at = float("-inf")
        bounded.add(NewJob("ann", {}, "a.ogg", size=1000))

    leases.unhinted("short", "cpu", seconds=5.0, limit=500)
    questions: dict[str, tuple[Callable[[], object], int]] = {
        "claim": (lambda: leases.claim("w", LANES), 200),
        "add": (add, 200),
        "add, counting": (count_and_add, 5),
        "place in the queue": (lambda: store.outlook(last), 20),
        "mark for a hint": (lambda: leases.unhinted("short", "cpu", seconds=5.0, limit=1), 20),
        "reap": (leases.reap, 20),
        "expired": (store.expired, 20),
        "page": (store.page, 20),
        "counts": (store.counts, 3),
    }
    line = []
    for what, (question, times) in questions.items():
        for _ in range(min(times, 20) if what != "counts" else 1):  # plans, caches
            question()
            if not count and what == "claim":
                add()
        before = fleet.cost().database_cpu, time.process_time()
        took = [_milliseconds(question, add if not count and what == "claim" else None) for _ in range(times)]
        # Without the waiting for the disk, and for processors that others have.
        servers, own = fleet.cost().database_cpu - before[0], time.process_time() - before[1]
        work = (servers if fleet.database.is_shared else own) / times * 1e3
        points.add(what, fleet.kind, count, percentile(took, 0.5))
        points.add(f"{what}, work", fleet.kind, count, work)
        line.append(f"{what} {percentile(took, 0.5):.2f} {percentile(took, 0.95):.2f} {work:.2f}")
    print(f"{CALLED[fleet.kind]:22} {count:9,} waiting: {' | '.join(line)}  (ms: p50, p95, processor)", flush=True)


def _milliseconds(question: Callable[[], object], before: Callable[[], None] | None = None) -> float:
    if before is not None:
        before()
    started = time.perf_counter()
    question()
    return (time.perf_counter() - started) * 1e3


def start(folder: Path, points: Points) -> None:
    """From the row to the claim, by the database's clock, where nothing else is to do."""
    for kind in ("postgres", "redis", "rabbitmq"):
        with (
            tempfile.TemporaryDirectory(dir=folder) as own,
            Fleet(Path(own), kind) as fleet,
            fleet.workers(2),
            fleet.replica(serve_workers="no") as (replica, url),
            httpx2.Client(base_url=url, timeout=60, trust_env=False) as client,
        ):
            fleet.clear()
            before, posts = cpu(*replica.processes()), []
            for number in range(STARTS):
                body = {"file": (name(1, 0), NOTE.read_bytes())}
                began = time.perf_counter()
                answer = client.post("/api/v1/transcribe", files=body)
                posts.append((time.perf_counter() - began) * 1e3)
                answer.raise_for_status()
                fleet.until_done(0.02)
                time.sleep(0.05 + number % 10 * 0.01)  # not in step with whoever looks every so often
            waits = [seconds * 1e3 for seconds in fleet.ask("SELECT started_at - created_at FROM jobs")]
            assert len(waits) == STARTS
            taken = (cpu(*replica.processes()) - before) / STARTS * 1e3
            whole = [seconds * 1e3 for seconds in fleet.ask("SELECT finished_at - started_at FROM jobs")]
        points.add("start", kind, 1, percentile(waits, 0.5))
        for what, values in (("row to claim", waits), ("POST to 202", posts), ("claim to done", whole)):
            p50, p95 = percentile(values, 0.5), percentile(values, 0.95)
            print(f"{CALLED[kind]:22} {what:14} p50 {p50:5.1f} ms, p95 {p95:5.1f} ms", flush=True)
        print(f"{'':22} {taken:.1f} ms of the replica's processor for each", flush=True)


def replicas(folder: Path, points: Points) -> None:
    """What idle programs cost."""
    for kind in ("redis", "rabbitmq", "postgres"):
        with (
            tempfile.TemporaryDirectory(dir=folder) as own,
            Fleet(Path(own), kind) as fleet,
            ExitStack() as programs,
        ):
            if kind == "postgres":  # the replicas are those of the others; without a broker workers look by themselves
                for count in (1, 4):
                    _grow(fleet, programs, "worker", count, points)
                continue
            for count in (1, 2, 4) if kind == "redis" else (1,):
                _grow(fleet, programs, "replica", count, points)
            for count in (1, 4) if kind == "redis" else (1,):
                _grow(fleet, programs, "worker", count, points)
            if kind == "redis":
                programs.close()
                _watch(fleet, programs.enter_context(fleet.replica())[1])


def _grow(fleet: Fleet, programs: ExitStack, what: str, count: int, points: Points) -> None:
    """Start programs until there are so many of a kind, and print what all that run now cost idle."""
    while sum(program.name.startswith(what) for program in fleet.programs) < count:
        label = f"{what}-{len(fleet.programs)}"
        if what == "replica":
            programs.enter_context(fleet.replica(label, serve_workers="no"))
        else:
            # Each as if on a machine of its own. One that was started has done a job.
            programs.enter_context(fleet.workers(1, label))
    fleet.clear()
    kinds = [program.name.partition("-")[0] for program in fleet.programs]
    idle = _idle(fleet)
    points.add(f"idle {what}", fleet.kind, count, idle.transactions / idle.at)
    running = ", ".join(f"{kinds.count(each)} x {each}" for each in dict.fromkeys(kinds))
    _show_idle(f"{CALLED[fleet.kind]:22} {running}", idle, fleet)


def _show_idle(what: str, idle: Cost, fleet: Fleet) -> None:
    print(
        f"{what:58} {idle.transactions / idle.at:6.1f} transactions/s, PostgreSQL {idle.database_cpu / idle.at:6.2%},"
        f" broker {idle.broker_cpu / idle.at:6.2%}, programs {idle.worker_cpu / idle.at:6.2%} of a processor,"
        f" {fleet.connections()} connections",
        flush=True,
    )


def _idle(fleet: Fleet) -> Cost:
    time.sleep(SETTLE_SECONDS)
    before = fleet.cost()
    time.sleep(IDLE_SECONDS)
    return fleet.cost() - before


def _watch(fleet: Fleet, url: str) -> None:
    """One replica, and clients that wait for jobs, a job each."""
    alone = _idle(fleet)
    fleet.fill(WATCHED, hold=3600.0)
    ids = fleet.ask("SELECT id FROM jobs")
    ended = threading.Event()
    listening = threading.Semaphore(0)

    async def listen(client: httpx2.AsyncClient, task: str) -> None:
        async with client.stream("GET", f"/api/v1/tasks/{task}/events") as answer:
            answer.raise_for_status()
            listening.release()
            async for _ in answer.aiter_lines():
                if ended.is_set():
                    return

    async def listen_to_all() -> None:
        limits = httpx2.Limits(max_connections=2 * WATCHED)
        async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=limits) as client:
            tasks = [asyncio.create_task(listen(client, task)) for task in ids]
            while not ended.is_set():
                await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(listen_to_all()))
    thread.start()
    try:
        for _ in ids:
            assert listening.acquire(timeout=60)
        watched = _idle(fleet)
    finally:
        ended.set()
        thread.join()
    _show_idle("1 replica, nobody waits", alone, fleet)
    _show_idle(f"1 replica, {WATCHED} clients wait for a job each", watched, fleet)


def limits(folder: Path, points: Points) -> None:
    """What counting a request costs."""
    with tempfile.TemporaryDirectory(dir=folder) as own, Fleet(Path(own), "redis") as fleet:
        counters: dict[str, Counter] = {
            "memory": InMemory(),
            "Redis": InRedis(str(fleet.told["broker_url"]), "benchmark"),
            "PostgreSQL": InDatabase(fleet.database),
        }
        for called, counter in counters.items():
            before = fleet.cost()
            took = [
                _milliseconds(lambda c=counter, n=n: c.take(f"requests:key_{n % 200}", 60, 60))  # type: ignore[misc]
                for n in range(2000)
            ]
            spent = fleet.cost() - before
            servers = spent.database_cpu + spent.broker_cpu
            print(
                f"counted in {called:11} p50 {percentile(took, 0.5):5.2f} ms, p95 {percentile(took, 0.95):5.2f} ms,"
                f" {servers / len(took) * 1e3:.2f} ms of the server's processor",
                flush=True,
            )
            points.add("limit", called, 1, percentile(took, 0.5))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; all of them if none is named")
    parser.add_argument("--turns", type=int, default=2, help="how often each part is done")
    parser.add_argument("--plot", type=Path, help="draw `workers` and `queued` into this SVG file")
    parser.add_argument("--points", type=Path, help="keep what was measured in this file, for the picture")
    arguments = parser.parse_args()
    parts = {"workers": workers, "queued": queued, "start": start, "replicas": replicas, "limits": limits}
    points = Points(arguments.points)
    with tempfile.TemporaryDirectory() as made:
        for part in arguments.parts or PARTS:
            for turn in range(arguments.turns):
                print(f"\n{part}, turn {turn + 1} of {arguments.turns}; load of the machine: {_load()}", flush=True)
                parts[part](Path(made), points)
        print(f"\nload at the end: {_load()}")
    if arguments.plot and (picture := draw(points)):
        arguments.plot.write_text(picture, "utf-8")


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f} over the last minute, on {os.cpu_count()} processors"


if __name__ == "__main__":
    main()
