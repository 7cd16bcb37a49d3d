"""The one file of rows: what was committed stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from aggregator.database import Database, revisions
from histofed.base import checkup
from histofed.base.errors import BadData, Damaged


def test_a_commit_survives_a_power_cut(tmp_path: Path) -> None:
    with contextlib.closing(Database(tmp_path / "state.db")) as database, database.writing() as connection:
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2, "FULL: the log is synced at each commit"
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "wal"


def test_a_kill_behind_the_first_migration_leaves_a_database_of_today(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from aggregator.database import Database; Database(Path({str(tmp_path / 'state.db')!r}))"
    )
    armed = {"HISTOFED_FAILPOINTS": "aggregator.rows_committed@Database._migrate=kill"}
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, **armed}, check=False)
    assert killed.returncode == -signal.SIGKILL
    with contextlib.closing(Database(tmp_path / "state.db")) as database, database.reading() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == revisions()[0]


@pytest.mark.parametrize("kept", [0, 100])
def test_a_file_that_is_no_database_is_told_as_the_doctor_tells_it(tmp_path: Path, kept: int) -> None:
    """Junk from its first byte on, or behind the header: no disk is full, and no restart repairs it."""
    path = tmp_path / "state.db"
    Database(path).close()
    path.write_bytes(path.read_bytes()[:kept] + b"junk" * 2000)
    with pytest.raises(Damaged, match=r"cannot be read .*: stop the daemon, restore a backup$") as refused:
        Database(path)
    assert refused.value.exit_code == 78
    with pytest.raises(BadData) as found, checkup.opened(path):
        pass
    assert str(found.value) == str(refused.value)
