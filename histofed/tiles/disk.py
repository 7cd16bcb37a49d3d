"""What an `OSError` means while tiles are read: of one file, or of the disk that they lie on.

A file that is gone or closed to this user is one tile less, and is counted. A share that hangs refuses tiles that are well:
a training on those that came through would be one on other data than the site has, so it ends, and is tried again. No
sentence names a path: it may leave the site. The modules of this folder that open files are the callers.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from histofed.base.errors import BadData, TryLater

_OF_THE_FILE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
)


def of_one_file(error: OSError) -> bool:
    """Whether it says something about the file, and nothing about the disk."""
    return error.errno in _OF_THE_FILE


def trouble(error: OSError) -> TryLater:
    """A disk at fault, in words."""
    reason = os.strerror(error.errno) if error.errno else "no reason given"
    return TryLater(f"the disk of the tiles cannot be read: {reason}; repair it, or mount it again")


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Around a walk through folders. Raises `BadData` for a folder closed to this user, `TryLater` for a disk at fault."""
    try:
        yield
    except PermissionError as error:
        raise BadData(
            "the data root, or a folder below it, may not be read by this user; grant the agent's user read access"
        ) from error
    except OSError as error:
        # also a folder that went away since it was listed
        raise trouble(error) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one. Raises `OSError`."""
    return _true(entry.is_dir)


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a plain file, or a link to one. Raises `OSError`."""
    return _true(entry.is_file)


def _true(question: Callable[[], bool]) -> bool:
    """The answer; of a link that leads to itself nothing is true."""
    try:
        return question()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False
