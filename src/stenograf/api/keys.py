"""`/api/v1/keys` for who administers them, and `/api/v1/token`, where a key is exchanged for a token of an hour."""

from __future__ import annotations

import base64
import binascii
import time
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import parse_qsl, unquote_plus

from fastapi import APIRouter, Depends
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stenograf.api import limits
from stenograf.api.auth import TOKEN_PATH, Principal, access_of, require
from stenograf.api.errors import problems
from stenograf.api.schemas import Wire, moment
from stenograf.errors import OptionInvalidError, RateLimitedError, UnauthorizedError
from stenograf.keys import DEFAULT_SCOPES, MAX_EXPIRES_IN, Key, KeyStore, Scope, sorted_scopes

MAX_FORM = 8192
"""Bytes of a request for a token."""

_ID = "key_5f0c1d2e3a4b5968"
_TIME = "2026-11-21T09:30:00.125Z"


class KeyInfo(Wire):
    """A key without its secret."""

    id: str = Field(examples=[_ID])
    name: str = Field(examples=["newsroom"])
    owner: str = Field(description="Keys with the same owner see the same tasks.", examples=["newsroom"])
    prefix: str = Field(description="The start of the secret, to recognise it by.", examples=["stg_EXAMPLE0"])
    scopes: list[Scope] = Field(examples=[list(DEFAULT_SCOPES)])
    rate: int | None = Field(description="Recordings a minute; 0: any number; null: as the server is set.")
    state: Literal["good", "expired", "revoked"]
    listed: bool = Field(description="Whether it stands in the server's settings, where alone it can be taken away.")
    created_at: datetime | None = Field(examples=[_TIME])
    expires_at: datetime | None = Field(description="null: never.")
    revoked_at: datetime | None
    used_at: datetime | None = Field(description="When it was last used, give or take a minute; null: never.")


class NewKey(Wire):
    """What a key is to be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100, examples=["newsroom"])
    scopes: list[Scope] = Field(
        default=list(DEFAULT_SCOPES),
        description="`read`: see tasks and results; `transcribe`: send, cancel, retry and remove; `models`: download "
        "and remove models; `metrics`: read the metrics; `admin`: all of it, for everyone's tasks, and the keys.",
    )
    owner: str | None = Field(
        default=None, min_length=1, max_length=200, description="Default: the key is its own owner."
    )
    rate: int | None = Field(default=None, ge=0, le=1_000_000, description="Recordings a minute; 0: any number.")
    expires_in: float | None = Field(
        default=None, gt=0, le=MAX_EXPIRES_IN, description="Seconds; null: it never expires.", examples=[2_592_000]
    )


class MadeKey(KeyInfo):
    """A key with its secret."""

    secret: str = Field(
        description="To be sent as `X-API-Key`. It is shown this once.",
        examples=["stg_EXAMPLE0-EXAMPLE-EXAMPLE-EXAMPLE-EXAMPLE-E"],
    )


class KeyList(Wire):
    """All keys."""

    items: list[KeyInfo]
    next: None = Field(default=None, description="There is one page only.")


class Token(Wire):
    """A token (RFC 6749, 5.1)."""

    access_token: str = Field(description="To be sent as `Authorization: Bearer`.")
    token_type: Literal["bearer"]
    expires_in: int = Field(description="Seconds.", examples=[3600])
    scope: str = Field(examples=["read transcribe"])


class TokenError(Wire):
    """Why there is no token (RFC 6749, 5.2)."""

    error: str = Field(examples=["invalid_client"])
    error_description: str


def _store(request: Request) -> KeyStore:
    return access_of(request.app).keys


Store = Annotated[KeyStore, Depends(_store)]

router = APIRouter(tags=["keys"])
_ADMIN = [Depends(require("admin")), Depends(limits.requests)]


@router.get("/api/v1/keys", summary="List the keys", dependencies=_ADMIN, responses=problems())
def list_keys(store: Store) -> KeyList:
    """All keys, those that have ended too, the oldest first; without their secrets."""
    now = time.time()
    return KeyList(items=[KeyInfo.model_validate(_info(key, now)) for key in store.list()])


@router.post(
    "/api/v1/keys",
    summary="Make a key",
    status_code=201,
    dependencies=_ADMIN,
    responses=problems("option_invalid", "bad_request"),
)
def create_key(new: NewKey, store: Store) -> MadeKey:
    """The answer has the secret, which cannot be had again."""
    key, secret = store.create(new.name, scopes=new.scopes, owner=new.owner, rate=new.rate, expires_in=new.expires_in)
    return MadeKey.model_validate(_info(key, time.time()) | {"secret": secret})


@router.delete(
    "/api/v1/keys/{key_id}",
    summary="Revoke a key",
    status_code=204,
    dependencies=_ADMIN,
    responses=problems("key_unknown", "option_invalid"),
)
def revoke_key(key_id: str, store: Store) -> None:
    """It stays in the list. Tokens made with it end with it, all within seconds; its tasks stay."""
    store.revoke(key_id)


@router.post(
    TOKEN_PATH,
    summary="Exchange a key for a token",
    response_model=Token,
    responses={
        400: {"model": TokenError, "description": "The request cannot be understood."},
        401: {"model": TokenError, "description": "The key is not good."},
        429: {"model": TokenError, "description": "Too many wrong keys came from this address."},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/x-www-form-urlencoded": {
                    "schema": {
                        "type": "object",
                        "required": ["grant_type"],
                        "properties": {
                            "grant_type": {"type": "string", "const": "client_credentials"},
                            "client_id": {"type": "string", "description": "The id or the prefix of the key."},
                            "client_secret": {"type": "string", "description": "The key."},
                            "scope": {"type": "string", "description": "Some of its scopes, with spaces between them."},
                        },
                    },
                    "example": {
                        "grant_type": "client_credentials",
                        "client_id": _ID,
                        "client_secret": "stg_EXAMPLE0-EXAMPLE-EXAMPLE-EXAMPLE-EXAMPLE-E",
                    },
                }
            },
        }
    },
)
async def token(request: Request) -> Response:
    """OAuth 2 client credentials (RFC 6749, 4.4): the key's id and the key, in the form or as HTTP Basic."""
    try:
        form = await _form(request)
        answer = await run_in_threadpool(_exchange, request, form)
    except _OAuthError as error:
        headers = {}
        if error.status == 401:
            basic = "authorization" in request.headers
            headers["WWW-Authenticate"] = 'Basic realm="stenograf"' if basic else 'Bearer realm="stenograf"'
        body = {"error": error.code, "error_description": error.description}
        return JSONResponse(body, error.status, _unstored(headers))
    except RateLimitedError as error:
        body = {"error": "temporarily_unavailable", "error_description": f"{error.message} {error.hint}"}
        return JSONResponse(body, 429, _unstored({}))
    return JSONResponse(answer.model_dump(), headers=_unstored({}))


class _OAuthError(Exception):
    """An error of the token endpoint, in OAuth's own words."""

    def __init__(self, code: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.status = status


def _unstored(headers: dict[str, str]) -> dict[str, str]:
    return {"Cache-Control": "no-store", "Pragma": "no-cache", **headers}  # both, says RFC 6749, 5.1


async def _form(request: Request) -> dict[str, str]:
    """The fields of the form; those that are empty count as not sent (RFC 6749, 3.2)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise _OAuthError("invalid_request", "Send a form: Content-Type: application/x-www-form-urlencoded.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM:
            raise _OAuthError("invalid_request", "The form is too long.")
    try:
        pairs = parse_qsl(body.decode("ascii"), max_num_fields=50, errors="strict")
    except ValueError:
        raise _OAuthError("invalid_request", "The form cannot be read.") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise _OAuthError("invalid_request", "A field is in the form twice.")
    return form


def _exchange(request: Request, form: dict[str, str]) -> Token:
    if "grant_type" not in form:
        raise _OAuthError("invalid_request", "The field grant_type is missing.")
    if form["grant_type"] != "client_credentials":
        raise _OAuthError("unsupported_grant_type", "grant_type must be client_credentials.")
    access = access_of(request.app)
    key = _client(request, form)
    limits.limits_of(request.app).take(request, "requests", Principal(key.owner, frozenset(), key.id))
    asked = form.get("scope", "").split()
    if any(scope not in key.scopes and "admin" not in key.scopes for scope in asked):
        raise _OAuthError("invalid_scope", f"This key has the scopes: {' '.join(key.scopes)}.")
    try:
        scopes = sorted_scopes(asked or key.scopes)
    except OptionInvalidError:
        raise _OAuthError("invalid_scope", "There is no such scope.") from None
    return Token(
        access_token=access.tokens.issue(key, scopes),
        token_type="bearer",  # noqa: S106 - its kind
        expires_in=access.tokens.lifetime,
        scope=" ".join(scopes),
    )


def _client(request: Request, form: dict[str, str]) -> Key:
    """The key that the client shows."""
    wrong = _OAuthError("invalid_client", "The client_id or the client_secret is wrong, or the key has ended.", 401)
    for client_id, secret in _credentials(request, form):
        try:
            key = access_of(request.app).check(request, secret)
        except UnauthorizedError:
            continue
        if client_id in (key.id, key.prefix):
            return key
    raise wrong


def _credentials(request: Request, form: dict[str, str]) -> list[tuple[str, str]]:
    """What may be client_id and client_secret."""
    kind, _, encoded = request.headers.get("authorization", "").partition(" ")
    if not kind:
        if "client_secret" not in form:
            raise _OAuthError("invalid_client", "The key is missing: send client_id and client_secret.", 401)
        return [(form.get("client_id", ""), form["client_secret"])]
    if "client_secret" in form:
        raise _OAuthError("invalid_request", "Send the key in the form or as HTTP Basic, not both.")
    try:
        if kind.lower() != "basic":
            raise ValueError(kind)
        client_id, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        if not colon:
            raise ValueError(colon)
    except (binascii.Error, ValueError):
        raise _OAuthError("invalid_client", "The header Authorization is not HTTP Basic.", 401) from None
    # RFC 6749, 2.3.1 wants both encoded as in a form; many clients leave that out.
    encoded_too = (unquote_plus(client_id), unquote_plus(secret))
    return list(dict.fromkeys([(client_id, secret), encoded_too]))


def _info(key: Key, now: float) -> dict[str, object]:
    times = ("created_at", "expires_at", "revoked_at", "used_at")
    seconds = {name: getattr(key, name) for name in times}
    return {
        "id": key.id,
        "name": key.name,
        "owner": key.owner,
        "prefix": key.prefix,
        "scopes": list(key.scopes),
        "rate": key.rate,
        "state": key.state(now),
        "listed": key.listed,
        **{name: None if value is None else moment(value) for name, value in seconds.items()},
    }
