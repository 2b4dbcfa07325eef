"""Who asks, and what they may do: from the headers of a request to a `Principal`.

A key comes as `X-API-Key` or as `Authorization: Bearer`, a token as the latter. A browser can set no headers on a
WebSocket or an EventSource: there a token, never a key, may stand in the address as `access_token`, where logs see it.

The service is open, so that no key is asked for, where the settings say so, or on a machine's own address as long as
no key was ever made: who can connect to it there can read its database as well.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Security
from fastapi.openapi.models import OAuthFlowClientCredentials, OAuthFlows
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer, OAuth2
from starlette.requests import HTTPConnection
from starlette.types import Scope

from stenograf.api.connection import add_header, client_network, is_forwarded, kept, peer_address
from stenograf.api.counters import Counter, Tally, counter_of
from stenograf.api.tokens import Tokens, is_token
from stenograf.errors import ForbiddenError, RateLimitedError, UnauthorizedError
from stenograf.jobs.database import Database
from stenograf.keys import SCOPES, Key, KeyStore, is_loopback
from stenograf.settings import Settings

TOKEN_PATH = "/api/v1/token"  # noqa: S105 - an address
LOCAL_OWNER = "local"
"""The owner of what is sent while the service is open."""

FAILURES = 20
"""So many wrong keys a window may come from one address."""

FAILURE_SECONDS = 60
"""The window."""

REALM = 'Bearer realm="stenograf"'


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks."""

    owner: str
    """In whose name; tasks that it sends belong to this owner."""
    scopes: frozenset[str]
    key_id: str | None = None
    """None where the service is open."""
    rate: int | None = None
    """Recordings a minute, 0: any number; None: as the settings say."""

    def may(self, scope: str) -> bool:
        """Whether it has the scope, or `admin`, which implies all."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def view(self) -> str | None:
        """Whose tasks it may see, as `JobStore` takes it: its owner's, or None, which is everyone's."""
        return None if "admin" in self.scopes else self.owner


OPEN = Principal(LOCAL_OWNER, frozenset(SCOPES))
"""Whoever asks while the service is open."""


class Access:
    """What tells who asks; one for an application, to be used by many threads."""

    def __init__(self, settings: Settings, database: Database, counter: Counter) -> None:
        """`counter` counts wrong keys.

        Raises `SettingInvalidError` for a signing secret that is too short, and as `Tokens`.
        """
        self.settings = settings
        self.keys = KeyStore(database, settings.api_keys)
        self.tokens = Tokens(settings, database)
        self._counter = counter

    def is_open(self, scope: Scope) -> bool:
        """Whether no key is asked for. May ask the database."""
        if not self.settings.auth:
            return True
        # The setting alone would not do: another server may run this application, on another address.
        local = is_loopback(self.settings.host) and is_loopback(peer_address(scope)) and not is_forwarded(scope)
        return local and not self.keys.exists()

    def identify(self, connection: HTTPConnection) -> Principal:
        """Who asks. May ask the database.

        Raises `UnauthorizedError`, and `RateLimitedError` for an address that has sent too many wrong keys.
        """
        if self.is_open(connection.scope):
            return OPEN
        credential = _credential(connection)
        if credential is None:
            raise UnauthorizedError(
                "This needs an API key, and none was sent.",
                "Send one as X-API-Key or as Authorization: Bearer; stenograf keys create NAME makes one.",
            )
        try:
            if is_token(credential):
                claims = self.tokens.read(credential)
                key = self.keys.check_id(claims.key_id)
                return _principal(key, claims.scopes if "admin" in key.scopes else claims.scopes & set(key.scopes))
            key = self.check(connection, credential)
        except UnauthorizedError:
            add_header(connection, "WWW-Authenticate", f'{REALM}, error="invalid_token"')
            if is_token(credential):
                self._count(connection)
            raise
        return _principal(key, frozenset(key.scopes))

    def check(self, connection: HTTPConnection, secret: str) -> Key:
        """The key of this secret. Raises as `identify` does.

        An address that has sent too many wrong ones is told so. A good key is taken from there all the same: behind one
        address there may be many, of whom one has a mistake in their settings, and 256 random bits are not guessed
        however often one tries. Not so a key of the settings, which may be weak: it must have been good before.
        """
        if self.keys.guessable(secret):
            self._refuse_many(connection, self._counter.look(self._counted(connection), FAILURES, FAILURE_SECONDS))
        try:
            return self.keys.check(secret)
        except UnauthorizedError:
            self._count(connection)
            raise

    def _count(self, connection: HTTPConnection) -> None:
        self._refuse_many(connection, self._counter.take(self._counted(connection), FAILURES, FAILURE_SECONDS))

    def _counted(self, connection: HTTPConnection) -> str:
        return f"failures:{client_network(connection.scope, self.settings)}"

    def _refuse_many(self, connection: HTTPConnection, tally: Tally) -> None:
        if tally.room:
            return
        seconds = max(1, math.ceil(tally.seconds))
        add_header(connection, "Retry-After", str(seconds))
        raise RateLimitedError(
            "Too many wrong API keys came from this address.", f"Check the key, and try again in {seconds} seconds."
        )


def access_of(app: Any) -> Access:
    """The `Access` of an application, made at the first call; raises as its constructor."""
    counter = counter_of(app)
    return kept(app, "access", lambda service: Access(service.settings, service.database, counter))


_BY_HEADER = APIKeyHeader(name="X-API-Key", scheme_name="Key", description="An API key.", auto_error=False)
_BY_BEARER = HTTPBearer(scheme_name="Bearer", description="An API key, or a token.", auto_error=False)
_BY_TOKEN = OAuth2(
    scheme_name="Token",
    description="A token for an hour: the id of a key is the client_id, the key the client_secret.",
    flows=OAuthFlows(clientCredentials=OAuthFlowClientCredentials(tokenUrl=TOKEN_PATH, scopes=SCOPES)),
    auto_error=False,
)


def principal(
    connection: HTTPConnection,
    _key: Annotated[str | None, Security(_BY_HEADER)] = None,
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BY_BEARER)] = None,
    _token: Annotated[str | None, Security(_BY_TOKEN)] = None,
) -> Principal:
    """Who asks: a dependency of endpoints, of WebSockets too. Raises as `Access.identify`.

    The schemes are here for the description of the interface; what they read is read again, with more care.
    """
    state = connection.scope.setdefault("state", {})
    if "principal" not in state:  # FastAPI calls this once for each set of scopes
        state["principal"] = access_of(connection.app).identify(connection)
    found: Principal = state["principal"]
    return found


Who = Annotated[Principal, Security(principal)]
"""The type of a parameter that gets whoever asks, whatever they may do."""


def require(*scopes: str) -> Callable[..., Awaitable[Principal]]:
    """A dependency that gives the `Principal` if it has all these scopes.

    Raises `UnauthorizedError`, `RateLimitedError`, or `ForbiddenError` where a scope is missing.
    """
    unknown = set(scopes) - SCOPES.keys()
    if unknown:
        raise ValueError(f"no such scope: {unknown}")

    asked = Security(principal, scopes=list(scopes))

    async def check(connection: HTTPConnection, who: Principal = asked) -> Principal:
        if missing := [scope for scope in scopes if not who.may(scope)]:
            add_header(
                connection, "WWW-Authenticate", f'{REALM}, error="insufficient_scope", scope="{" ".join(scopes)}"'
            )
            raise ForbiddenError(
                f"This key may not do that: it lacks the scope {missing[0]}.",
                f"Use a key that may {SCOPES[missing[0]]}: stenograf keys create NAME --scopes {','.join(scopes)}.",
            )
        return who

    return check


def _principal(key: Key, scopes: frozenset[str]) -> Principal:
    return Principal(key.owner, scopes, key.id, key.rate)


def _credential(connection: HTTPConnection) -> str | None:
    headers = connection.headers
    if key := headers.get("x-api-key", "").strip():
        return key
    kind, _, bearer = headers.get("authorization", "").strip().partition(" ")
    if kind.lower() == "bearer" and bearer.strip():
        return bearer.strip()
    streams = connection.scope["type"] == "websocket" or (
        connection.scope.get("method") == "GET" and "text/event-stream" in headers.get("accept", "")
    )
    token = connection.query_params.get("access_token", "") if streams else ""
    return token if is_token(token) else None
