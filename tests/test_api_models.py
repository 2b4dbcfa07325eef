"""The models of a service: listed, downloaded from a hub on loopback, removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api_server import MODELS, Server, serve, settings_for, until
from fake_hub import FakeHub
from stenograf.models import catalog, download

TINY = "Systran/faster-whisper-tiny"
FILES = {
    "config.json": b'{"lang_ids": [1, 2]}',
    "model.bin": os.urandom(1 << 20),
    "tokenizer.json": b"{}" * 800,
    "vocabulary.txt": b"a\nb\n",
}
SIZE = sum(map(len, FILES.values()))
PATH = "/api/v1/models"


@pytest.fixture(autouse=True)
def _quick_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.01))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub({TINY: dict(FILES)}) as hub:
        yield hub


@pytest.fixture
def server(tmp_path: Path, hub: FakeHub) -> Iterator[Server]:
    shutil.copytree(MODELS / "whisper-test", tmp_path / "models" / "whisper-test")
    settings = settings_for(tmp_path, models_dir=tmp_path / "models", offline=False, hub_endpoint=hub.url)
    with serve(settings) as running:
        yield running


def look(server: Server, name: str) -> dict[str, Any]:
    answer = server.client.get(f"{PATH}/{name}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(answer: httpx2.Response, status: int, code: str, server: Server) -> dict[str, Any]:
    found = answer.json()
    assert (answer.status_code, found["code"]) == (status, code)
    assert str(server.service.settings.models_dir) not in answer.text
    return dict(found)


def pulled(server: Server, name: str = "tiny") -> dict[str, Any]:
    """What came of a download."""
    assert server.client.post(f"{PATH}/{name}/pull").status_code == 202
    until(lambda: look(server, name)["pull"]["state"] in ("done", "error"))
    return look(server, name)


def test_the_list_has_the_catalog_and_what_is_here(server: Server) -> None:
    answer = server.client.get(PATH)
    assert answer.json()["next"] is None
    models = {model["name"]: model for model in answer.json()["items"]}
    assert set(models) == {entry.name for entry in catalog.ENTRIES} | {"whisper-test"}
    small = models["small"]
    assert small == {
        "name": "small", "aliases": ["whisper-small"], "engine": "faster-whisper", "size": 486_000_000,
        "memory": 800_000_000, "languages": small["languages"], "tasks": ["transcribe", "translate"], "licence": "MIT",
        "description": "balanced; as much as two CPU cores bear", "own": False, "installed": False, "damaged": False,
        "default": False, "loaded": [], "device": None, "held": 0, "loads": 0, "evictions": 0, "pull": None,
    }  # fmt: skip
    assert "ru" in small["languages"]
    own = models["whisper-test"]
    assert (own["own"], own["installed"], own["default"], own["engine"]) == (True, True, True, "faster-whisper")
    assert own["size"] == sum(path.stat().st_size for path in (MODELS / "whisper-test").iterdir())
    assert own["languages"] is own["memory"] is None
    assert str(server.service.settings.models_dir) not in answer.text


def test_a_look_by_name_or_alias(server: Server) -> None:
    assert look(server, "gigaam")["name"] == "gigaam-v3-e2e-rnnt"
    assert look(server, "whisper-test")["own"]
    for name in ("nobody", "..", "%2e%2e%2fetc", "whisper-test/x", "~", "C:"):
        answer = server.client.get(f"{PATH}/{name}")
        assert answer.status_code == 404, name


def test_a_default_model_that_lies_elsewhere(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, models_dir=tmp_path, default_model=str(MODELS / "gigaam-test"))
    with serve(settings) as server:
        found = look(server, "gigaam-test")
        assert (found["default"], found["installed"], found["engine"]) == (True, True, "onnx-asr")


def test_a_download(server: Server, hub: FakeHub) -> None:
    hub.faults.slow = 0.05
    answer = server.client.post(f"{PATH}/whisper-tiny/pull")
    assert answer.status_code == 202
    assert answer.headers["location"] == f"{PATH}/tiny"
    assert answer.json()["name"] == "tiny"
    assert answer.json()["pull"]["state"] in ("waiting", "downloading")
    until(lambda: look(server, "tiny")["pull"]["state"] == "done")
    found = look(server, "tiny")
    assert found["pull"] == {"state": "done", "done": SIZE, "total": SIZE, "error": None}
    assert (found["installed"], found["damaged"], found["own"]) == (True, False, False)
    assert found["size"] > SIZE  # with what says what it is
    files = {"file": ("a.ogg", b"sound")}
    sent = server.client.post("/api/v1/transcribe", files=files, data={"model": "tiny"})
    assert sent.status_code == 202


def test_asking_again_while_it_comes_changes_nothing(server: Server, hub: FakeHub) -> None:
    hub.faults.slow = 0.2
    for _ in range(3):
        assert server.client.post(f"{PATH}/tiny/pull").status_code == 202
    until(lambda: look(server, "tiny")["pull"]["state"] == "done")
    assert len(hub.files("model.bin")) == 1
    before = len(hub.requests)
    assert pulled(server)["pull"]["state"] == "done"  # what is here is verified
    assert len(hub.requests) == before


def test_a_download_that_fails_and_one_that_goes_on(server: Server, hub: FakeHub) -> None:
    hub.faults.status = {"tokenizer": 403}
    found = pulled(server)
    assert found["pull"]["state"] == "error"
    assert found["pull"]["error"]["code"] == "download_failed"
    assert not found["installed"]
    hub.faults.status = {}
    hub.requests.clear()
    assert pulled(server)["installed"]
    assert hub.files("model.bin") == []  # it came before


def test_what_cannot_be_downloaded(server: Server, tmp_path: Path) -> None:
    refused(server.client.post(f"{PATH}/whisper-test/pull"), 422, "option_invalid", server)
    refused(server.client.post(f"{PATH}/nobody/pull"), 404, "not_found", server)
    with serve(settings_for(tmp_path / "offline")) as offline:
        found = refused(offline.client.post(f"{PATH}/tiny/pull"), 422, "model_not_installed", offline)
        assert "tiny" in found["detail"]


def test_removing(server: Server, hub: FakeHub) -> None:
    assert pulled(server)["installed"]
    assert server.client.delete(f"{PATH}/tiny").status_code == 204
    found = look(server, "tiny")
    assert (found["installed"], found["pull"]) == (False, None)
    assert refused(server.client.delete(f"{PATH}/tiny"), 422, "model_not_installed", server)
    refused(server.client.delete(f"{PATH}/nobody"), 404, "not_found", server)
    refused(server.client.delete(f"{PATH}/nobody?force=true"), 404, "not_found", server)


def test_models_of_ones_own_are_removed_by_force_alone(server: Server) -> None:
    found = refused(server.client.delete(f"{PATH}/whisper-test"), 422, "option_invalid", server)
    assert "force" in found["hint"]
    assert look(server, "whisper-test")["installed"]
    assert server.client.delete(f"{PATH}/whisper-test?force=true").status_code == 204
    assert server.client.get(f"{PATH}/whisper-test").status_code == 404


def test_nothing_is_removed_while_it_comes(server: Server, hub: FakeHub) -> None:
    hub.faults.slow = 0.3
    server.client.post(f"{PATH}/tiny/pull")
    refused(server.client.delete(f"{PATH}/tiny"), 409, "request_in_flight", server)
    until(lambda: look(server, "tiny")["pull"]["state"] == "done")
    assert server.client.delete(f"{PATH}/tiny").status_code == 204


def test_a_damaged_model_is_mended(server: Server) -> None:
    assert pulled(server)["installed"]
    (Path(str(server.service.settings.models_dir)) / "tiny" / "model.bin").unlink()
    found = look(server, "tiny")
    assert (found["installed"], found["damaged"]) == (False, True)
    assert pulled(server)["installed"]


def test_what_workers_hold(server: Server) -> None:
    def tell(**event: Any) -> None:
        server.service.heard(event)

    tell(event="worker_memory", worker="worker-1", bytes=1, models={"tiny": 5, "whisper-test": 7})
    tell(event="worker_memory", worker="worker-2", bytes=1, models={"tiny": 5})
    tell(event="worker_memory", worker="worker-3", bytes=1)
    assert look(server, "tiny")["loaded"] == ["worker-1", "worker-2"]
    assert look(server, "tiny")["held"] == 10
    assert look(server, "whisper-test")["loaded"] == ["worker-1"]
    tell(event="worker_memory", worker="worker-2", bytes=1, models={})
    assert (look(server, "tiny")["loaded"], look(server, "tiny")["held"]) == (["worker-1"], 5)
    tell(event="model_loaded", model="tiny", seconds=1.0, device="cpu")
    tell(event="model_loaded", model="tiny", seconds=1.0, device="cpu")
    tell(event="model_evicted", model="tiny", reason="idle")
    assert look(server, "tiny")["device"] == "cpu"
    assert (look(server, "tiny")["loads"], look(server, "tiny")["evictions"]) == (2, 1)
    tell(event="worker_gone", worker="worker-1", reason="crashed")
    assert look(server, "tiny")["loaded"] == []


def test_who_may(tmp_path: Path) -> None:
    with serve(settings_for(tmp_path, models_dir=tmp_path, auth=True)) as server:
        keys = {
            scope: {"X-API-Key": server.service.keys.create(scope, scopes=[scope])[1]}
            for scope in ("read", "models", "transcribe")
        }
        statuses = {
            scope: [
                server.client.get(PATH, headers=headers).status_code,
                server.client.get(f"{PATH}/tiny", headers=headers).status_code,
                server.client.post(f"{PATH}/tiny/pull", headers=headers).status_code,
                server.client.delete(f"{PATH}/tiny", headers=headers).status_code,
            ]
            for scope, headers in (*keys.items(), ("none", {}))
        }
        assert statuses == {
            "read": [200, 200, 403, 403],
            "models": [403, 403, 422, 422],
            "transcribe": [403] * 4,
            "none": [401] * 4,
        }


def test_what_a_failed_download_tells_names_no_folder(tmp_path: Path, hub: FakeHub) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = settings_for(tmp_path, models_dir=tmp_path / "file", offline=False, hub_endpoint=hub.url)
    with serve(settings) as server:
        answer = server.client.get(PATH)
        assert answer.status_code == 503
        assert str(tmp_path) not in json.dumps(answer.json())
