"""The one file of rows: what was committed stays."""

from __future__ import annotations

import contextlib
from pathlib import Path

import sqlalchemy as sa

from aggregator.database import Database


def test_a_commit_survives_a_power_cut(tmp_path: Path) -> None:
    with contextlib.closing(Database(tmp_path / "state.db")) as database, database.writing() as connection:
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2, "FULL: the log is synced at each commit"
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "wal"
