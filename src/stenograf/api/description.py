"""The OpenAPI description: FastAPI's own, and what FastAPI cannot know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from stenograf.api.schemas import Problem

ABOUT = """Speech to text on your own machines.

Send a recording to `POST /api/v1/transcribe`, look at its task until it is `done`, and take the result. Errors are
problem documents (RFC 9457); [their codes](docs/errors) are stable.

Where keys are asked for, send one as `X-API-Key` or as `Authorization: Bearer`. The headers `RateLimit` and
`RateLimit-Policy` tell how much of your share is left.
"""

TAGS = {
    "tasks": "Recordings in, transcripts out.",
    "uploads": "Large recordings in pieces, by the tus protocol 1.0: an upload that broke off goes on where it was.",
    "models": "The models on this server.",
    "keys": "API keys, and tokens that stand for them for an hour.",
    "openai": "OpenAI's audio API: its clients work with this address and a key of this service.",
    "earlier": "What clients of earlier services know. New ones are better off with `/api/v1`.",
    "operation": "For people who come by, load balancers and Prometheus.",
}
"""What there is, in the order in which pages show it."""

_FOREIGN = ("HTTPValidationError", "ValidationError")


def operation_id(route: APIRoute) -> str:
    """The name of an operation, as it becomes a function's in generated clients: `tasks_transcribe`."""
    return "_".join([*map(str, route.tags[:1]), route.name])


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of an application; made once."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title,
            version=app.version,
            description=ABOUT,
            routes=app.routes,
            tags=[{"name": name, "description": about} for name, about in TAGS.items()],
            servers=[{"url": "/", "description": "This service."}],
            license_info={"name": "MIT", "identifier": "MIT"},
        )
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        for path in described["paths"].values():
            for operation in path.values():
                if _FOREIGN[0] in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]  # no error here has that shape
                operation["responses"] = dict(sorted(operation["responses"].items()))
        for name in _FOREIGN:
            schemas.pop(name, None)
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
        schemas |= problem.pop("$defs", {}) | {"Problem": problem}
        app.openapi_schema = described
    return app.openapi_schema
