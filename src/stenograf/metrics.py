"""What Prometheus may ask of the service, in base units and under names that begin `stenograf_`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from stenograf._version import __version__

log = logging.getLogger(__name__)

Counts = Callable[[], Mapping[tuple[Any, Any], int]]
"""Gives the number of jobs by state and lane, two texts, as the store has them now."""

LANES = ("short", "long")
"""Lanes that are shown even while they are empty."""

ENDS = ("done", "error", "cancelled")
"""States that a job ends in."""

REASONS = ("crashed", "hung", "recycled", "stopped")
"""Why a worker process went."""

EVICTIONS = ("room", "idle", "closed")
"""Why a model left the memory."""

OUTCOMES = ("delivered", "retry", "failed")
"""How a try to deliver a webhook ended."""

# Bounds in seconds, chosen around what is seen: answers take milliseconds, or minutes where a transcript is awaited;
# a job is started within 50 ms where a worker is free, and runs for seconds to hours.
REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
WAIT = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
RUN = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400)
LOAD = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
FACTOR = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5)
"""Run seconds over audio seconds: below 1 is faster than the recording plays."""


class Metrics:
    """All series of one process, in a registry of their own (`registry`); safe to use from any thread.

    What the labels may hold is the caller's duty, so that the series stay few: `model` a name from the catalog or the
    models folder, never what a client wrote; `route` a template, never a path; `worker` one of as many names as there
    are workers, dropped with `worker_gone`.
    """

    def __init__(self, counts: Counts, *, version: str = __version__) -> None:
        """`counts` is called at each scrape; where it fails, the two series that it feeds are left out."""
        own = self.registry = _Registry()
        Info("stenograf_build", "The version that runs.", registry=own).info({"version": version})
        memory = Gauge("stenograf_process_memory_bytes", "Resident memory of the process that answers.", registry=own)
        process = psutil.Process()
        memory.set_function(lambda: float(process.memory_info().rss))
        own.register(_JobCounts(counts))

        self._requests = Counter(
            "stenograf_http_requests_total", "Requests answered.", ("method", "route", "status"), registry=own
        )
        self._durations = Histogram(
            "stenograf_http_request_duration_seconds",
            "From the head of a request to the last byte of its answer, streams included.",
            ("method", "route"),
            buckets=REQUEST,
            registry=own,
        )
        self._in_flight = Gauge("stenograf_http_requests_in_flight", "Requests being answered.", registry=own)
        self._uploaded = Counter("stenograf_upload_bytes_total", "Bytes of request bodies received.", registry=own)

        self._finished = Counter(
            "stenograf_jobs_finished_total",
            "Jobs by the state they ended in.",
            ("state", "lane", "model"),
            registry=own,
        )
        self._waits = Histogram(
            "stenograf_job_wait_seconds", "From enqueue to start.", ("lane",), buckets=WAIT, registry=own
        )
        self._runs = Histogram(
            "stenograf_job_run_seconds", "From start to end.", ("lane", "model"), buckets=RUN, registry=own
        )
        self._attempts = Histogram(
            "stenograf_job_attempts", "Attempts that a job took.", buckets=(1, 2, 3, 4, 5), registry=own
        )
        self._audio = Counter(
            "stenograf_audio_seconds_total", "Audio of the jobs that were done.", ("model",), registry=own
        )
        self._factors = Histogram(
            "stenograf_job_realtime_factor",
            "Run seconds over audio seconds, of jobs done at the first attempt.",
            ("model",),
            buckets=FACTOR,
            registry=own,
        )
        self._expiries = Counter("stenograf_lease_expiries_total", "Leases that ran out.", registry=own)

        self._loads = Counter("stenograf_model_loads_total", "Models loaded into memory.", ("model",), registry=own)
        self._load_seconds = Histogram(
            "stenograf_model_load_seconds", "Time to load a model.", ("model",), buckets=LOAD, registry=own
        )
        self._evictions = Counter(
            "stenograf_model_evictions_total", "Models that left the memory.", ("model", "reason"), registry=own
        )
        self._model_memory = Gauge(
            "stenograf_model_memory_bytes",
            "What a model takes of a worker's memory, approximately.",
            ("worker", "model"),
            registry=own,
        )
        self._held: dict[str, set[str]] = {}
        self._restarts = Counter("stenograf_worker_restarts_total", "Worker processes gone.", ("reason",), registry=own)
        self._worker_memory = Gauge(
            "stenograf_worker_memory_bytes", "Resident memory of a worker process.", ("worker",), registry=own
        )
        self._webhooks = Counter(
            "stenograf_webhook_deliveries_total", "Tries to deliver a webhook.", ("outcome",), registry=own
        )
        # From the start, so that the first of them is seen as a rise from nought.
        for reason in REASONS:
            self._restarts.labels(reason)
        for outcome in OUTCOMES:
            self._webhooks.labels(outcome)

    def request_started(self) -> None:
        """A request is being answered."""
        self._in_flight.inc()

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is the template of its path."""
        self._in_flight.dec()
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(method, route).observe(seconds)

    def uploaded(self, size: int) -> None:
        """So many bytes of a request's body came in."""
        self._uploaded.inc(size)

    def observe(self, event: Mapping[str, Any]) -> None:
        """Count an event, told by a worker process or a thread of the service; times in seconds. The events are:

        - `job_finished` with `state` (done, error, cancelled), `lane`, `model`, and where there are any: `wait` from
          enqueue to the start, `run`, `audio` (the recording's length), `attempt`. A job that was cancelled in the
          queue has none of them.
        - `model_loaded` with `model`, `seconds`.
        - `model_evicted` with `model`, `reason` (room, idle, closed).
        - `worker_memory` with `worker`, `bytes`, and where it is known `models`: name to bytes of those that it holds.
        - `worker_gone` with `worker`, `reason` (crashed, hung, recycled, stopped).
        - `lease_expired` with `count`.
        - `webhook` with `outcome` (delivered, retry, failed).

        Raises `ValueError` for any other event, and for one that lacks a field or has another word: a mistake of our
        own, of which nothing is counted.
        """
        try:
            match event["event"]:
                case "job_finished":
                    self._job_finished(event)
                case "model_loaded":
                    model, seconds = event["model"], float(event["seconds"])
                    self._loads.labels(model).inc()
                    self._load_seconds.labels(model).observe(seconds)
                case "model_evicted":
                    self._evictions.labels(event["model"], _one_of(event, "reason", EVICTIONS)).inc()
                case "worker_memory":
                    worker, size = event["worker"], event["bytes"]
                    self._worker_memory.labels(worker).set(size)
                    self._hold(worker, event.get("models", {}))
                case "worker_gone":
                    worker, reason = event["worker"], _one_of(event, "reason", REASONS)
                    with contextlib.suppress(KeyError):
                        self._worker_memory.remove(worker)
                    self._hold(worker, {})
                    self._restarts.labels(reason).inc()
                case "lease_expired":
                    self._expiries.inc(event["count"])
                case "webhook":
                    self._webhooks.labels(_one_of(event, "outcome", OUTCOMES)).inc()
                case other:
                    raise ValueError(f"There is no event {other!r}.")
        except KeyError as error:
            raise ValueError(f"The event {event!r} has no {error}.") from None

    def _hold(self, worker: str, models: Mapping[str, int]) -> None:
        for model in self._held.get(worker, set()) - models.keys():
            self._model_memory.remove(worker, model)
        for model, size in models.items():
            self._model_memory.labels(worker, model).set(size)
        self._held[worker] = set(models)

    def _job_finished(self, event: Mapping[str, Any]) -> None:
        state, lane, model = _one_of(event, "state", ENDS), event["lane"], event["model"]
        wait, run, audio, attempt = (event.get(name) for name in ("wait", "run", "audio", "attempt"))
        self._finished.labels(state, lane, model).inc()
        if wait is not None:
            self._waits.labels(lane).observe(max(0.0, wait))  # two clocks may differ a little
        if run is not None:
            self._runs.labels(lane, model).observe(max(0.0, run))
        if attempt is not None:
            self._attempts.observe(attempt)
        if state == "done" and audio is not None:
            self._audio.labels(model).inc(audio)
            # A later attempt goes on where the one before it stopped, so its time says nothing of the whole recording.
            if run is not None and audio > 0 and attempt == 1:
                self._factors.labels(model).observe(max(0.0, run) / audio)

    def render(self) -> tuple[bytes, str]:
        """The text for Prometheus and its content type. Reads the database: call it from a thread."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4


def _one_of(event: Mapping[str, Any], name: str, words: tuple[str, ...]) -> str:
    word: str = event[name]
    if word not in words:
        raise ValueError(f"The event {event['event']} has {name} {word!r}, which is none of {', '.join(words)}.")
    return word


class _JobCounts:
    """Jobs in the store, counted when asked for: whatever wrote the rows, and after a restart too."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        try:
            counts = self._counts()
        except Exception:
            # While the database is down the other series are wanted most.
            log.warning("The jobs could not be counted for the metrics.", exc_info=True)
            return
        lanes = dict.fromkeys((*LANES, *sorted(lane for _, lane in counts)))
        for state in ("queued", "processing"):
            family = GaugeMetricFamily(f"stenograf_jobs_{state}", f"Jobs that are {state} now.", labels=("lane",))
            for lane in lanes:
                family.add_metric((lane,), counts.get((state, lane), 0))
            yield family


class _Registry(CollectorRegistry):
    """Leaves out the time of birth that the library adds to each series: a third more lines, for nobody."""

    def collect(self) -> Iterable[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
