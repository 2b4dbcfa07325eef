"""For several machines: what a job needs of its worker, requests that are counted together, shared secrets.

Also indexes for what is asked of a million jobs, and on PostgreSQL room in each page for heartbeats, which then need
not touch an index.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    op.add_column("jobs", sa.Column("need", sa.String(length=3), server_default="cpu", nullable=False))
    op.drop_index("ix_jobs_queue", table_name="jobs")
    op.create_index("ix_jobs_queue", "jobs", ["state", "suspect", "lane", "need", "priority", "run_at", "id"])
    op.create_index("ix_jobs_created_at", "jobs", ["created_at", "id"])
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"])
    op.create_table(
        "requests",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("counted", sa.String(length=300), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
    )
    op.create_index("ix_requests_counted", "requests", ["counted", "at"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secrets")),
    )
    if op.get_bind().dialect.name == "postgresql":
        # A queue's rows are written often: dead ones must be cleared away long before a fifth of the table is dead.
        op.execute(
            "ALTER TABLE jobs SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, "
            "autovacuum_vacuum_threshold = 1000, autovacuum_analyze_scale_factor = 0.02)"
        )
        op.execute(
            "ALTER TABLE requests SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)"
        )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("secrets")
    op.drop_table("requests")
    op.drop_index("ix_jobs_finished_at", table_name="jobs")
    op.drop_index("ix_jobs_created_at", table_name="jobs")
    op.drop_index("ix_jobs_queue", table_name="jobs")
    op.create_index("ix_jobs_queue", "jobs", ["state", "suspect", "lane", "priority", "run_at", "id"])
    op.drop_column("jobs", "need")
