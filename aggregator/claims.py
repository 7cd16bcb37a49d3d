"""Claims of backups: rows that say which rounds a FILE will hold, from before it is written until it is whole.

    made       sites keep the private tensors of its rounds, and of the last complete backup's, from the next offer on
    noted      everything is written: in the next moment FILE has its name
    completed  with the digest of its manifest: this is the newest backup, and the daemon journals it
    withdrawn  it failed: neither FILE nor claim is left

A backup that is killed leaves its claim. The daemon drops one that was not noted (`aggregator/history.py`): there is no
FILE. One that was noted stays for the next backup to `settle`, or, where FILE's disk is away just then, for a later one. The
daemon does not look for FILE: it sees no home and a `/tmp` of its own, and a share that hangs would hold it up.

At most one backup is being made; whoever works on a claim holds the lock of backups. `aggregator/backup.py` is the caller.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from histofed.backup import archive
from histofed.backup.manifest import Manifest
from histofed.base import durable
from histofed.base.errors import BadData, VersionMismatch

_ANY: Final = re.compile(r".+")
"""A FILE is known by its manifest; whether its members may be in it is asked by whoever proves it."""


def make(live: sqlite3.Connection, own: str, made_at: str, rounds: Mapping[str, int]) -> None:
    """A backup begins that will hold these rounds."""
    row = (own, made_at, json.dumps(rounds, sort_keys=True))
    live.execute("INSERT INTO backups (id, made_at, rounds) VALUES (?, ?, ?)", row)


def note(live: sqlite3.Connection, own: str, target: Path) -> None:
    """FILE will be at `target` in the next moment."""
    live.execute("UPDATE backups SET target = ? WHERE id = ?", (os.fsencode(target.absolute()), own))


def complete(live: sqlite3.Connection, manifest: Manifest) -> None:
    """FILE is there."""
    live.execute("UPDATE backups SET digest = ? WHERE id = ?", (manifest.digest, manifest.id))


def withdraw(live: sqlite3.Connection, own: str, target: Path) -> None:
    """The backup failed, unless it was complete already. Raises `CannotWriteState`; then `settle` does it later."""
    query = "SELECT 1 FROM backups WHERE id = ? AND digest IS NOT NULL"
    if live.execute(query, (own,)).fetchone() is not None:
        return
    # FILE first: a claim without it can be dropped, but without a claim nobody would know of it
    if _found(target, own) is not None:
        durable.remove(target)
    live.execute("DELETE FROM backups WHERE id = ?", (own,))


def settle(live: sqlite3.Connection) -> None:
    """What backups that were killed left: one whose FILE is there is complete, one whose FILE cannot be there is forgotten.

    Where FILE's folder is away, with its disk or its share, nobody can tell: the claim stays. (The empty folder of a disk
    that is not mounted cannot be told from one whose FILE is gone.)
    """
    for own, noted in live.execute("SELECT id, target FROM backups WHERE digest IS NULL").fetchall():
        target = None if noted is None else Path(os.fsdecode(noted))
        manifest = None if target is None else _found(target, own)
        if manifest is not None:
            complete(live, manifest)
        elif target is None or os.access(target.parent, os.X_OK):
            live.execute("DELETE FROM backups WHERE id = ?", (own,))


def _found(target: Path, own: str) -> Manifest | None:
    """The manifest of the FILE at `target`, where it is this backup's: it got its name when it was whole."""
    try:
        with archive.reading(target, "aggregator", _ANY) as found:
            return found.manifest if found.manifest.id == own else None
    except (BadData, VersionMismatch, OSError):
        return None
