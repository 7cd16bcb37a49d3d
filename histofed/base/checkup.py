"""Checks that both daemons share: their state directory, the process that holds it, the clock, a database, ports.

Each returns words or a `Doubt`, raises `HistofedError`, and changes nothing (`histofed/base/doctor.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote

from histofed.base.clock import iso
from histofed.base.doctor import Doubt
from histofed.base.durable import free_bytes
from histofed.base.errors import AlreadyThere, BadData, CannotWriteState, ConfigError, Damaged, NotEnrolled, NotFound
from histofed.base.owner import database_files, denial, not_ours, owner_beside_root, usable

SET_BACK: Final = timedelta(seconds=60)
"""A clock this far behind our own newest record was set back."""
_UNSYNCHRONISED: Final = 5
"""TIME_ERROR of adjtimex(2)."""


def state_directory(folder: Path, reserve: int, first: str) -> str | Doubt:
    """It is there, ours alone, can be written, and has `reserve` bytes free; `first` is the command that makes it."""
    if not folder.is_dir():
        raise NotEnrolled(f"there is no state directory {folder}: run {first} first, or correct state_dir")
    if not usable(folder):
        raise not_ours(folder)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077 and _is_for_others(folder, mode):
        return Doubt(f"{folder} (mode {mode:04o}) is not the daemon's alone: name a folder of its own as state_dir")
    # what a command that root ran once left behind: a lock, a database
    for file in (path for path in sorted(folder.iterdir()) if path.is_file()):
        if (refused := denial(file)) is not None:
            raise refused
    free = free_bytes(folder)
    if free < reserve:
        raise CannotWriteState(f"the disk of {folder} has {megabytes(free)} free, less than {megabytes(reserve)}: make room")
    if (nodes := os.statvfs(folder)).f_files and nodes.f_favail < 1000:
        raise CannotWriteState(f"the disk of {folder} has {nodes.f_favail} inodes left: remove files that are not needed")
    if (daemons := owner_beside_root(folder)) is not None:
        return Doubt(
            f"{folder} belongs to {daemons}, and root sees and may more than the daemon: "
            f"put runuser -u {daemons} -- before this command"
        )
    if mode & 0o077:
        return Doubt(f"{folder} can be read by other users (mode {mode:04o}): chmod 700")
    return f"{folder}, {megabytes(free)} free"


def _is_for_others(folder: Path, mode: int) -> bool:
    """Everybody may put files there, or somebody has, and no daemon: to close it would lock others out."""
    return bool(mode & stat.S_ISVTX) or (any(folder.iterdir()) and not (folder / "identity").is_dir())


def holder(lock: Path) -> int | None:
    """The process that holds a daemon's lock; None when none runs. Looks into the kernel's table and locks nothing."""
    try:
        node = lock.stat().st_ino
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    for line in table.splitlines():
        found = re.search(r"FLOCK\s+\S+\s+WRITE\s+(\d+)\s+[0-9a-f]+:[0-9a-f]+:(\d+)\s", line)
        if found and int(found[2]) == node:
            return int(found[1])
    return None


def running(lock: Path, start: str) -> str | Doubt:
    """Whether the daemon runs; `start` is how to start it."""
    process = holder(lock)
    return Doubt(f"it does not run: {start}") if process is None else f"it runs, process {process}"


def ports(addresses: Mapping[str, str], lock: Path) -> str:
    """Nobody else holds the ports that the daemon wants; tried by binding them for a moment while it does not run."""
    if (process := holder(lock)) is not None:
        return f"held by the daemon, process {process}"
    taken = [f"{name} {address} ({why})" for name, address in addresses.items() if (why := _refused(address))]
    if taken:
        raise AlreadyThere(
            f"{'; '.join(taken)}: `ss -ltnp` shows who holds a port; stop it, or change [listen] in the configuration"
        )
    return ", ".join(addresses.values())


def _refused(address: str) -> str:
    """Why a server could not listen there; empty when it could."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family) as server:
        # as the servers do: a connection that is just closing does not hold the port
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host.strip("[]"), int(port)))
            server.listen(1)
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return ""


def clock(now: datetime, newest: datetime | None) -> str | Doubt:
    """The clock was not set back behind our own journal, and something keeps it right."""
    if newest is not None and now < newest - SET_BACK:
        raise ConfigError(
            f"the clock says {iso(now)[:19]}, but the journal's newest record is of {iso(newest)[:19]}: the clock was set "
            "back; set it right (chrony, systemd-timesyncd), or certificates and deadlines mean something else"
        )
    if kernel_keeps_time() is False:
        return Doubt(f"{iso(now)[:19]} UTC; the kernel says that nothing keeps it right: run chrony or systemd-timesyncd")
    return f"{iso(now)[:19]} UTC"


def kernel_keeps_time() -> bool | None:
    """Whether the kernel's clock is synchronised (adjtimex(2), read only); None where it does not say."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "ntp_gettime"):
        return None
    # struct ntptimeval: two longs of time, maximum and estimated error, tai, four reserved
    state = libc.ntp_gettime((ctypes.c_long * 16)())
    return None if state < 0 else state != _UNSYNCHRONISED


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A SQLite file for reading alone, after a full check of its pages. Raises `NotFound` and `BadData`."""
    if (sentence := lost(path)) is not None:
        raise NotFound(sentence)
    with _read(path) as connection:
        answers = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
        if answers != ["ok"]:
            raise BadData(f"the database {path} is damaged ({'; '.join(answers)}): stop the daemon, restore a backup")
        if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise BadData(f"rows of the database {path} name rows that are not there: restore a backup")
        yield connection


def lost(path: Path) -> str | None:
    """What is said of the database of a daemon that ran, where it is gone or has no table; None for any other.

    Whether a daemon ran is for the caller to know. One that cannot be read is not lost: who opens it says what is wrong.
    """
    if not path.exists():
        return f"there is no database {path}, and a daemon ran here: restore a backup"
    if path.stat().st_size:  # with an empty one SQLite would remove its log, which may be all that is left
        try:
            with _read(path) as connection:
                if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None:
                    return None
        except BadData:
            return None
    return f"the database {path} is empty, and a daemon ran here: restore a backup"


@contextlib.contextmanager
def _read(path: Path) -> Iterator[sqlite3.Connection]:
    """A SQLite file for reading alone. Raises `BadData`."""
    # with nobody at work and no log to be replayed, SQLite need not make its side files
    quiet = not any(path.with_name(path.name + end).exists() for end in ("-wal", "-shm"))
    uri = f"file:{quote(str(path))}?mode=ro{'&immutable=1' if quiet else ''}"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
            yield connection
    except sqlite3.Error as error:
        if (refused := denial(*database_files(path))) is not None:
            raise refused from error
        raise BadData(_unreadable(path, error)) from error


def damage(path: Path, error: BaseException | None) -> Damaged | None:
    """What a daemon ends with where SQLite found its file damaged, or no database at all; None for any other error."""
    # the low byte: an extended code says more in those above
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return Damaged(_unreadable(path, error)) if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) else None


def _unreadable(path: Path, error: BaseException | None) -> str:
    return f"the database {path} cannot be read ({error}): stop the daemon, restore a backup"


def megabytes(count: float) -> str:
    """`75000 MB`; decimal, as disks are sold."""
    return f"{count / 1e6:.0f} MB"
