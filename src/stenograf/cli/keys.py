"""`stenograf keys`: make, list and revoke API keys."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click

from stenograf.cli.console import Reporter, new_table, print_table, printable, printing, table_width
from stenograf.jobs.database import Database
from stenograf.keys import DEFAULT_SCOPES, SCOPES, Key, KeyStore
from stenograf.setting_sources import load

COLUMNS = {"id": 0, "name": 0, "key": 0, "scopes": 0, "owner": 130, "rate": 130, "made": 130, "used": 95, "state": 0}
"""Title -> how wide the terminal must be to show it without breaking every row."""


UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
"""Unit of a lifetime -> seconds."""


class Lifetime(click.ParamType[float]):
    """A length of time: `30d`, `12h`, `90m`, `2w`; gives seconds."""

    name = "lifetime"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,6})\s*([mhdw])", value.strip().lower())
        if match is None:
            self.fail(f"{value!r} is no length of time. Write such as 30d, 12h, 90m or 2w.", param, ctx)
        return float(int(match[1]) * UNITS[match[2]])


@click.group("keys")
def command() -> None:
    """Make, list and revoke API keys."""


@command.command("create")
@click.argument("name")
@click.option(
    "--scopes",
    default=",".join(DEFAULT_SCOPES),
    show_default=True,
    metavar="A,B",
    help=f"What it may do: {', '.join(SCOPES)}.",
)
@click.option("--owner", help="Keys with the same owner see the same tasks. Default: it sees its own only.")
@click.option("--rate", type=int, metavar="N", help="Recordings a minute; 0: any number. Default: as the settings say.")
@click.option("--expires", type=Lifetime(), metavar="TIME", help="When it ends, such as 30d. Default: never.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(name: str, scopes: str, owner: str | None, rate: int | None, expires: float | None, as_json: bool) -> None:
    """Make a key and print it; it cannot be shown again."""
    named = [scope for part in scopes.split(",") if (scope := part.strip().lower())]
    with _store() as store, printing():
        key, secret = store.create(name, scopes=named, owner=owner, rate=rate, expires_in=expires)
        click.echo(json.dumps(_row(key) | {"secret": secret}, ensure_ascii=False, indent=2) if as_json else secret)
        sys.stdout.flush()
    told = Reporter(quiet=False, verbose=False)
    ends = f", until {_time(key.expires_at)}" if key.expires_at is not None else ""
    told.say(f"✓ {printable(key.name)} ({key.id}) may {', '.join(key.scopes)}{ends}.")
    told.say(
        "From now on every request needs a key, on this machine's own address too; those made before were local's."
    )
    told.say("Keep the key now: only its hash is kept here. Send it as X-API-Key, or as Authorization: Bearer.")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_keys(as_json: bool) -> None:
    """List the keys, those that have ended too; not their secrets."""
    with _store() as store:
        keys = store.list()
    if as_json:
        click.echo(json.dumps([_row(key) for key in keys], ensure_ascii=False, indent=2))
        return
    if not keys:
        click.echo("There is no key. Make one with: stenograf keys create NAME", err=True)
        return
    shown = [title for title, width in COLUMNS.items() if width <= table_width()]
    table = new_table(*shown, right=("rate",))
    for key in keys:
        cells = _cells(key)
        table.add_row(*(cells[title] for title in shown))
    print_table(table)


@command.command("revoke")
@click.argument("which", metavar="KEY")
def revoke(which: str) -> None:
    """End a key, by its id, its first characters as the list shows them, or its name. Its tasks stay."""
    with _store() as store:
        key = store.revoke(store.find(which).id)
    Reporter(quiet=False, verbose=False).say(
        f"✓ revoked {printable(key.name)} ({key.id}); a running service notices within seconds"
    )


@contextmanager
def _store() -> Iterator[KeyStore]:
    settings = load().settings
    database = Database(settings.database)
    try:
        database.migrate()
        yield KeyStore(database, settings.api_keys)
    finally:
        database.close()


def _cells(key: Key) -> dict[str, str]:
    return {
        "id": key.id,
        "name": printable(key.name),
        "key": f"{key.prefix}…",
        "scopes": ", ".join(key.scopes),
        "owner": printable(key.owner),
        "rate": "" if key.rate is None else str(key.rate),
        "made": "in the settings" if key.listed else _time(key.created_at) or "",
        "used": _time(key.used_at) or "",
        "state": f"good until {_time(key.expires_at)}" if key.expires_at and _state(key) == "good" else _state(key),
    }


def _row(key: Key) -> dict[str, object]:
    times = ("created_at", "expires_at", "revoked_at", "used_at")
    return {
        "id": key.id,
        "name": key.name,
        "owner": key.owner,
        "prefix": key.prefix,
        "scopes": list(key.scopes),
        "rate": key.rate,
        "state": _state(key),
        "listed": key.listed,
        **{name: _time(getattr(key, name)) for name in times},
    }


def _state(key: Key) -> str:
    return key.state(time.time())


def _time(seconds: float | None) -> str | None:
    """ISO 8601, in UTC, to the second."""
    return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")
