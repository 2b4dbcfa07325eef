"""Models in a service that runs: chosen, loaded first, gone when idle, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2

from api_server import until
from conftest import Clip, clips
from live_server import live


def clip(language: str, model: str) -> Clip:
    return next(c for c in clips() if model in c.exact and c.language == language and c.duration < 6)


def send(client: httpx2.Client, recording: Clip, **fields: str) -> httpx2.Response:
    with recording.path.open("rb") as file:
        return client.post("/api/v1/transcribe", files={"file": (recording.path.name, file)}, data=fields)


def read(client: httpx2.Client, recording: Clip, **fields: str) -> dict[str, Any]:
    answer = send(client, recording, **fields)
    assert answer.status_code == 202, answer.text
    task = answer.headers["location"]
    until(lambda: client.get(task).json()["status"] in ("done", "error"))
    result = client.get(f"{task}/result")
    assert result.status_code == 200, client.get(task).text
    return dict(result.json())


def held(client: httpx2.Client) -> dict[str, int]:
    return {item["name"]: item["held"] for item in client.get("/api/v1/models").json()["items"] if item["loaded"]}


def test_models_come_and_go(tmp_path: Path) -> None:
    russian, english = clip("ru", "gigaam-rnnt-test"), clip("en", "whisper-test")
    first = {"gigaam-rnnt-test", "whisper-test"}
    with live(tmp_path, default_model="auto", model_idle="3", max_models="3", rate_requests="0") as server:
        with server.client() as client:
            until(lambda: set(held(client)) == first)  # what `auto` needs was loaded before anybody asked
            assert all(size > 100_000_000 for size in held(client).values())
            transcript = read(client, russian)
            assert (transcript["model"], transcript["language"]) == ("gigaam-rnnt-test", "ru")
            assert transcript["model_reason"].endswith("whisper-test heard Russian")
            assert transcript["warnings"][0]["code"] == "second_best"
            assert read(client, english)["model"] == "whisper-test"
            named = read(client, russian, model="gigaam-test")
            assert (named["model"], named["model_reason"]) == ("gigaam-test", None)
            assert read(client, russian, model="auto", language="ru")["language_probability"] is None
            until(lambda: held(client) == {})
            assert client.get("/api/v1/models/gigaam-test").json()["evictions"] == 1
            metrics = client.get("/metrics").text
            assert 'stenograf_model_evictions_total{model="gigaam-test",reason="idle"} 1.0' in metrics
            assert "stenograf_model_memory_bytes{" not in metrics
            assert read(client, russian)["text"] == transcript["text"]
            assert client.get("/api/v1/models/whisper-test").json()["loads"] == 2
        assert "left the memory" in server.log


def test_what_does_not_fit_is_refused_before_it_is_a_task(tmp_path: Path) -> None:
    with live(tmp_path, model_memory="170", rate_requests="0") as server, server.client() as client:
        until(lambda: "whisper-test" in held(client))
        answer = send(client, clip("ru", "whisper-test"), model="large-v3", language="ru")
        assert (answer.status_code, answer.json()["code"]) == (422, "model_not_installed")  # offline, that is first
        answer = send(client, clip("ru", "whisper-test"), model="auto", language="ru")
        assert answer.status_code == 202
    short = {"model_memory": "100", "rate_requests": "0"}
    with live(tmp_path / "small", log="is not ready", **short) as server, server.client() as client:
        answer = send(client, clip("ru", "whisper-test"), model="whisper-test")
        assert (answer.status_code, answer.json()["code"]) == (422, "model_too_large")
        assert "models may take 100 MB" in answer.json()["detail"]
        answer = send(client, clip("ru", "whisper-test"), model="auto")
        assert (answer.status_code, answer.json()["code"]) == (422, "model_not_installed")
        assert client.get("/api/v1/tasks").json()["items"] == []
