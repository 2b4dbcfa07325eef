"""`/docs`, `/redoc`, `/docs/errors`: the description of the interface as pages, with nothing from other servers.

Swagger UI and ReDoc come from the package fastapi-offline, of which only the files are served: nothing of it is run
here. What FastAPI itself would write into the pages is in two scripts of ours, as no script may stand in a page.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from html import escape
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, HTTPException
from starlette.responses import HTMLResponse, Response

from stenograf.api.errors import STATUS, about_of, kinds

PACKAGE = "fastapi_offline"

YEAR = "public, max-age=31536000, immutable"
"""Pages name a file together with the hash of what is in it, so a new file has a new address."""

_JAVASCRIPT, _CSS = "text/javascript; charset=utf-8", "text/css; charset=utf-8"

_OURS = {
    "swagger.js": """\
fetch("openapi.json").then(answer => answer.json()).then(spec => {
  // Swagger UI would fill in "string" for each option that has no example, and send it.
  for (const operation of Object.values(spec.paths).flatMap(Object.values)) {
    const form = operation.requestBody?.content["multipart/form-data"];
    for (const option of Object.values(form?.schema.properties ?? {})) {
      if (option.format !== "binary") option.examples = [option.type === "array" ? [] : ""];
    }
  }
  SwaggerUIBundle({
    spec: spec,
    dom_id: "#swagger-ui",
    deepLinking: true,
    displayRequestDuration: true,
    tryItOutEnabled: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    validatorUrl: null
  });
});
""",
    "redoc.js": """\
Redoc.init(
  "openapi.json",
  {nativeScrollbars: true, requiredPropsFirst: true, expandResponses: "200,202"},
  document.getElementById("redoc")
);
""",
}

ASSETS = {
    "swagger-ui-bundle.js": _JAVASCRIPT,
    "swagger-ui.css": _CSS,
    "redoc.standalone.js": _JAVASCRIPT,
    "swagger.js": _JAVASCRIPT,
    "redoc.js": _JAVASCRIPT,
}
"""Name -> media type of the files that the pages load."""

_ELSEWHERE = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
"""A picture that ReDoc would load from its maker's server; it hides one that is empty."""

_HTTP = (
    ("not_found", 404, "There is nothing at this address.", False),
    ("method_not_allowed", 405, "This address does not take this method.", False),
    ("range_not_satisfiable", 416, "The recording does not have the bytes that were asked for.", False),
)
"""Errors of the web framework: code, status, meaning, whether to try again."""

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
"""

_NO_SCRIPT = (
    '<noscript>This page needs JavaScript. What it shows is in <a href="openapi.json">openapi.json</a>.</noscript>'
)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def swagger() -> HTMLResponse:
    """The interface to try."""
    return HTMLResponse(
        _HEAD.format(title="Stenograf API")
        + f'<link rel="stylesheet" href="{_address("swagger-ui.css")}">\n</head>\n<body>\n'
        + f'{_NO_SCRIPT}\n<div id="swagger-ui"></div>\n'
        + f'<script src="{_address("swagger-ui-bundle.js")}"></script>\n'
        + f'<script src="{_address("swagger.js")}"></script>\n</body>\n</html>\n'
    )


@router.get("/redoc")
async def redoc() -> HTMLResponse:
    """The interface to read."""
    return HTMLResponse(
        _HEAD.format(title="Stenograf API reference")
        + "<style>body { margin: 0 }</style>\n</head>\n<body>\n"
        + f'{_NO_SCRIPT}\n<div id="redoc"></div>\n'
        + f'<script src="{_address("redoc.standalone.js")}"></script>\n'
        + f'<script src="{_address("redoc.js")}"></script>\n</body>\n</html>\n'
    )


@router.get("/docs/errors")
async def error_page() -> HTMLResponse:
    """Where the `type` of a problem leads."""
    return HTMLResponse(_errors())


@router.get("/docs/assets/{name}")
def asset(name: str) -> Response:
    """A file of the pages."""
    if name not in ASSETS:
        raise HTTPException(404)
    return Response(_content(name), media_type=ASSETS[name], headers={"Cache-Control": YEAR})


def _address(name: str) -> str:
    """Relative, so that it is right behind a proxy that puts a prefix before the path."""
    return f"docs/assets/{name}?v={hashlib.sha256(_content(name)).hexdigest()[:12]}"


@functools.cache
def _content(name: str) -> bytes:
    if name in _OURS:
        return _OURS[name].encode()
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    return (Path(found.origin).parent / "static" / name).read_bytes().replace(_ELSEWHERE, b"data:,")


@functools.cache
def _errors() -> str:
    rows = [
        f'<tr id="{code}"><td><code>{code}</code></td><td>{status} {HTTPStatus(status).phrase}</td>'
        f"<td>{escape(about)}</td><td>{'yes' if again else 'no'}</td></tr>"
        for code, status, about, again in _codes()
    ]
    return (
        _HEAD.format(title="Errors of Stenograf")
        + """<style>
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884 }
tr:target { background: #fd06 }
</style>
</head>
<body>
<h1>Errors</h1>
<p>Each error has a code that does not change, a message that says what is wrong, and a hint that says what to do.</p>
<table>
<thead><tr><th>Code</th><th>Status</th><th>What it means</th><th>May the same request do better later?</th></tr></thead>
<tbody>
"""
        + "\n".join(rows)
        + "\n</tbody>\n</table>\n</body>\n</html>\n"
    )


def _codes() -> list[tuple[str, int, str, bool]]:
    """Code, status, meaning, and whether to try again, by status."""
    ours = [(code, STATUS[code], about_of(kind), kind.retryable) for code, kind in kinds().items()]
    return sorted([*ours, *_HTTP], key=lambda item: (item[1], item[0]))
