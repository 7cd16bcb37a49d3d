"""Takes parts of a running daemon's state as they were at one moment, without stopping it.

A database is copied by SQLite's online backup in one step, so that the copy is one transaction's view. Files that are never
changed, only added and removed (blobs, private tensors, finished updates), are hard-linked, which takes no time and keeps
them for the copy whatever the daemon removes meanwhile. A journal only grows: its end is noted, and read up to there.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from histofed.audit.record import GENESIS, parse_line
from histofed.audit.segments import segments
from histofed.audit.verify import DAMAGED, Head
from histofed.backup import journals, swap
from histofed.backup.archive import Source
from histofed.base import durable
from histofed.base.checkup import opened
from histofed.base.errors import AlreadyThere, BadData, CannotWriteState, NotFound
from histofed.base.owner import database_files, denial

ROOM: Final = "backup.tmp"
"""Folder in the state directory (hard links need the same disk) that holds a snapshot while it is written out."""
LOCK: Final = "backup.lock"
_WINDOW: Final = 1 << 16


@contextlib.contextmanager
def alone(state: Path, holder: str = "a backup") -> Iterator[None]:
    """Nobody else makes a backup, or restores one, as long as the block lasts. Raises `AlreadyThere` while somebody does."""
    with durable.lock(state / LOCK, holder):
        yield


@contextlib.contextmanager
def room(state: Path) -> Iterator[Path]:
    """An empty folder for one snapshot, gone afterwards.

    Raises `AlreadyThere` while another backup is being made, or a restore, also one that was interrupted.
    """
    with alone(state):
        swap.refuse_interrupted(state)
        durable.remove(state / ROOM)
        try:
            yield durable.make_directory(state / ROOM)
        finally:
            durable.remove(state / ROOM)


def clear_away(state: Path) -> None:
    """Remove the room that a killed backup left. For a daemon's start: another backup may be far off.

    Raises `CannotWriteState`.
    """
    if (state / ROOM).exists():
        with contextlib.suppress(AlreadyThere), alone(state):
            durable.remove(state / ROOM)


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a SQLite file that may be in use, its pages checked.

    Raises `NotFound`, `BadData` for a damaged one, and `CannotWriteState`.
    """
    if not source.exists():
        raise NotFound(f"there is no database {source}: nothing has run here yet, so there is nothing to back up")
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=30)) as reading,
            contextlib.closing(sqlite3.connect(target)) as writing,
        ):
            reading.backup(writing, pages=-1)
            # in one file, without a log beside it
            writing.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.DatabaseError as error:
        if (refused := denial(*database_files(source))) is not None:
            raise refused from error
        raise CannotWriteState(f"the database {source} cannot be copied: {error}; run doctor") from error
    with opened(target):
        pass


def link(source: Path, target: Path) -> bool:
    """Keep a file under another name; False when it is gone. Raises `CannotWriteState`."""
    with durable.state_errors(str(target)):
        try:
            os.link(source, target)
        except FileNotFoundError:
            return False
    return True


@dataclass(frozen=True)
class JournalEnd:
    """How far a journal went at one moment: its files, each with the length that counts."""

    files: tuple[tuple[Path, int], ...]
    head: Head

    def sources(self) -> list[Source]:
        """The journal up to here."""
        return [Source.read(f"journal/{path.name}", path, length) for path, length in self.files]


def prove_journal(directory: Path) -> None:
    """Before a backup: one with a journal that is damaged could not be restored. Raises `BadData`."""
    if directory.is_dir():
        journals.proven(directory, DAMAGED)


def journal_end(directory: Path) -> JournalEnd:
    """Where the journal ends now; a record that is just being written does not count. Raises `NotFound` and `BadData`."""
    if not directory.is_dir():
        raise NotFound(
            f"there is no audit journal in {directory}: put it back, or start the daemon, which says what comes next"
        )
    files: list[tuple[Path, int]] = []
    last: bytes | None = None
    for segment in segments(directory):
        length, line = _whole_lines(segment.path)
        files.append((segment.path, length))
        last = line or last
    if last is None:
        return JournalEnd(tuple(files), Head(0, GENESIS))
    try:
        sealed = parse_line(last)
    except BadData as error:
        raise BadData(
            f"the audit journal in {directory} is damaged at its end ({error}); run doctor before a backup"
        ) from error
    return JournalEnd(tuple(files), Head(sealed.record.sequence, sealed.hash))


def _whole_lines(path: Path) -> tuple[int, bytes | None]:
    """How many bytes of the file are whole lines, and the last of them."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        begin = max(0, end - 4 * _WINDOW)
        file.seek(begin)
        data = file.read(end - begin)
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].splitlines()
    return begin + whole, lines[-1] if lines else None
