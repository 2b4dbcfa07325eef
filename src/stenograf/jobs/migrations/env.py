"""What Alembic runs; the connection comes from `Database.migrate`, in a transaction that is begun already."""

from __future__ import annotations

from alembic import context

from stenograf.jobs.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=False)
with context.begin_transaction():
    context.run_migrations()
