"""What survives the aggregator's lives: its database, journal and blobs, real files in a folder of their own.

A life sees the database and the journal through a fence: when its machine has no power any more, nothing that it still does
reaches them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import sqlalchemy as sa

from aggregator.database import Database
from histofed.audit.journal import Journal
from histofed.audit.verify import Head
from histofed.base.clock import Clock
from histofed.base.durable import make_directory
from histofed.base.errors import CannotWriteState
from tests.faults.simulation.powercut import Machine


@dataclass(frozen=True)
class AggregatorDisk:
    """The state directory, and the one open database of the whole simulation: what is committed stays committed."""

    folder: Path
    database: Database

    @classmethod
    def create(cls, folder: Path) -> AggregatorDisk:
        """An empty one."""
        return cls(folder, Database(make_directory(folder) / "state.db"))

    @property
    def journal(self) -> Path:
        """The journal's folder."""
        return make_directory(self.folder / "journal")

    @property
    def blobs(self) -> Path:
        """The blobs' folder."""
        return make_directory(self.folder / "blobs")

    @property
    def scratch(self) -> Path:
        """Where the arithmetic writes."""
        return make_directory(self.folder / "scratch")


class FencedDatabase:
    """The database as one life sees it."""

    def __init__(self, database: Database, machine: Machine) -> None:
        self._database = database
        self._machine = machine

    @property
    def writes(self) -> int:
        """As the database counts them, over all lives."""
        return self._database.writes

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction; the disk may refuse its commit."""
        self._machine.pass_by("fence")
        with _as_the_database_says_it(), self._database.writing() as connection:
            yield connection
            self._machine.pass_by("database.before_commit")

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view."""
        self._machine.pass_by("fence")
        with self._database.reading() as connection:
            yield connection


@contextmanager
def _as_the_database_says_it() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWriteState(
            f"the aggregator's database refused ({error.strerror}); free space or repair the disk, nothing was acknowledged"
        ) from error


class FencedJournal:
    """The journal as one life sees it."""

    def __init__(self, directory: Path, clock: Clock, machine: Machine) -> None:
        self._journal = Journal(directory, clock, "simulation")
        self._machine = machine

    def append(self, action: str, **content: Any) -> int:
        """One record."""
        self._machine.pass_by("fence")
        return self._journal.append(action, **content)

    @property
    def head(self) -> Head:
        """The last record."""
        return self._journal.head

    def contains(self, head: Head) -> bool:
        """Whether this record is in it."""
        return self._journal.contains(head)

    def close(self) -> None:
        """Release the lock; also a power cut does that."""
        self._journal.close()

    def tear(self, random: Random) -> None:
        """The power went: of what was not acknowledged, some part is on the disk."""
        segment = self._journal._segment
        size = segment.path.stat().st_size
        os.truncate(segment.path, random.randint(min(segment.size, size), size))
        self.close()


def no_space() -> OSError:
    """What a full disk says."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
