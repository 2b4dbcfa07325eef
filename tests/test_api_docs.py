"""The pages that describe the interface, and the description that they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from api_server import Server, serve, settings_for
from stenograf._version import __version__
from stenograf.api.description import TAGS
from stenograf.api.docs import ASSETS
from stenograf.api.errors import STATUS
from stenograf.api.parameters import PARAMETERS

PAGES = ("/docs", "/redoc", "/docs/errors")
OPEN = {("get", "/"), ("get", "/health"), ("get", "/ready"), ("post", "/api/v1/token"), ("options", "/api/v1/uploads")}
"""What asks for no key."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(settings_for(tmp_path_factory.mktemp("service"))) as running:
        yield running


@pytest.fixture(scope="module")
def described(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.client.get("/openapi.json").json()
    return found


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in described["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


class Page(HTMLParser):
    """What a page loads, and what stands in it that a browser would run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "src" or (name == "href" and tag == "link"):
                self.loaded.append(value or "")
            elif name == "href":
                self.linked.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name.startswith("on"):
                self.inline.append(f"{name}={value}")
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.inline.append(data)


class TestPages:
    @pytest.mark.parametrize("path", PAGES)
    def test_everything_comes_from_here_and_no_script_stands_in_the_page(self, server: Server, path: str) -> None:
        answer = server.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "script-src 'self';" in answer.headers["content-security-policy"]
        page = Page(answer.text)
        assert page.inline == []
        for address in page.loaded:
            if address == "data:,":
                continue
            assert re.fullmatch(r"docs/assets/[a-z.-]+\?v=[0-9a-f]{12}", address)
            asset = server.client.get(f"/{address}")
            assert asset.status_code == 200
            assert "immutable" in asset.headers["cache-control"]
        for address in page.linked:
            assert server.client.get(f"/{address}").status_code == 200

    def test_a_file_has_its_type_and_only_known_ones_are_given(self, server: Server) -> None:
        for name, kind in ASSETS.items():
            answer = server.client.get(f"/docs/assets/{name}")
            assert answer.headers["content-type"] == kind
            assert len(answer.content) > 50
        for name in ("favicon.png", "..%2Fcore.py", "%2e%2e%2f__init__.py", ""):
            assert server.client.get(f"/docs/assets/{name}").status_code == 404

    def test_redoc_loads_no_picture_from_its_maker(self, server: Server) -> None:
        text = server.client.get("/docs/assets/redoc.standalone.js").text
        assert "cdn.redoc" not in text
        assert "fonts.googleapis" not in text

    def test_pages_need_no_key(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        settings = settings_for(tmp_path_factory.mktemp("closed"), auth=True, api_keys=("k" * 16,))
        with serve(settings) as closed:
            for path in (*PAGES, "/openapi.json"):
                assert closed.client.get(path).status_code == 200

    def test_the_type_of_every_problem_leads_to_its_line(self, server: Server) -> None:
        page = Page(server.client.get("/docs/errors").text)
        assert set(STATUS) <= set(page.ids)
        assert len(set(page.ids)) == len(page.ids)
        for path in ("/nothing/here", "/api/v1/tasks/4711", "/health"):
            answer = server.client.post(path) if path == "/health" else server.client.get(path)
            where, _, code = answer.json()["type"].partition("#")
            assert where == "/docs/errors"
            assert code in page.ids


class TestDescription:
    def test_what_it_is(self, described: dict[str, Any]) -> None:
        assert described["openapi"].startswith("3.1")
        assert described["info"]["version"] == __version__
        assert described["servers"] == [{"url": "/", "description": "This service."}]
        assert [tag["name"] for tag in described["tags"]] == list(TAGS)
        assert all(tag["description"].endswith(".") for tag in described["tags"])

    def test_every_operation_is_told_in_full(self, described: dict[str, Any]) -> None:
        names = []
        for method, path, operation in operations(described):
            where = f"{method} {path}"
            assert operation["summary"], where
            assert not operation["summary"].endswith("."), where
            assert operation["description"], where
            assert len(operation["tags"]) == 1, where
            assert operation["tags"][0] in TAGS, where
            names.append(operation["operationId"])
            assert ("security" in operation) == ((method, path) not in OPEN), where
            assert all(response["description"] for response in operation["responses"].values()), where
            statuses = list(operation["responses"])
            assert statuses == sorted(statuses), where
            if "security" in operation:
                assert {"401", "403", "500"} <= set(statuses), where
            for parameter in operation.get("parameters", []):
                known = ("description", "examples", "enum", "const", "default")
                told = {**parameter, **parameter["schema"]}
                assert any(name in told for name in known) or parameter["in"] == "path", f"{where} {parameter['name']}"
        assert len(set(names)) == len(names)
        assert all(re.fullmatch("[a-z][a-z_]+", name) for name in names)

    def test_every_tag_is_used(self, described: dict[str, Any]) -> None:
        assert {operation["tags"][0] for _, _, operation in operations(described)} == set(TAGS)

    def test_answers_have_a_schema_or_are_files(self, described: dict[str, Any]) -> None:
        for method, path, operation in operations(described):
            for status, response in operation["responses"].items():
                for kind, content in response.get("content", {}).items():
                    if "json" in kind:
                        assert content.get("schema"), f"{method} {path} {status}"

    def test_errors_have_the_shape_of_their_interface(self, described: dict[str, Any]) -> None:
        for _, path, operation in operations(described):
            for status, response in operation["responses"].items():
                if status < "400" or "content" not in response or path in ("/ready", "/api/v1/token"):
                    continue
                (content,) = response["content"].items()
                shape = content[1]["schema"]["$ref"].rpartition("/")[2]
                if path.startswith("/v1/"):
                    assert (content[0], shape) == ("application/json", "OpenAIErrorAnswer")
                elif path.startswith(("/transcribe", "/status", "/result")):
                    assert (content[0], shape) == ("application/json", "Failure")
                else:
                    assert (content[0], shape) == ("application/problem+json", "Problem")

    def test_uploads_name_all_options(self, described: dict[str, Any]) -> None:
        content = described["paths"]["/api/v1/transcribe"]["post"]["requestBody"]["content"]
        for kind, field in (("multipart/form-data", "file"), ("application/json", "url")):
            schema = content[kind]["schema"]
            assert set(schema["properties"]) == {*PARAMETERS, field}
            assert schema["required"] == [field]
            assert all(option["description"] for option in schema["properties"].values())
        assert content["application/json"]["example"]
        for path in ("/transcribe", "/transcribe/", "/v1/audio/transcriptions", "/v1/audio/translations"):
            form = described["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
            assert form["properties"]["file"]["format"] == "binary"

    def test_every_address_names_all_of_its_methods(self, server: Server, described: dict[str, Any]) -> None:
        for path, item in described["paths"].items():
            answer = server.client.request("TRACE", path, headers={"Tus-Resumable": "1.0.0"})
            assert answer.status_code == 405, path
            allowed = set(answer.headers["allow"].split(", "))
            assert {method.upper() for method in item} <= allowed <= {*map(str.upper, item), "HEAD", "OPTIONS", "POST"}

    def test_references_lead_somewhere(self, described: dict[str, Any]) -> None:
        schemas = described["components"]["schemas"]
        for name in re.findall(r"'#/components/schemas/([^']+)'", str(described)):
            assert name in schemas
        assert "HTTPValidationError" not in schemas
