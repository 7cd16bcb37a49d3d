"""What the agent must remember over a restart: SQLite, one small file, written before anything is acknowledged.

Four things: the *instance* (random, made once; tells a reconnection from a second agent with the same identity), the
*task in hand* (accepted and not yet over, also across a restart), per experiment the *private round* (whose private
tensors training starts from), and the *history* (how far the aggregator's went when this site last heard of it, which never
goes back while the aggregator is the same). WAL with synchronous=FULL: a commit that returned survives a power cut.

The daemon is the only caller, from its loop; a commit costs well under a millisecond.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from histofed.audit.history import History
from histofed.base import checkup
from histofed.base.clock import Clock, iso
from histofed.base.errors import CannotWriteState, VersionMismatch
from histofed.base.failpoints import failpoint
from histofed.base.ids import Digest, ExperimentId, TaskKey, digest
from histofed.base.owner import database_files, denial

SCHEMA: Final = 2
"""`PRAGMA user_version` of the files this version writes."""

_TABLES: Final = """
CREATE TABLE instance (only INTEGER PRIMARY KEY CHECK (only = 1), id TEXT NOT NULL) STRICT;
CREATE TABLE task_in_hand (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    task TEXT NOT NULL, attempt INTEGER NOT NULL, experiment_sha256 TEXT NOT NULL, base TEXT NOT NULL,
    since TEXT NOT NULL
) STRICT;
CREATE TABLE private_round (experiment TEXT PRIMARY KEY, round INTEGER NOT NULL) STRICT;
"""
_HISTORY: Final = """
CREATE TABLE history (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    ca TEXT NOT NULL, epoch INTEGER NOT NULL, records INTEGER NOT NULL, head TEXT NOT NULL
) STRICT;
"""
_UPGRADES: Final = (_TABLES, _HISTORY)
"""What brings a file from schema 0, 1, ... to the next one."""


@dataclass(frozen=True)
class TaskInHand:
    """The one task that this agent works on."""

    task: TaskKey
    attempt: int
    experiment_sha256: Digest
    base: Digest
    since: str
    """When it was accepted, RFC 3339."""


class State:
    """The open state file. Every method is one transaction; all raise `CannotWriteState`."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Open or create. Raises `VersionMismatch` for a file of a newer version, `Damaged` for one that is no database."""
        self._clock = clock
        with _disk_errors(path):
            self._database = sqlite3.connect(path, isolation_level=None)
            try:
                self._prepare(path)
            except BaseException:
                self._database.close()
                raise
        self._path = path

    def _prepare(self, path: Path) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._database.execute(f"PRAGMA {pragma}")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise VersionMismatch(
                f"{path} was written by a newer histofed (schema {version}, this version knows {SCHEMA}); "
                "install that version again, state is never downgraded"
            )
        if version < SCHEMA:
            tables = " ".join(_UPGRADES[version:])
            self._database.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = {SCHEMA}; COMMIT;")
            path.chmod(0o600)
        self._database.execute("INSERT OR IGNORE INTO instance VALUES (1, ?)", (secrets.token_hex(16),))

    @property
    def instance(self) -> str:
        """32 hexadecimal digits, the same for the life of this state directory."""
        with _disk_errors(self._path):
            (found,) = self._database.execute("SELECT id FROM instance").fetchone()
        return str(found)

    def task_in_hand(self) -> TaskInHand | None:
        """The task that was begun and not yet handed over."""
        with _disk_errors(self._path):
            row = self._database.execute("SELECT task, attempt, experiment_sha256, base, since FROM task_in_hand").fetchone()
        if row is None:
            return None
        return TaskInHand(TaskKey.parse(row[0]), row[1], digest(row[2]), digest(row[3]), row[4])

    def take(self, task: TaskKey, attempt: int, experiment_sha256: Digest, base: Digest) -> None:
        """`task` is in hand."""
        row = (str(task), attempt, experiment_sha256, base, iso(self._clock.now()))
        with self._committing():
            self._database.execute("INSERT OR REPLACE INTO task_in_hand VALUES (1, ?, ?, ?, ?, ?)", row)

    def put_down(self) -> None:
        """Nothing is in hand."""
        with self._committing():
            self._database.execute("DELETE FROM task_in_hand")

    def private_rounds(self) -> dict[ExperimentId, int]:
        """By experiment, the round whose private tensors are the committed ones; none without any."""
        with _disk_errors(self._path):
            rows = self._database.execute("SELECT experiment, round FROM private_round WHERE round > 0 ORDER BY experiment")
            return {ExperimentId(name): int(number) for name, number in rows}

    def private_round(self, experiment: ExperimentId) -> int:
        """The round whose private tensors are this site's committed ones; 0 for none."""
        with _disk_errors(self._path):
            row = self._database.execute("SELECT round FROM private_round WHERE experiment = ?", (experiment,)).fetchone()
        return 0 if row is None else int(row[0])

    def set_private_round(self, experiment: ExperimentId, number: int) -> None:
        """The private tensors of round `number` are the committed ones; 0 for a fresh start."""
        with self._committing():
            self._database.execute("INSERT OR REPLACE INTO private_round VALUES (?, ?)", (experiment, number))

    def history(self, ca: Digest) -> History | None:
        """The newest history of the aggregator that has this CA; None before the first hello."""
        with _disk_errors(self._path):
            row = self._database.execute("SELECT epoch, records, head FROM history WHERE ca = ?", (ca,)).fetchone()
        return None if row is None else History.parse(row[0], row[1], row[2])

    def note_history(self, ca: Digest, heard: History) -> None:
        """The aggregator told how far its history goes; an older word than the one that is known changes nothing."""
        known = self.history(ca)
        if known is not None and (heard.older_than(known) or heard == known):
            return
        with self._committing():
            row = (ca, heard.epoch, heard.head.sequence, heard.head.hash)
            self._database.execute("INSERT OR REPLACE INTO history VALUES (1, ?, ?, ?, ?)", row)

    def begin_anew(self) -> None:
        """This file came out of a backup: another instance goes on with it, with nothing in hand."""
        with _disk_errors(self._path):
            self._database.execute("DELETE FROM task_in_hand")
            self._database.execute("UPDATE instance SET id = ?", (secrets.token_hex(16),))

    def close(self) -> None:
        """Release the file."""
        self._database.close()

    @contextlib.contextmanager
    def _committing(self) -> Iterator[None]:
        """Around one transaction, durable when the block ends."""
        with _disk_errors(self._path):
            yield
        failpoint("agent.rows_committed")


def lost(path: Path) -> str | None:
    """What is said of the state file of an agent that ran, where it is gone or empty; None for any other."""
    sentence = checkup.lost(path)
    return sentence and f"{sentence}, or start the agent, which forgets what it saw of the aggregator's history and says so"


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if (refused := denial(*database_files(path)) or checkup.damage(path, error)) is not None:
            raise refused from error
        raise CannotWriteState(f"cannot use the agent's state {path}: {error}; free space or repair the disk") from error
