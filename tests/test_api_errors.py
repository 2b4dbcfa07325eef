"""One shape of errors for each interface, whatever it is that went wrong."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api_server import Server, serve, settings_for
from stenograf.api import app as assembly
from stenograf.api.errors import STATUS, fault_of, problems, raised
from stenograf.errors import (
    DatabaseError,
    DiskFullError,
    ModelUnknownError,
    NotMediaError,
    RateLimitedError,
    StenografError,
    UnauthorizedError,
)
from stenograf.jobs.job import JobError

SECRET = "/var/lib/secret/place"

RAISED: dict[str, Exception] = {
    "model": ModelUnknownError("There is no model 'x'.", "See the list."),
    "key": UnauthorizedError("No key.", "Send one."),
    "rate": RateLimitedError("Too much.", "Wait."),
    "database": DatabaseError(f"The database {SECRET} cannot be used: SELECT * FROM jobs.", "Look."),
    "disk": DiskFullError(f"The disk that holds {SECRET} is full."),
    "plain": StenografError(f"Something in {SECRET}."),
    "bug": ZeroDivisionError(f"division in {SECRET}"),
    "group": ExceptionGroup("several", [ValueError(SECRET)]),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(settings_for(tmp_path_factory.mktemp("service"))) as running:
        app = running.app

        def fail(what: str, number: int = 0) -> None:
            raise RAISED[what]

        async def half() -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                yield b"half of it"
                raise ZeroDivisionError

            return StreamingResponse(body())

        for prefix in ("/api/v1", "/v1", "/transcribe", "/status", "/result", "/operation"):
            app.add_api_route(prefix + "/fail/{what}", fail, methods=["GET"])
            app.add_api_route(prefix + "/half", half, methods=["GET"])
        yield running


def tree(top: type[StenografError]) -> list[type[StenografError]]:
    return [top, *(kind for child in top.__subclasses__() for kind in tree(child))]


def test_every_code_has_a_status() -> None:
    assert {kind.code for kind in tree(StenografError)} == set(STATUS)
    assert all(400 <= status < 600 for status in STATUS.values())


@pytest.mark.parametrize("path", ["/api/v1/fail/", "/operation/fail/"])
@pytest.mark.parametrize(
    ("what", "status", "code"),
    [
        ("model", 422, "model_unknown"),
        ("key", 401, "unauthorized"),
        ("rate", 429, "rate_limited"),
        ("database", 503, "database_failed"),
        ("disk", 507, "disk_full"),
        ("plain", 500, "internal"),
        ("bug", 500, "internal"),
        ("group", 500, "internal"),
    ],
)
def test_problem_documents(server: Server, path: str, what: str, status: int, code: str) -> None:
    answer = server.client.get(path + what)
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (answer.status_code, found["status"], found["code"]) == (status, status, code)
    assert found["title"]
    assert found["instance"] == path + what
    assert found["detail"]
    assert found["request_id"] == answer.headers["x-request-id"]
    assert found["hint"]
    assert SECRET not in answer.text
    assert "SELECT" not in answer.text


@pytest.mark.parametrize(
    ("what", "status", "kind", "code", "param"),
    [
        ("model", 404, "invalid_request_error", "model_not_found", "model"),
        ("key", 401, "invalid_request_error", "invalid_api_key", None),
        ("rate", 429, "rate_limit_error", "rate_limit_exceeded", None),
        ("database", 503, "server_error", "database_failed", None),
        ("bug", 500, "server_error", "internal", None),
    ],
)
def test_the_shape_of_openai(server: Server, what: str, status: int, kind: str, code: str, param: str | None) -> None:
    answer = server.client.get("/v1/fail/" + what)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert SECRET not in answer.text


@pytest.mark.parametrize("prefix", ["/transcribe", "/status", "/result"])
@pytest.mark.parametrize(("what", "status"), [("model", 422), ("bug", 500), ("database", 503)])
def test_the_shape_of_earlier_services(server: Server, prefix: str, what: str, status: int) -> None:
    answer = server.client.get(f"{prefix}/fail/{what}")
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert isinstance(answer.json()["error"], str)
    assert SECRET not in answer.text


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/nothing", "/api/v1/tasks/", "/v1/nothing", "/status/a/b/c"])
def test_nothing_there(server: Server, path: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 404
    shown = answer.json()
    if path.startswith("/v1"):
        assert shown["error"]["code"] == "not_found"
    elif path.startswith("/status"):
        assert shown == {"error": shown["error"]}
    else:
        assert shown["code"] == "not_found"


def test_the_wrong_method(server: Server) -> None:
    answer = server.client.put("/api/v1/tasks")
    assert answer.status_code == 405
    assert answer.json()["code"] == "method_not_allowed"
    assert "GET" in answer.headers["allow"]
    answer = server.client.post("/v1/fail/bug")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_parameters_that_do_not_fit(server: Server) -> None:
    answer = server.client.get("/v1/fail/bug?number=x")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "number"
    answer = server.client.get("/transcribe/fail/bug?number=x")
    assert answer.status_code == 422
    assert "number" in answer.json()["error"]


def test_headers(server: Server) -> None:
    assert server.client.get("/api/v1/fail/key").headers["www-authenticate"].startswith("Bearer")
    assert int(server.client.get("/v1/fail/rate").headers["retry-after"]) > 0
    assert int(server.client.get("/api/v1/fail/database").headers["retry-after"]) > 0
    assert "retry-after" not in server.client.get("/api/v1/fail/model").headers


def test_what_nobody_foresaw_is_logged_with_its_place(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "stenograf.api.errors"):
        server.client.get("/api/v1/fail/bug")
        server.client.get("/api/v1/fail/database")
        server.client.get("/api/v1/fail/model")
    bug, database = caplog.records
    assert bug.exc_info is not None
    assert bug.exc_info[0] is ZeroDivisionError
    assert SECRET in database.getMessage()
    assert "/api/v1/fail/database" in database.getMessage()


def test_what_fails_in_a_middleware_has_a_shape_too(server: Server) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError(SECRET)

    stack = server.app.middleware_stack
    assert isinstance(stack, ServerErrorMiddleware)
    inner, stack.app = stack.app, broken
    try:
        answer = httpx2.get(server.url + "/v1/models", trust_env=False)  # the server closes this connection
    finally:
        stack.app = inner
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"


def test_half_an_answer_does_not_look_whole(server: Server) -> None:
    with pytest.raises(httpx2.TransportError):
        httpx2.get(server.url + "/api/v1/half", trust_env=False)


def test_an_odd_name_in_the_address(server: Server) -> None:
    for path in ("/api/v1/tasks/%ff%00%ed%a0%80", "/api/v1/tasks/" + "x" * 5000, "/api/v1/tasks/..%2f..%2fetc"):
        answer = server.client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.json()["detail"]) < 400


def test_the_error_of_a_job() -> None:
    error = raised(JobError("not_media", "No sound.", "Check it."))
    assert type(error) is NotMediaError
    assert fault_of(error).status == 422
    assert fault_of(raised(JobError("of_tomorrow", "Odd."))).status == 500


def test_examples_are_problems() -> None:
    described = problems("task_unknown", "task_state", "request_in_flight")
    assert {401, 403, 404, 409, 429, 500, 503} <= set(described)
    assert set(described[409]["content"]["application/problem+json"]["examples"]) == {"task_state", "request_in_flight"}


def test_every_family_is_a_router() -> None:
    assert assembly.FAMILIES
    assert all(router.routes for router in assembly.FAMILIES)


def test_the_api_needs_no_engine(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, stenograf.api.app; print([m for m in ('numpy', 'av', 'ctranslate2', 'onnxruntime', 'onnx_asr',"
        " 'faster_whisper') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
