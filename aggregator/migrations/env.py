"""Alembic runs this file; the connection is handed over by `aggregator/store.py`, never read from a file."""

from alembic import context

from aggregator.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
