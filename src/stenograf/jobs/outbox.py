"""The outbox: a webhook is promised in the transaction that ends its job, and sent later by `webhooks.py`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from stenograf.jobs.job import State
from stenograf.jobs.tables import silenced, webhooks

NAME_CHARACTERS = 200
ERROR_CHARACTERS = 1000
"""So much of a file's name, and of each sentence about an error (which may hold that name), goes into a message. With
six bytes for a character, the most that JSON needs, a message stays under the 20 kB of Standard Webhooks."""

LONGEST_WAIT = 100_000.0
"""Seconds; a little more than the longest wait of `webhooks.SCHEDULE`."""

LONGEST_LEASE = 120.0
"""Seconds; more than any sender holds a message."""

_LINKS = ("task", "result")


def promise(connection: Connection, now: float, row: RowMapping, state: State) -> None:
    """Put the message that job `row` came to rest in `state` into the outbox, if one was asked for.

    The body follows Standard Webhooks: `{type, timestamp, data}`, ids and links and no transcript. Its links are paths;
    `completed` makes addresses of them.
    """
    url = row["webhook_url"]
    if not url or _is_silenced(connection, row["owner"], url):
        return
    task = f"/api/v1/tasks/{row['id']}"
    body = {
        "type": f"task.{state}",
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {
            "task_id": row["id"],
            "status": state,
            "filename": row["filename"][:NAME_CHARACTERS],
            "attempt": row["attempt"],
            # A cancelled job may still have the error of an attempt before.
            "error": {name: text[:ERROR_CHARACTERS] for name, text in row["error"].items()}
            if state == "error"
            else None,
            "task": task,
            "result": f"{task}/result" if state == "done" else None,
        },
    }
    connection.execute(
        webhooks.insert().values(
            id=f"msg_{uuid.uuid4().hex}",
            job_id=row["id"],
            owner=row["owner"],
            url=url,
            secret=row["webhook_secret"],
            body=_compact(body),
            state="pending",
            next_at=now,
            created_at=now,
        )
    )


def completed(body: str, public_url: str | None) -> bytes:
    """The body of a message as it is sent: its links begin with `public_url`, where there is one."""
    if public_url is None:
        return body.encode()
    message = json.loads(body)
    data = message["data"]
    data.update({name: public_url + data[name] for name in _LINKS if data[name] is not None})
    return _compact(message).encode()


def silence(connection: Connection, owner: str, url: str) -> int:
    """An address is among the `silenced`: what waits for it has failed.

    Returns how many messages waited. The same address of another owner is left alone.
    """
    waiting = webhooks.update().where(webhooks.c.owner == owner, webhooks.c.url == url, webhooks.c.state == "pending")
    gone = waiting.values(state="failed", failure="Its address has answered 410 to another message.", lease_until=None)
    return connection.execute(gone).rowcount


def mend(connection: Connection, now: sa.ColumnElement[float]) -> None:
    """The database's clock was set: no message waits for longer than it may."""
    pending = webhooks.update().where(webhooks.c.state == "pending")
    connection.execute(pending.where(webhooks.c.next_at > now + LONGEST_WAIT).values(next_at=now))
    connection.execute(pending.where(webhooks.c.lease_until > now + LONGEST_LEASE).values(lease_until=None))


def _is_silenced(connection: Connection, owner: str, url: str) -> bool:
    found = sa.select(sa.literal(1)).where(silenced.c.owner == owner, silenced.c.url == url)
    return connection.execute(found).first() is not None


def _compact(message: Mapping[str, Any]) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
