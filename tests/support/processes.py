"""What /proc knows about our own children: for tests that kill, freeze and count processes."""

from __future__ import annotations

import os
import select
from pathlib import Path


def children(process: int | None = None) -> list[int]:
    """The living children of `process`, by default of this one; none when it is gone."""
    # a thread may end between the listing and the reading; its children are another thread's then
    tasks = sorted(Path(f"/proc/{process or os.getpid()}/task").glob("*/children"))
    found = [int(word) for task in tasks for word in _read(task).split()]
    return [child for child in found if _state(child) != "Z"]


def trainers(process: int | None = None) -> list[int]:
    """The trainers of an agent: its own children, or those of its nursery."""
    nurseries = [child for child in children(process) if b"histofed.base.warm" in _command(child)]
    direct = [child for child in children(process) if b"agent.trainer" in _command(child)]
    return [child for child in direct if child not in nurseries] + [born for one in nurseries for born in children(one)]


def _command(process: int) -> bytes:
    return _read(Path(f"/proc/{process}/cmdline"))


def _read(path: Path) -> bytes:
    """A file of /proc; empty when its process or thread is gone."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def open_descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes(process: int) -> int:
    """The resident set of `process`."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def mapped_files(process: int) -> set[str]:
    """Every file in the address space of `process`, its shared libraries among them."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {words[5] for line in lines if len(words := line.split(maxsplit=5)) == 6}


def has_ended(process: int, seconds: float) -> bool:
    """Wait until `process`, which need not be our child, has ended."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _state(process: int) -> str:
    stat = _read(Path(f"/proc/{process}/stat"))
    return stat.rpartition(b")")[2].split()[0].decode() if stat else "Z"
