"""What trees of processes cost: CPU and memory by role, read from /proc while they run.

CPU of a tree is that of its living processes and of every child that they have waited for, so that no short-lived one is
lost. Memory is told in two ways: *resident* counts every page that a process maps, files of the page cache among them (as
the peers' scripts count); *anonymous* is what the kernel cannot take back. Both are sums over a role's processes at one
moment, the largest that was seen; pages that forked processes share count in each.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support.processes import children

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class _Role:
    """What was seen of one tree."""

    resident: int = 0
    anonymous: int = 0
    cpu: float = 0.0


class Meter:
    """Watches the trees below some processes; a context manager."""

    def __init__(self, roots: Mapping[str, tuple[int, ...]], period_s: float = 0.05) -> None:
        self._roots = roots
        self._period_s = period_s
        self._seen = {role: _Role() for role in roots}
        self._curve: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def peak_resident(self, role: str) -> int:
        """Bytes."""
        return self._seen[role].resident

    def peak_anonymous(self, role: str) -> int:
        """Bytes."""
        return self._seen[role].anonymous

    def cpu(self, role: str) -> float:
        """Seconds since the processes began."""
        return self._seen[role].cpu

    def cpu_between(self, begin: float, end: float) -> float:
        """CPU seconds of all roles between two moments of `time.time()`."""

        def at(moment: float) -> float:
            return max((cpu for when, cpu in self._curve if when <= moment), default=0.0)

        return at(end) - at(begin)

    def _watch(self) -> None:
        while not self._stop.wait(self._period_s):
            self._sample()

    def _sample(self) -> None:
        total = 0.0
        for role, roots in self._roots.items():
            family = [process for root in roots for process in tree(root)]
            seen = self._seen[role]
            seen.cpu = max(seen.cpu, sum(map(cpu_seconds, family)))
            seen.resident = max(seen.resident, sum(memory(process, "VmRSS") for process in family))
            seen.anonymous = max(seen.anonymous, sum(memory(process, "RssAnon") for process in family))
            total += seen.cpu
        self._curve.append((time.time(), total))


def tree(root: int) -> list[int]:
    """A process and all its living descendants."""
    try:
        return [root, *(process for child in children(root) for process in tree(child))]
    except (FileNotFoundError, ProcessLookupError):
        return []


def cpu_seconds(process: int) -> float:
    """User and system time of a process and of the children that it waited for; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


def memory(process: int, what: str) -> int:
    """Bytes of `VmRSS` or `RssAnon`; 0 when the process is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    line = next((line for line in status.splitlines() if line.startswith(f"{what}:")), None)
    return int(line.split()[1]) * 1024 if line else 0
