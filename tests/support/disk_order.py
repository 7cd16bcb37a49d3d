"""What a call does to the disk, in order: a sync that is missing, or comes too late, is seen here and by no killed process.

SIGKILL keeps the page cache, so a test that kills cannot tell a file that was synced from one that was only written.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

_DRAWN: Final = re.compile(r"\.[0-9a-f]{8}\.tmp\b")


class DiskOrder:
    """The calls on files below one folder, as words; names are relative to it.

    In them the process's own number is `PID`, and what was drawn at random `DRAWN`.

    `create a`, `folder a`, `cut a 3`, `sync a 3` (with the bytes that are in it then), `sync .` (a folder), `rename a b`,
    `link a b`, `unlink a`. Plain writes are not among them: a sync tells how much had been written.
    """

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self._folder = folder.resolve()

    def synced(self, descriptor: int) -> None:
        """fsync or fdatasync."""
        path = _behind(descriptor)
        size = "" if path.is_dir() else f" {os.fstat(descriptor).st_size}"
        self.note(f"sync {self.name(path)}{size}")

    def note(self, call: str) -> None:
        """One call that succeeded."""
        self.calls.append(call)

    def name(self, path: object, within: int | None = None) -> str:
        """How a path is told; `within` is the descriptor of the folder that it is relative to."""
        whole = Path(os.fsdecode(path)) if isinstance(path, str | bytes) else Path(str(path))
        if within is not None:
            whole = _behind(within) / whole
        told = whole.relative_to(self._folder) if whole.is_relative_to(self._folder) else whole
        return _DRAWN.sub(".DRAWN.tmp", str(told).replace(f".{os.getpid()}.", ".PID."))


@contextlib.contextmanager
def disk_order(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[str]]:
    """The calls of this process, as long as the block lasts."""
    order = DiskOrder(folder)
    real: dict[str, Callable[..., Any]] = {
        name: getattr(os, name)
        for name in ("fsync", "fdatasync", "rename", "replace", "link", "unlink", "rmdir", "mkdir", "ftruncate", "open")
    }

    def sync(name: str) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            real[name](descriptor)
            order.synced(descriptor)

        return call

    def between(name: str, word: str) -> Callable[..., None]:
        def call(source: object, target: object, **more: Any) -> None:
            real[name](source, target, **more)
            order.note(f"{word} {order.name(source)} {order.name(target)}")

        return call

    def at(name: str, word: str) -> Callable[..., None]:
        def call(path: object, *rest: Any, dir_fd: int | None = None) -> None:
            real[name](path, *rest, dir_fd=dir_fd)
            order.note(f"{word} {order.name(path, dir_fd)}")

        return call

    def cut(descriptor: int, length: int) -> None:
        real["ftruncate"](descriptor, length)
        order.note(f"cut {order.name(_behind(descriptor))} {length}")

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        descriptor: int = real["open"](path, flags, *rest, **more)
        if new:
            order.note(f"create {order.name(path)}")
        return descriptor

    with monkeypatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, sync(name))
        for name, word in (("rename", "rename"), ("replace", "rename"), ("link", "link")):
            patch.setattr(os, name, between(name, word))
        for name, word in (("unlink", "unlink"), ("rmdir", "unlink"), ("mkdir", "folder")):
            patch.setattr(os, name, at(name, word))
        patch.setattr(os, "ftruncate", cut)
        patch.setattr(os, "open", opened)
        yield order.calls


def _behind(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()
