"""The aggregator's database: SQLite (WAL, synchronous=FULL) through SQLAlchemy Core, brought up to date by Alembic.

Each `writing` block is one transaction and is durable when it ends. What the tables mean is said by their users:
`aggregator/store.py` (experiments, rounds, models), `aggregator/past.py` (what is removed of them),
`aggregator/members.py` (sites, certificates, tokens).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from histofed.base.checkup import damage
from histofed.base.errors import CannotWriteState, VersionMismatch
from histofed.base.failpoints import failpoint
from histofed.base.owner import database_files, denial

_READS: Final = "histofed_reads"
"""Execution option of connections that only read."""
# it reports its own start at length, each time
logging.getLogger("alembic").setLevel(logging.WARNING)


class Database:
    """One file. Not for several threads at once: the daemon's loop is its only user."""

    def __init__(self, path: Path) -> None:
        """Open or create the database and bring its tables up to date.

        Raises `CannotWriteState`, `Damaged`, and `VersionMismatch` when a newer release has written it.
        """
        self._path = path
        self.engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self.engine, "connect", _configure_sqlite)
        sa.event.listen(self.engine, "begin", _begin)
        self.writes = 0
        """Transactions that were begun: what was read stays true as long as this does not change."""
        self._reader = self.engine.execution_options(**{_READS: True})
        with self._state_errors():
            self._migrate()

    @property
    def folder(self) -> Path:
        """The state directory."""
        return self._path.parent

    def close(self) -> None:
        """Release the file."""
        self.engine.dispose()

    def _migrate(self) -> None:
        scripts = _scripts()
        known = revisions()
        with self.engine.connect() as connection, connection.begin():
            current = MigrationContext.configure(connection).get_current_revision()
            if current is not None and current not in known:
                raise VersionMismatch(
                    f"the state was written by a newer histofed (schema {current}): install that release again, "
                    "or restore a backup made with this one"
                )
            scripts.attributes["connection"] = connection
            command.upgrade(scripts, "head")
        if current != known[0]:
            failpoint("aggregator.rows_committed")

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction, durable when the block ends. Raises `CannotWriteState`; then nothing has changed."""
        self.writes += 1
        with self._state_errors(), self.engine.begin() as connection:
            yield connection
        failpoint("aggregator.rows_committed")

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view; it waits for nobody who writes."""
        with self._state_errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def _state_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if (refused := denial(*database_files(self._path)) or damage(self._path, error.orig)) is not None:
                raise refused from error
            raise CannotWriteState(
                f"the aggregator's database refused ({error.orig}); free space or repair the disk, nothing was acknowledged"
            ) from error


def _scripts() -> Config:
    scripts = Config()
    scripts.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return scripts


def revisions() -> tuple[str, ...]:
    """Schemas that this release knows, the newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_scripts()).walk_revisions())


def _configure_sqlite(connection: Any, _record: object) -> None:
    # the driver must not begin transactions by itself, or BEGIN IMMEDIATE would come second
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    """Begin past SQLAlchemy, whose way takes ten times as long; who writes waits for the others at once, not at the end."""
    reads = connection.get_execution_options().get(_READS, False)
    driver: Any = connection.connection.dbapi_connection
    driver.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
