"""Tokens: what a key gives for an hour, so that the key itself stays at home. JWT, signed with HMAC-SHA256 (RFC 7519).

A token says which key it comes from and which of the key's scopes it has. Whose tasks it sees, the key says at that
moment; a token whose key has ended is refused.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jwt
import sqlalchemy as sa
from filelock import FileLock

from stenograf.errors import SettingInvalidError, UnauthorizedError
from stenograf.jobs import tables
from stenograf.jobs.database import Database, insert_new
from stenograf.keys import Key
from stenograf.settings import Settings

ALGORITHM = "HS256"
"""The only one that is taken: a token does not choose how it is checked."""

PARTY = "stenograf"
"""`iss` and `aud`: made here, for here."""

SECRET_LENGTH = 32
"""The fewest characters of a secret; RFC 7518, 3.2 asks for as many bytes as the hash has."""

SECRET_NAME = "jwt"  # noqa: S105 - a name
"""The row of the table `secrets`."""

LEEWAY_SECONDS = 10
"""How far clocks may be apart."""

LOCK_SECONDS = 30
"""How long another process may take to make the secret."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says that was made here and is not over."""

    key_id: str
    scopes: frozenset[str]


class Tokens:
    """Makes and reads tokens; to be used by many threads."""

    def __init__(self, settings: Settings, database: Database | None = None) -> None:
        """Raises `SettingInvalidError` where the secret is too short, or cannot be kept; `DatabaseError`."""
        self._secret = signing_secret(settings, database)
        self.lifetime = settings.token_lifetime
        """Seconds."""

    def issue(self, key: Key, scopes: Iterable[str]) -> str:
        """A token for the key with these of its scopes; it ends with the key, if not before."""
        now = int(time.time())
        claims = {
            "iss": PARTY,
            "aud": PARTY,
            "sub": key.id,
            "owner": key.owner,
            "scope": " ".join(scopes),
            "iat": now,
            "exp": now + self.lifetime,
            "jti": secrets.token_hex(16),
        }
        return jwt.encode(claims, self._secret, ALGORITHM)

    def read(self, token: str) -> Claims:
        """What the token says; raises `UnauthorizedError` where it was not made here, was changed or is over."""
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                audience=PARTY,
                issuer=PARTY,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "sub", "jti", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthorizedError("The token has expired.", "Get a new one from /api/v1/token.") from None
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise UnauthorizedError("The token is not valid.", "Get a new one from /api/v1/token.") from None
        return Claims(claims["sub"], frozenset(str(claims.get("scope", "")).split()))


def is_token(credential: str) -> bool:
    """Whether a credential looks like a token and not like a key: `{"`, in Base64, and two dots."""
    return credential.startswith("eyJ") and credential.count(".") == 2


def signing_secret(settings: Settings, database: Database | None = None) -> bytes:
    """The setting `jwt_secret`; or what replicas share in their database; or the file `jwt.key` in `data_dir`.

    What is not there is made: of several processes that start at once one makes it. Raises `SettingInvalidError`, and
    `DatabaseError`.
    """
    if settings.jwt_secret is not None:
        if len(settings.jwt_secret) < SECRET_LENGTH:
            raise SettingInvalidError(
                f"The setting STENOGRAF_JWT_SECRET has only {len(settings.jwt_secret)} characters.",
                f"Write {SECRET_LENGTH} or more, at random: openssl rand -hex 32.",
            )
        return settings.jwt_secret.encode()
    if database is not None and database.is_shared:
        return _shared(database)
    file = settings.data_dir / "jwt.key"
    try:
        if not file.exists():
            _make(file)
        secret = file.read_bytes()
    except OSError as error:
        raise SettingInvalidError(
            f"The file {file}, which signs tokens, cannot be read or made: {error.strerror or error}.",
            "Check its permissions, or set STENOGRAF_JWT_SECRET.",
        ) from error
    if len(secret) < SECRET_LENGTH:
        raise SettingInvalidError(f"The file {file} is not whole.", "Remove it: a new one is made at the next start.")
    return secret


def _shared(database: Database) -> bytes:
    wanted = sa.select(tables.secrets.c.value).where(tables.secrets.c.name == SECRET_NAME)
    with database.read() as connection:
        value = connection.execute(wanted).scalar()
    if value is None:
        made = {"name": SECRET_NAME, "value": secrets.token_urlsafe(48), "created_at": database.now}
        with database.write() as connection:
            insert_new(connection, tables.secrets, made)
            value = connection.execute(wanted).scalar_one()  # another replica's, where that was quicker
    if len(value) < SECRET_LENGTH:
        raise SettingInvalidError(
            f"The row {SECRET_NAME} of the table secrets in {database.shown}, which signs tokens, is not whole.",
            "Remove it and start all replicas anew: a new one is made.",
        )
    return str(value).encode()


def _make(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=LOCK_SECONDS):
        if file.exists():  # another process was quicker
            return
        # Whoever sees the name sees the whole file; mkstemp lets only this user read it.
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".jwt.")
        with os.fdopen(handle, "w", encoding="ascii") as temporary:
            temporary.write(secrets.token_urlsafe(48))
            temporary.flush()
            os.fsync(temporary.fileno())
        Path(name).replace(file)
