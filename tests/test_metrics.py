"""What Prometheus is told: parsed back from the text that it reads."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping
from typing import Any

import psutil
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from stenograf._version import __version__
from stenograf.metrics import Metrics

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def series(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, kind = metrics.render()
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, "a series is there twice"
            found[key] = sample.value
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return series(metrics).get((f"stenograf_{name}", frozenset(labels.items())))


DONE = {
    "event": "job_finished",
    "state": "done",
    "lane": "short",
    "model": "small",
    "wait": 0.04,
    "run": 2.0,
    "audio": 5.0,
    "attempt": 1,
}


def test_a_job_that_was_done() -> None:
    metrics = Metrics(dict)
    metrics.observe(DONE)
    metrics.observe(DONE | {"lane": "long", "run": 30, "audio": 20, "wait": -0.001})
    at = {"lane": "short", "model": "small"}
    assert value(metrics, "jobs_finished_total", state="done", **at) == 1
    assert value(metrics, "job_wait_seconds_bucket", lane="short", le="0.025") == 0
    assert value(metrics, "job_wait_seconds_bucket", lane="short", le="0.05") == 1
    assert value(metrics, "job_wait_seconds_sum", lane="long") == 0, "the two clocks differ a little"
    assert value(metrics, "job_run_seconds_sum", **at) == 2
    assert value(metrics, "job_attempts_bucket", le="1.0") == 2
    assert value(metrics, "audio_seconds_total", model="small") == 25
    assert value(metrics, "job_realtime_factor_bucket", model="small", le="0.3") == 0
    assert value(metrics, "job_realtime_factor_bucket", model="small", le="0.5") == 1
    assert value(metrics, "job_realtime_factor_sum", model="small") == pytest.approx(0.4 + 1.5)


def test_a_later_attempt_says_nothing_of_the_speed() -> None:
    metrics = Metrics(dict)
    metrics.observe(DONE | {"attempt": 3})
    assert value(metrics, "audio_seconds_total", model="small") == 5
    assert value(metrics, "job_attempts_bucket", le="2.0") == 0
    assert value(metrics, "job_attempts_bucket", le="3.0") == 1
    assert value(metrics, "job_attempts_bucket", le="5.0") == 1
    assert value(metrics, "job_realtime_factor_count", model="small") is None


def test_jobs_that_were_not_done() -> None:
    metrics = Metrics(dict)
    metrics.observe(DONE | {"state": "error", "attempt": 3})
    metrics.observe({"event": "job_finished", "state": "cancelled", "lane": "long", "model": "base"})
    metrics.observe(DONE | {"audio": 0.0, "wait": None})
    assert value(metrics, "jobs_finished_total", state="error", lane="short", model="small") == 1
    assert value(metrics, "jobs_finished_total", state="cancelled", lane="long", model="base") == 1
    assert value(metrics, "job_run_seconds_count", lane="short", model="small") == 2
    assert value(metrics, "job_wait_seconds_count", lane="short") == 1
    assert value(metrics, "job_wait_seconds_count", lane="long") is None, "cancelled before it was started"
    assert value(metrics, "audio_seconds_total", model="small") == 0
    assert value(metrics, "job_realtime_factor_count", model="small") is None, "silence has no speed"


def test_events_of_workers_and_threads() -> None:
    metrics = Metrics(dict)
    for event in (
        {"event": "model_loaded", "model": "small", "seconds": 1.5},
        {"event": "worker_memory", "worker": "w1", "bytes": 100},
        {"event": "worker_memory", "worker": "w2", "bytes": 200},
        {"event": "worker_memory", "worker": "w2", "bytes": 300},
        {"event": "worker_gone", "worker": "w1", "reason": "recycled"},
        {"event": "worker_gone", "worker": "w3", "reason": "hung"},  # before it told its memory
        {"event": "lease_expired", "count": 3},
        {"event": "webhook", "outcome": "retry"},
        {"event": "webhook", "outcome": "delivered"},
    ):
        metrics.observe(event)
    assert value(metrics, "model_loads_total", model="small") == 1
    assert value(metrics, "model_load_seconds_sum", model="small") == 1.5
    assert value(metrics, "worker_memory_bytes", worker="w1") is None
    assert value(metrics, "worker_memory_bytes", worker="w2") == 300
    restarts = {
        reason: value(metrics, "worker_restarts_total", reason=reason) for reason in ("recycled", "hung", "crashed")
    }
    assert restarts == {"recycled": 1, "hung": 1, "crashed": 0}
    assert value(metrics, "lease_expiries_total") == 3
    webhooks = [value(metrics, "webhook_deliveries_total", outcome=word) for word in ("delivered", "retry", "failed")]
    assert webhooks == [1, 1, 0]


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"event": "job_finnished"}, "job_finnished"),
        ({}, "'event'"),
        ({"event": "job_finished", "state": "done", "lane": "short"}, "'model'"),
        (DONE | {"state": "processing"}, "'processing'"),
        ({"event": "model_loaded", "model": "small"}, "'seconds'"),
        ({"event": "worker_memory", "worker": "w9"}, "'bytes'"),
        ({"event": "worker_gone", "worker": "w1", "reason": "bored"}, "'bored'"),
        ({"event": "worker_gone", "reason": "crashed"}, "'worker'"),
        ({"event": "lease_expired"}, "'count'"),
        ({"event": "webhook", "outcome": "lost"}, "'lost'"),
    ],
)
def test_a_wrong_event_counts_nothing(event: dict[str, Any], told: str) -> None:
    metrics = Metrics(dict)
    metrics.observe({"event": "worker_memory", "worker": "w1", "bytes": 100})

    def counted() -> Series:
        return {key: number for key, number in series(metrics).items() if key[0] != "stenograf_process_memory_bytes"}

    before = counted()
    with pytest.raises(ValueError, match=re.escape(told)):
        metrics.observe(event)
    assert counted() == before


def test_jobs_are_counted_when_asked_for() -> None:
    counts: dict[tuple[str, str], int] = {}
    metrics = Metrics(counts=lambda: counts)
    assert value(metrics, "jobs_queued", lane="short") == 0
    assert value(metrics, "jobs_processing", lane="long") == 0
    counts |= {("queued", "short"): 4, ("processing", "long"): 1, ("done", "short"): 1000}
    assert value(metrics, "jobs_queued", lane="short") == 4
    assert value(metrics, "jobs_queued", lane="long") == 0
    assert value(metrics, "jobs_processing", lane="long") == 1
    assert value(metrics, "jobs_done", lane="short") is None


def test_the_rest_is_told_while_the_database_is_down(caplog: pytest.LogCaptureFixture) -> None:
    def down() -> dict[tuple[str, str], int]:
        raise OSError("no database")

    metrics = Metrics(counts=down)
    metrics.observe(DONE)
    with caplog.at_level(logging.WARNING):
        assert value(metrics, "audio_seconds_total", model="small") == 5
    assert value(metrics, "jobs_queued", lane="short") is None
    assert "could not be counted" in caplog.text
    assert "no database" in caplog.text


def test_the_version_and_the_memory() -> None:
    metrics = Metrics(dict, version="1.2.3")
    assert value(metrics, "build_info", version="1.2.3") == 1
    assert value(Metrics(dict), "build_info", version=__version__) == 1
    memory = value(metrics, "process_memory_bytes")
    assert memory == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)


def test_requests() -> None:
    metrics = Metrics(dict)
    metrics.request_started()
    metrics.request_started()
    metrics.request_finished("GET", "/a/{b}", 200, 0.02)
    metrics.uploaded(10)
    metrics.uploaded(5)
    assert value(metrics, "http_requests_in_flight") == 1
    assert value(metrics, "http_requests_total", method="GET", route="/a/{b}", status="200") == 1
    assert value(metrics, "http_request_duration_seconds_sum", method="GET", route="/a/{b}") == 0.02
    assert value(metrics, "upload_bytes_total") == 15


NAMES = {
    "audio_seconds": "counter",
    "build_info": "gauge",
    "http_request_duration_seconds": "histogram",
    "http_requests": "counter",
    "http_requests_in_flight": "gauge",
    "job_attempts": "histogram",
    "job_realtime_factor": "histogram",
    "job_run_seconds": "histogram",
    "job_wait_seconds": "histogram",
    "jobs_finished": "counter",
    "jobs_processing": "gauge",
    "jobs_queued": "gauge",
    "lease_expiries": "counter",
    "model_evictions": "counter",
    "model_load_seconds": "histogram",
    "model_loads": "counter",
    "model_memory_bytes": "gauge",
    "process_memory_bytes": "gauge",
    "upload_bytes": "counter",
    "webhook_deliveries": "counter",
    "worker_memory_bytes": "gauge",
    "worker_restarts": "counter",
}
"""Dashboards and alerts stand on these: a change breaks somebody's."""


def test_names_and_kinds_are_a_promise() -> None:
    metrics = Metrics(dict)
    metrics.observe(DONE)
    families = list(text_string_to_metric_families(metrics.render()[0].decode()))
    assert {family.name: family.type for family in families} == {f"stenograf_{n}": kind for n, kind in NAMES.items()}
    assert all(family.documentation.endswith(".") for family in families)


def test_models_that_workers_hold() -> None:
    metrics = Metrics(dict)
    held = {"event": "worker_memory", "worker": "w1", "bytes": 9, "models": {"small": 5, "base": 3}}
    metrics.observe(held)
    metrics.observe({"event": "worker_memory", "worker": "w2", "bytes": 9, "models": {"small": 6}})
    assert value(metrics, "model_memory_bytes", worker="w1", model="base") == 3
    metrics.observe(held | {"models": {"small": 7}})
    assert value(metrics, "model_memory_bytes", worker="w1", model="base") is None
    assert value(metrics, "model_memory_bytes", worker="w1", model="small") == 7
    metrics.observe({"event": "worker_gone", "worker": "w1", "reason": "recycled"})
    assert value(metrics, "model_memory_bytes", worker="w1", model="small") is None
    assert value(metrics, "model_memory_bytes", worker="w2", model="small") == 6
    metrics.observe({"event": "model_evicted", "model": "base", "reason": "idle"})
    assert value(metrics, "model_evictions_total", model="base", reason="idle") == 1
    with pytest.raises(ValueError, match="none of room, idle, closed"):
        metrics.observe({"event": "model_evicted", "model": "base", "reason": "mood"})


def test_each_has_a_registry_of_its_own() -> None:
    one, other = Metrics(dict), Metrics(dict)
    one.uploaded(1)
    assert value(other, "upload_bytes_total") == 0
    assert not [family for family in REGISTRY.collect() if family.name.startswith("stenograf")]


def test_threads_may_tell_at_once_while_another_reads() -> None:
    metrics = Metrics(dict)
    events = [json.loads(json.dumps(DONE)) for _ in range(500)]

    def tell(number: int) -> None:
        for event in events:
            metrics.observe(event)
            metrics.observe({"event": "worker_memory", "worker": f"w{number}", "bytes": 1})
        metrics.observe({"event": "worker_gone", "worker": f"w{number}", "reason": "stopped"})

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metrics.render()
    assert value(metrics, "jobs_finished_total", state="done", lane="short", model="small") == 2000
    assert value(metrics, "worker_restarts_total", reason="stopped") == 4
    assert not [name for name, _ in series(metrics) if name == "stenograf_worker_memory_bytes"]
