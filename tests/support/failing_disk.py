"""A disk that gives a file up to some byte and fails there, as a bad sector does; a machine that lists no folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def lose(monkeypatch: pytest.MonkeyPatch, path: Path, byte: int = 0, reason: int = errno.EIO) -> None:
    """The same of `os.pread`, for this reason."""
    struck, pread = path.stat().st_ino, os.pread

    def read(descriptor: int, size: int, position: int) -> bytes:
        if os.fstat(descriptor).st_ino != struck:
            return pread(descriptor, size, position)
        if position >= byte:
            raise OSError(reason, os.strerror(reason))
        return pread(descriptor, min(size, byte - position), position)

    monkeypatch.setattr(os, "pread", read)


def hide(monkeypatch: pytest.MonkeyPatch, *folders: Path, looks: int = sys.maxsize, reason: int = errno.EMFILE) -> None:
    """Have no descriptor left for the next `looks` into these folders, or another reason against them."""
    left = iter(range(looks))

    def refusing(look: Callable[..., Any]) -> Callable[..., Any]:
        def looking(path: Any = ".") -> Any:
            if path in folders and next(left, None) is not None:
                raise OSError(reason, os.strerror(reason))
            return look(path)

        return looking

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
