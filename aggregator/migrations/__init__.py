"""Alembic's folder: each release's change of the tables, forward only."""
