"""API keys: who may come in, for what, and in whose name.

A key is 256 random bits behind `stg_`. Only its SHA-256 is kept: nothing can be guessed from the hash of a text that
has so much chance in it, so a slow hash would only make each request dear. A key is found by its hash, so the time that
takes tells nothing of how near a guess came. Keys may also be listed in the settings; those are not in the database.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa

from stenograf.errors import (
    DatabaseError,
    KeyUnknownError,
    OptionInvalidError,
    SettingInvalidError,
    UnauthorizedError,
)
from stenograf.jobs.database import Database
from stenograf.jobs.tables import keys
from stenograf.settings import Settings

SCOPES = {
    "read": "see tasks and results",
    "transcribe": "send recordings; cancel, retry and remove own tasks",
    "models": "download and remove models",
    "metrics": "read the metrics",
    "admin": "all of that, for everyone's tasks, and the keys themselves",
}
"""Scope -> what a key that has it may do."""

Scope = Literal["read", "transcribe", "models", "metrics", "admin"]

DEFAULT_SCOPES: tuple[Scope, ...] = ("read", "transcribe")
"""Of a key that is made without naming any."""

LISTED_SCOPES = ("read", "transcribe", "models", "metrics")
"""Of the keys in the settings. Earlier services knew no scopes, so these may do all but see what others sent."""

SECRET_BYTES = 32

log = logging.getLogger(__name__)

PREFIX_LENGTH = 12
"""Characters of a key that are kept and shown, so that a person can tell which one it is; `stg_` is four of them."""

LISTED_LENGTH = 16
"""A key in the settings with fewer characters is taken, as earlier services took it, with a warning."""

CACHE_SECONDS = 3.0
"""How long a key is believed before the database is asked again: the longest that a revoked key lives on."""

CACHE_KEYS = 10_000
"""So many are remembered at once."""

USED_SECONDS = 60.0
"""`used_at` is written at most so often, not at each request."""

MAX_EXPIRES_IN = 100 * 365 * 86_400.0
"""Seconds: what is more is taken for a mistake."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. Times are seconds since 1970."""

    id: str
    name: str
    owner: str
    """Whose tasks it sees and sends; keys that share an owner see the same tasks."""
    prefix: str
    """The start of the secret."""
    scopes: tuple[str, ...]
    """Some of `SCOPES`, in that order."""
    rate: int | None
    """Recordings a minute, 0: any number; None: as the settings say."""
    created_at: float | None
    """None for a key of the settings."""
    expires_at: float | None
    revoked_at: float | None
    used_at: float | None
    """When it was last used, give or take a minute; not known of keys in the settings."""

    @property
    def listed(self) -> bool:
        """Whether it stands in the settings, not in the database."""
        return self.created_at is None

    def state(self, now: float) -> str:
        """`good`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "good"


class KeyStore:
    """The keys of a database and those listed in the settings; to be used by many threads and processes."""

    def __init__(
        self, database: Database, listed: Sequence[str] = (), *, clock: Callable[[], float] = time.time
    ) -> None:
        """`listed` are the secrets of the setting `api_keys`; raises `SettingInvalidError` where one is too short."""
        self._db = database
        self._clock = clock
        self._cache: dict[str, tuple[Key, float]] = {}
        self._listed: dict[str, Key] = {}
        for number, secret in enumerate(listed, 1):
            key = _listed_key(secret, number)
            self._listed[_hash(secret)] = self._listed[key.id] = key
        self._exists = bool(self._listed)
        self._exists_asked = float("-inf")

    def create(
        self,
        name: str,
        *,
        scopes: Iterable[str] = DEFAULT_SCOPES,
        owner: str | None = None,
        rate: int | None = None,
        expires_in: float | None = None,
    ) -> tuple[Key, str]:
        """Make a key; returns it and its secret, which cannot be had again.

        Without an `owner` it is its own: it sees no other key's tasks. `expires_in` is in seconds. Raises
        `OptionInvalidError` for values that make no sense.
        """
        _check(name, owner, rate, expires_in)
        secret = "stg_" + secrets.token_urlsafe(SECRET_BYTES)
        identity = "key_" + secrets.token_hex(8)
        now = self._clock()
        key = Key(
            id=identity,
            name=name.strip(),
            owner=owner.strip() if owner else identity,
            prefix=secret[:PREFIX_LENGTH],
            scopes=sorted_scopes(scopes),
            rate=rate,
            created_at=now,
            expires_at=None if expires_in is None else now + expires_in,
            revoked_at=None,
            used_at=None,
        )
        values = {item.name: getattr(key, item.name) for item in fields(Key)}
        with self._db.write() as connection:
            connection.execute(keys.insert().values(values | {"scopes": list(key.scopes), "hash": _hash(secret)}))
        self._exists = True
        return key, secret

    def list(self) -> tuple[Key, ...]:
        """All keys, also those that are not good any more, the oldest first; those of the settings before them."""
        with self._db.read() as connection:
            rows = connection.execute(sa.select(keys).order_by(keys.c.created_at, keys.c.id)).all()
        return (*dict.fromkeys(self._listed.values()), *map(_key_from, rows))

    def find(self, which: str) -> Key:
        """The key with this id, prefix or name; of several the one that is good.

        Raises `KeyUnknownError` where there is none, `OptionInvalidError` where there is more than one.
        """
        now = self._clock()
        found = [key for key in self.list() if which in (key.id, key.prefix, key.name)]
        found = [key for key in found if key.id == which] or found
        found = [key for key in found if key.state(now) == "good"] or found
        if not found:
            raise _unknown(which)
        if len(found) > 1:
            raise OptionInvalidError(
                f"{len(found)} keys answer to {which!r}: {', '.join(key.id for key in found)}.", "Name one by its id."
            )
        return found[0]

    def revoke(self, key_id: str) -> Key:
        """End a key for good; other processes notice within `CACHE_SECONDS`. One that has ended already stays so.

        Raises `KeyUnknownError`, and `OptionInvalidError` for a key of the settings.
        """
        if key_id in self._listed:
            raise OptionInvalidError(
                f"The key {key_id} stands in the setting STENOGRAF_API_KEYS.", "Take it out there, and restart."
            )
        ended = sa.func.coalesce(keys.c.revoked_at, self._clock())
        update = keys.update().where(keys.c.id == key_id).values(revoked_at=ended).returning(keys)
        with self._db.write() as connection:
            row = connection.execute(update).first()
        self._cache.clear()
        if row is None:
            raise _unknown(key_id)
        return _key_from(row)

    def check(self, secret: str) -> Key:
        """The key whose secret this is; raises `UnauthorizedError` where it is not good, or `DatabaseError`."""
        return self._good(keys.c.hash, _hash(secret))

    def check_id(self, key_id: str) -> Key:
        """The key of this id, as `check` gives it: for tokens, which die with their key."""
        return self._good(keys.c.id, key_id)

    def exists(self) -> bool:
        """Whether any key was ever made or is listed.

        Keys that have ended count too: a service that asked for keys must not open its doors when the last one expires.
        """
        now = self._clock()
        # What is true once stays true, as rows are never removed.
        if not self._exists and not 0 <= now - self._exists_asked < CACHE_SECONDS:
            with self._db.read() as connection:
                self._exists = connection.execute(sa.select(keys.c.id).limit(1)).first() is not None
            self._exists_asked = now
        return self._exists

    def guessable(self, secret: str) -> bool:
        """Whether it is a key of the settings, which may be weak, and was not used lately: it could be a guess."""
        value = _hash(secret)
        return value in self._listed and value not in self._cache

    def _good(self, column: sa.Column[str], value: str) -> Key:
        now = self._clock()
        key = self._remembered(value, now)
        if key is None and (key := self._listed.get(value)):
            self._remember(value, key, now)
        key = key or self._fetch(column, value, now)
        if key is None or key.revoked_at is not None:
            raise UnauthorizedError("The API key is not known, or is not good any more.", "Ask for a new key.")
        if key.expires_at is not None and key.expires_at <= now:
            when = datetime.fromtimestamp(key.expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
            raise UnauthorizedError(f"The API key has expired on {when}.", "Ask for a new key.")
        return key

    def _remembered(self, value: str, now: float) -> Key | None:
        key, read_at = self._cache.get(value, (None, 0.0))
        return key if 0 <= now - read_at < CACHE_SECONDS else None  # not for ever, where the clock was set back

    def _fetch(self, column: sa.Column[str], value: str, now: float) -> Key | None:
        with self._db.read() as connection:
            row = connection.execute(sa.select(keys).where(column == value)).first()
        if row is None:
            return None
        key = _key_from(row)
        if key.state(now) == "good":
            key = self._used(key, now)
            self._remember(value, key, now)
        return key

    def _remember(self, value: str, key: Key, now: float) -> None:
        if len(self._cache) >= CACHE_KEYS:
            self._cache.clear()
        self._cache[value] = key, now

    def _used(self, key: Key, now: float) -> Key:
        # What lies a little ahead was written by a machine whose clock is: each would undo the other's.
        if key.used_at is not None and -USED_SECONDS * 60 < now - key.used_at < USED_SECONDS:
            return key
        with suppress(DatabaseError), self._db.write() as connection:  # a full disk must not keep a reader out
            connection.execute(keys.update().where(keys.c.id == key.id).values(used_at=now))
        return replace(key, used_at=now)


def sorted_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """The scopes, each once, in the order of `SCOPES`; raises `OptionInvalidError` for none and for unknown ones."""
    asked = set(scopes)
    if unknown := sorted(asked - SCOPES.keys()):
        raise OptionInvalidError(f"There is no scope {unknown[0]!r}.", f"Choose from {', '.join(SCOPES)}.")
    if not asked:
        raise OptionInvalidError("A key without a scope may do nothing.", f"Choose from {', '.join(SCOPES)}.")
    return tuple(scope for scope in SCOPES if scope in asked)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def check_exposure(settings: Settings, store: KeyStore) -> None:
    """See to it that no service starts that others reach but nobody can use.

    Raises `SettingInvalidError` where it would listen on the network, asks for keys, and there is none.
    """
    good = any(key.state(time.time()) == "good" for key in store.list())
    if settings.auth and not is_loopback(settings.host) and not good:
        raise SettingInvalidError(
            f"The service would listen on {settings.host}, where others reach it, and no API key is good.",
            "Make one with stenograf keys create NAME, or let everyone in with --no-auth.",
        )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _listed_key(secret: str, number: int) -> Key:
    if len(secret) < LISTED_LENGTH:
        log.warning(
            "API key %d of the setting STENOGRAF_API_KEYS has only %d characters and can be guessed: "
            "write %d or more, at random (openssl rand -hex 24)",
            number,
            len(secret),
            LISTED_LENGTH,
        )
    # Not the start of the hash itself, so that no list or log that shows the id shows a part of it.
    identity = "env_" + _hash(f"stenograf listed key {secret}")[:16]
    return Key(
        id=identity,
        name=f"listed {number}",
        owner=identity,
        prefix=secret[:4],  # such a key may be weak: as little of it as can be told from another
        scopes=LISTED_SCOPES,
        rate=None,
        created_at=None,
        expires_at=None,
        revoked_at=None,
        used_at=None,
    )


def _key_from(row: sa.Row[tuple[object, ...]]) -> Key:
    values = {item.name: getattr(row, item.name) for item in fields(Key)}
    return Key(**values | {"scopes": tuple(values["scopes"])})


def _unknown(which: str) -> KeyUnknownError:
    return KeyUnknownError(f"There is no API key {which[:64]!r}.", "stenograf keys list shows them.")


def _check(name: str, owner: str | None, rate: int | None, expires_in: float | None) -> None:
    for what, text, most in (("name", name, 100), ("owner", owner, 200)):
        if text is not None and not (0 < len(text.strip()) <= most and text.isprintable()):
            raise OptionInvalidError(
                f"The {what} of a key cannot be {text[:64]!r}.", f"Write 1 to {most} printable characters."
            )
    if rate is not None and not 0 <= rate <= 1_000_000:
        raise OptionInvalidError(
            f"The rate of a key cannot be {rate}.", "Write recordings a minute, up to 1000000; 0: any number."
        )
    if expires_in is not None and not 0 < expires_in <= MAX_EXPIRES_IN:
        raise OptionInvalidError(f"A key cannot expire in {expires_in:g} seconds.", "Write up to 100 years.")
