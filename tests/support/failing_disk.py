"""A disk that gives a file up to some byte and fails there, as a bad sector does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest


def fail_from(monkeypatch: pytest.MonkeyPatch, path: Path, byte: int) -> None:
    """Have reads of `path` end before `byte`, and those that begin there, or behind it, fail with EIO."""
    struck, preadv = path.stat().st_ino, os.preadv

    def read(descriptor: int, buffers: list[memoryview], position: int) -> int:
        if os.fstat(descriptor).st_ino != struck:
            return preadv(descriptor, buffers, position)
        if position >= byte:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, [buffers[0][: byte - position]], position)

    monkeypatch.setattr(os, "preadv", read)


def lose(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Have every `os.pread` of `path` fail with EIO."""
    struck, pread = path.stat().st_ino, os.pread

    def read(descriptor: int, size: int, position: int) -> bytes:
        if os.fstat(descriptor).st_ino == struck:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, position)

    monkeypatch.setattr(os, "pread", read)
