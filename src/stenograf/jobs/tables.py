"""The tables, as SQLAlchemy Core has them; `migrations/` brings a database to this shape."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("state", String(10), nullable=False),
    Column("lane", String(5), nullable=False),
    Column("need", String(3), nullable=False, server_default="cpu"),
    Column("priority", Integer, nullable=False),
    Column("options", JSON, nullable=False),
    Column("filename", Text, nullable=False),
    Column("search", Text, nullable=False),
    Column("file", Text),
    Column("size", BigInteger, nullable=False),
    Column("digest", String(64)),
    Column("url", Text),
    Column("sync", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("run_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("expires_at", Double),
    Column("retention", Double),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("suspect", Boolean, nullable=False, server_default=sa.false()),
    Column("lease_owner", Text),
    Column("lease_until", Double),
    Column("dispatched_at", Double),
    Column("progress", Double, nullable=False, server_default="0"),
    Column("stage", String(20), nullable=False),
    Column("audio_seconds", Double),
    Column("model", Text),
    Column("engine", Text),
    Column("device", Text),
    Column("compute_type", Text),
    Column("language", Text),
    Column("error", JSON(none_as_null=True)),
    Column("webhook_url", Text),
    Column("webhook_secret", Text),
    Column("request_id", Text),
    Column("fingerprint", String(64)),
    CheckConstraint("state IN ('queued', 'processing', 'done', 'error', 'cancelled')", name="state"),
    CheckConstraint("lane IN ('short', 'long')", name="lane"),
    Index("ix_jobs_queue", "state", "suspect", "lane", "need", "priority", "run_at", "id"),
    Index("ix_jobs_owner", "owner", "created_at", "id"),
    Index("ix_jobs_created_at", "created_at", "id"),
    Index("ix_jobs_finished_at", "finished_at"),
    Index("ix_jobs_expires_at", "expires_at"),
    Index("ix_jobs_fingerprint", "fingerprint"),
)
"""One row a job; `Job` tells each column's life. `search` is the name in small letters, for looking things up."""

chunks = Table(
    "chunks",
    metadata,
    Column("job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("index", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("result", JSON, nullable=False),
)
"""Chunks that are read already: a retry goes on after the last one."""

transcripts = Table(
    "transcripts",
    metadata,
    Column("job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("transcript", JSON, nullable=False),
    Column("text", Text, nullable=False),
)
"""The result of a job that is done, in the JSON of the wire; `text` is in small letters, for looking things up."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("owner", String(200), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("job_id", String(36), nullable=False),
    Column("created_at", Double, nullable=False),
)
"""Idempotency keys that were used; kept for a day."""

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("job_id", String(36), nullable=False, index=True),
    Column("owner", String(200), nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", Text),
    Column("body", Text, nullable=False),
    Column("state", String(10), nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("next_at", Double, nullable=False),
    Column("lease_until", Double),
    Column("status", Integer),
    Column("failure", Text),
    Column("created_at", Double, nullable=False),
    CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
    Index("ix_webhooks_due", "state", "next_at"),
)
"""The outbox: messages that were promised in the transaction that ended a job."""

silenced = Table(
    "silenced",
    metadata,
    Column("owner", String(200), primary_key=True),
    Column("url", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
)
"""Webhook addresses that answered 410: nothing is sent to them any more."""

keys = Table(
    "keys",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", Text, nullable=False),
    Column("owner", String(200), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("prefix", String(16), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("rate", Integer),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("used_at", Double),
)
"""API keys, as hashes."""

requests = Table(
    "requests",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("counted", String(300), nullable=False),
    Column("at", Double, nullable=False),
    Index("ix_requests_counted", "counted", "at"),
)
"""What callers have asked lately, where several replicas count it together and there is no Redis."""

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)
"""What all replicas must share and nobody has set, such as what tokens are signed with."""

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("file", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("options", JSON, nullable=False),
    Column("job_id", String(36)),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)
"""Resumable uploads that are under way; how many bytes are there, the file itself tells."""
