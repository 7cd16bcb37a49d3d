"""Whose files these are, in words: who may use a daemon's state is a question that every command meets.

The likeliest mistake is a forgotten `runuser -u USER --`. Who is not the owner is refused by the system, at whichever file
comes first: `refused` makes the one sentence of that, `in_words` does so for a block; the command lines are such blocks.
Root is refused nothing, and what root makes the daemon cannot read: `refuse_others` keeps both out before anything is made.
A file system that is mounted read-only refuses everybody, whatever owners and modes say; that is told first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from histofed.base.errors import CannotWriteState, ConfigError, NotOurs

_REMEDIES: Final[Mapping[int, str]] = {
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG), "name another place"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space"),
    **dict.fromkeys((errno.EIO, errno.EUCLEAN, errno.EROFS), "repair the disk"),
}
"""What helps, by the number of an error."""


def name_of(user: int) -> str:
    """A user's name, or the number of one who has none."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def owner_beside_root(folder: Path) -> str | None:
    """The folder's owner where root runs this command and the folder is somebody else's; None otherwise."""
    if os.geteuid() != 0 or not folder.exists() or (owner := folder.stat().st_uid) == 0:
        return None
    return name_of(owner)


def refuse_root(folder: Path, command: str) -> None:
    """`command` would leave root's files in a daemon's folder. Raises `ConfigError` with the line to type."""
    owner = owner_beside_root(folder)
    if owner is not None:
        raise ConfigError(
            f"{folder} belongs to {owner}, whose daemon could not read what root makes there: "
            f"runuser -u {owner} -- {command}"
        )


def refuse_others(folder: Path, command: str) -> None:
    """Only the owner runs `command` on a state directory. Raises `ConfigError` for root and for what is no folder,
    `NotOurs` for any other user and `CannotWriteState` where nobody can write.

    A folder that is not there yet is refused to nobody; whoever makes it owns it.
    """
    refuse_root(folder, command)
    with in_words():
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is no folder: correct the state directory's name")
        if folder.exists() and not usable(folder):
            raise not_ours(folder)


def usable(folder: Path) -> bool:
    """Whether this user may do in a folder what a daemon does there."""
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK)


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """The system's refusal of a path becomes a sentence. Not around work on tiles: the sentence names the path.

    A missing right becomes what `refused` says, and what else keeps a path from being used `CannotWriteState`. A file
    that is not there is left as it is: whoever opens a file without asking whether it exists has made a mistake.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        told = refused(error) if isinstance(error, PermissionError) else _unusable(error)
        if told is None:
            raise
        raise told from error


def _unusable(error: OSError) -> CannotWriteState | None:
    if not isinstance(error.filename, str | bytes) or error.errno is None:
        return None
    if error.errno not in _REMEDIES:
        return None
    remedy = _REMEDIES[error.errno]
    return CannotWriteState(f"{os.fsdecode(error.filename)}: {os.strerror(error.errno)}; {remedy}")


def refused(error: PermissionError) -> CannotWriteState | None:
    """The sentence of a refusal that names a path; None for any other (of a port, of a process)."""
    # of a rename, or a link, either of the two may be what is not ours
    paths = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return denial(*paths) or (not_ours(paths[0], error) if paths else None)


def denial(*paths: Path) -> CannotWriteState | None:
    """The sentence for the first of these files that this user may not use; None where all may be used, or are not there.

    For refusals that do not say what was refused: SQLite's.
    """
    blocked = next((path for path in paths if _blocker(path) is not None), None)
    return None if blocked is None else not_ours(blocked)


def database_files(path: Path) -> tuple[Path, ...]:
    """A SQLite database, and what SQLite keeps beside it while it is open."""
    return path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def read_only(path: Path) -> CannotWriteState | None:
    """The sentence for a path that this user may read, on a file system where nobody may write; None for any other."""
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)) or not os.statvfs(path).f_flag & os.ST_RDONLY:
        return None
    return CannotWriteState(f"{path} is on a file system that is mounted read-only: remount it, or repair the disk")


def not_ours(path: Path, error: OSError | None = None) -> CannotWriteState:
    """Which path, whom it belongs to, who runs this, and what to do; not `NotOurs` where the file system is read-only."""
    user, blocker = os.geteuid(), _blocker(path)
    me = name_of(user)
    if blocker is None:
        reason = os.strerror(errno.EACCES if error is None or error.errno is None else error.errno)
        return NotOurs(
            f"{path}: {reason}, although its owner and mode allow it to {me}, as whom this command runs: look at "
            "lsattr, at access control lists, and at what confines this process"
        )
    if (nobodys := read_only(blocker)) is not None:
        return nobodys
    found = blocker.stat()
    owner = name_of(found.st_uid)
    if found.st_uid == user:
        return NotOurs(
            f"{blocker} belongs to {owner}, as whom this command runs, and its mode {stat.S_IMODE(found.st_mode):04o} "
            f"forbids it: chmod u+{'rwx' if blocker.is_dir() else 'rw'} {blocker}"
        )
    if blocker.parent.stat().st_uid == user:
        return NotOurs(
            f"{blocker} belongs to {owner}, in a folder of {me}, as whom this command runs: as root, "
            f"chown {'-R ' if blocker.is_dir() else ''}{me} {blocker}"
        )
    bare = (
        ", who may make nothing there" if blocker.is_dir() and os.access(blocker, os.X_OK) and blocker != _real(path) else ""
    )
    return NotOurs(
        f"{blocker} belongs to {owner}, and this command runs as {me}{bare}: as root, put `runuser -u {owner} --` before "
        "this command"
    )


def _blocker(path: Path) -> Path | None:
    """What on the way to `path` this user may not use: a folder that leads to it, itself, or the folder it would be in."""
    target = _real(path)
    folder = target
    for folder in reversed(target.parents):
        if not os.access(folder, os.X_OK):
            return folder if folder.exists() else _closed(folder.parent)
    if not target.exists():
        return _closed(folder)
    if not os.access(target, os.R_OK | os.W_OK | (os.X_OK if target.is_dir() else 0)):
        return target
    return _closed(folder)


def _closed(folder: Path) -> Path | None:
    return None if os.access(folder, os.W_OK) else folder


def _real(path: Path) -> Path:
    """Without links: what is refused is what they lead to."""
    return Path(os.path.realpath(path))
