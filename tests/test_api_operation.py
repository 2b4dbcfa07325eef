"""What people, load balancers and Prometheus ask of a service."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_server import MODELS, Server, serve, settings_for
from live_server import LiveServer
from stenograf._version import __version__
from stenograf.api import readiness


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(settings_for(tmp_path_factory.mktemp("service"))) as running:
        yield running


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see at once what they changed."""
    monkeypatch.setattr(readiness, "CACHE_SECONDS", 0.0)


def checks(server: Server, status: int) -> dict[str, Any]:
    """The checks of `/ready`, whose answer must fit its status."""
    answer = server.client.get("/ready")
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert set(found) == {"status", "checks"}
    assert found["status"] == ("ready" if status == 200 else "not_ready")
    assert all(check["ok"] for check in found["checks"].values()) == (status == 200)
    assert answer.headers["cache-control"] == "no-store"
    return dict(found["checks"])


class TestRoot:
    def test_programs_get_json(self, server: Server) -> None:
        for accept in ("*/*", "application/json", ""):
            answer = server.client.get("/", headers={"Accept": accept})
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["vary"] == "Accept"
            assert answer.json()["name"] == "stenograf"
            assert answer.json()["version"] == __version__

    def test_its_links_lead_somewhere(self, server: Server) -> None:
        links = server.client.get("/").json()["links"]
        known = [re.sub(r"/\{.*", "", path) for path in server.client.get("/openapi.json").json()["paths"]]
        for link in links.values():
            assert server.client.get(link).status_code == 200 or any(path.startswith(link + "/") for path in known)

    def test_browsers_get_a_page_without_scripts(self, server: Server) -> None:
        accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
        answer = server.client.get("/", headers={"Accept": accept})
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "style-src 'self' 'unsafe-inline'" in answer.headers["content-security-policy"]
        assert __version__ in answer.text
        assert f"{server.url}/api/v1/transcribe" in answer.text
        assert "<script" not in answer.text
        for link in re.findall(r'href="([^"]+)"', answer.text):
            if not link.startswith("data:"):
                assert server.client.get(f"/{link}").status_code == 200, link

    def test_the_name_that_a_client_calls_it_is_no_markup(self, server: Server) -> None:
        answer = server.client.get("/", headers={"Accept": "text/html", "Host": "<b>.localhost"})
        assert "<b>" not in answer.text


class TestHealth:
    def test_it_says_ok(self, server: Server) -> None:
        answer = server.client.get("/health")
        assert answer.status_code == 200
        assert answer.json() == {"status": "ok", "version": __version__, "model": "whisper-test"}

    def test_it_asks_nobody(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, auth=True, api_keys=("k" * 16,))) as server:
            server.service.database.close()
            shutil.move(tmp_path / "stenograf.db", tmp_path / "gone.db")
            with server.service.database.read() as connection:  # a new, empty database
                assert connection.exec_driver_sql("SELECT name FROM sqlite_master").all() == []
            assert server.client.get("/health").status_code == 200
            assert server.client.get("/ready").status_code == 503

    def test_the_folder_of_a_model_is_not_told(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, default_model=str(MODELS / "whisper-test"))) as server:
            assert server.client.get("/health").json()["model"] == "whisper-test"
            assert checks(server, 200)["model"]["detail"] == "whisper-test is here."

    def test_head(self, server: Server) -> None:
        for path in ("/", "/health", "/ready"):
            answer = server.client.head(path)
            assert answer.status_code == 200
            assert answer.content == b""


class TestReady:
    def test_all_is_well(self, server: Server) -> None:
        found = checks(server, 200)
        assert set(found) == {"database", "disk", "storage", "model", "device"}

    def test_a_database_that_cannot_be_read(self, server: Server) -> None:
        with server.service.database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE jobs RENAME TO hidden")
        try:
            found = checks(server, 503)
        finally:
            with server.service.database.write() as connection:
                connection.exec_driver_sql("ALTER TABLE hidden RENAME TO jobs")
        assert [name for name, check in found.items() if not check["ok"]] == ["database"]
        assert "/" not in found["database"]["detail"]
        checks(server, 200)

    def test_a_full_disk(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(readiness, "RESERVE", 1 << 60)
        assert not checks(server, 503)["disk"]["ok"]

    def test_no_worker_is_left(self, server: Server) -> None:
        workers = {"short-1": 1, "long-1": 2}
        server.service.workers = lambda: workers
        try:
            assert checks(server, 200)["workers"] == {"ok": True, "detail": "2 processes"}
            workers.clear()
            assert checks(server, 503)["workers"] == {"ok": False, "detail": "0 processes"}
        finally:
            server.service.workers = None

    def test_the_model_is_not_here(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path / "a", default_model="whisper-base", models_dir=tmp_path)) as server:
            assert checks(server, 503)["model"]["detail"] == "whisper-base is not here, and nothing is downloaded."
        online = settings_for(tmp_path / "b", default_model="base", models_dir=tmp_path, offline=False)
        with serve(online) as server:
            assert checks(server, 200)["model"]["detail"] == "base is downloaded at its first use."

    def test_the_model_is_unknown_or_damaged(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path / "a", default_model="whispr")) as server:
            assert "model_unknown" in checks(server, 503)["model"]["detail"]
        shutil.copytree(MODELS / "whisper-test", tmp_path / "models" / "whisper-test")
        (tmp_path / "models" / "whisper-test" / "tokenizer.json").unlink()
        with serve(settings_for(tmp_path / "b", models_dir=tmp_path / "models")) as server:
            assert "model_damaged" in checks(server, 503)["model"]["detail"]

    def test_the_model_could_not_be_loaded(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path)) as server:
            server.service.heard({"event": "model_failed", "model": "whisper-test", "code": "out_of_memory"})
            assert "out_of_memory" in checks(server, 503)["model"]["detail"]
            server.service.heard({"event": "model_loaded", "model": "other", "seconds": 1.0, "device": "cpu"})
            checks(server, 503)
            server.service.heard({"event": "model_loaded", "model": "whisper-test", "seconds": 1.0, "device": "cpu"})
            assert checks(server, 200)["device"]["detail"] == "cpu"

    def test_auto_tells_what_reads_the_default_language(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, default_model="auto")) as server:
            assert checks(server, 200)["model"]["detail"] == "auto: gigaam-rnnt-test for Russian is here."
        with serve(settings_for(tmp_path, models_dir=tmp_path, default_model="auto")) as server:
            assert not checks(server, 503)["model"]["ok"]

    def test_a_model_that_was_to_be_loaded_and_is_not_needed(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path)) as server:
            server.service.heard({"event": "model_failed", "model": "whisper-tset", "code": "model_unknown"})
            checks(server, 200)

    def test_a_gpu_that_is_not_there(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, device="cuda")) as server:
            assert "there is no GPU" in checks(server, 503)["device"]["detail"]

    def test_models_on_the_processor_beside_a_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stenograf.engines.cuda.present", lambda: True)
        with serve(settings_for(tmp_path, device="cuda")) as server:
            assert checks(server, 200)["device"]["detail"] == "cuda; no model is loaded yet"
            server.service.heard({"event": "model_loaded", "model": "a", "seconds": 1.0, "device": "cuda:0"})
            assert checks(server, 200)["device"]["detail"] == "cuda:0"
            server.service.heard({"event": "model_loaded", "model": "b", "seconds": 1.0, "device": "cpu"})
            assert not checks(server, 503)["device"]["ok"]

    def test_an_answer_is_kept_for_a_moment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(readiness, "CACHE_SECONDS", 3600.0)
        with serve(settings_for(tmp_path)) as server:
            checks(server, 200)
            server.service.heard({"event": "model_failed", "model": "whisper-test", "code": "out_of_memory"})
            checks(server, 200)

    def test_a_real_service(self, live_server: LiveServer) -> None:
        with live_server.client() as client:
            answer = client.get("/ready")
        assert answer.status_code == 200, answer.text
        found = answer.json()["checks"]
        assert found["device"]["detail"] == "cpu"
        assert re.fullmatch(r"[12] process(es)?", found["workers"]["detail"])


class TestMetrics:
    def test_jobs_are_counted_when_asked(self, server: Server) -> None:
        def waiting() -> float:
            answer = server.client.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=")
            families = {family.name: family for family in text_string_to_metric_families(answer.text)}
            return float(sum(sample.value for sample in families["stenograf_jobs_queued"].samples))

        before = waiting()
        task = server.sent()
        assert waiting() == before + 1
        server.client.delete(f"/api/v1/tasks/{task}")
        assert waiting() == before

    def test_requests_are_named_by_their_routes(self, server: Server) -> None:
        server.client.get("/health")
        text = server.client.get("/metrics").text
        assert 'route="/health"' in text
        assert "stenograf_build_info" in text

    def test_a_scope_is_needed(self, tmp_path: Path) -> None:
        with serve(settings_for(tmp_path, auth=True, rate_requests=1)) as server:
            _, reader = server.service.keys.create("reader")
            _, watcher = server.service.keys.create("watcher", scopes=["metrics"])
            assert server.client.get("/metrics").status_code == 401
            assert server.client.get("/metrics", headers={"X-API-Key": reader}).status_code == 403
            for _ in range(3):  # not counted as other requests are
                assert server.client.get("/metrics", headers={"X-API-Key": watcher}).status_code == 200
            for path in ("/", "/health", "/ready"):
                assert server.client.get(path).status_code == 200
