"""The heap of a daemon through which messages of a MiB pass: one for all threads, and not much larger than what is in it.

Only glibc has the knobs; with other C libraries nothing is done, and nothing is needed.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""mallopt(3)."""
_PIECE: Final = 4 << 20
"""Bytes; what passes through a daemon in a transfer is smaller."""
_SPARE: Final = 64 << 20
"""Bytes of free heap at its end that glibc itself keeps."""
MOST_FREE: Final = 24 << 20
"""Bytes beyond the least that was held: some are in use, the rest serves the next messages."""


def share_heap() -> None:
    """Have all threads allocate from one heap that keeps what was freed; call it before there are any.

    glibc gives each thread a heap of its own, and what passes through threads, as the messages of transfers do, stays behind
    in each of them: about a quarter of a daemon's memory. And it takes each MiB from the kernel and gives it back, which
    clears every page: a fifth of a transfer's CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _PIECE)
        mallopt(_M_TRIM_THRESHOLD, _SPARE)


class Heap:
    """What the process holds, and what it held least; gives back the difference when it is much.

    Pieces of messages lie between what lasts, so that glibc, which cuts a heap at its end alone, keeps them: 78 MiB of the
    145 of an aggregator that 16 sites had sent their updates to, three times what was in use. Each page that is wanted again
    costs a fault, so what is given back at once should be worth it.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._least = resident_bytes()

    def give_back(self) -> None:
        """Give the kernel every free page, when there may be many. Quick otherwise: a look into /proc."""
        if self._trim is None:
            return
        now = resident_bytes()
        self._least = min(self._least, now)
        if now - self._least > MOST_FREE:
            self._trim(0)
            self._least = resident_bytes()


def resident_bytes() -> int:
    """Anonymous memory of this process, without what is swapped out; 0 where it cannot be read."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0  # no reason to break off what is going on
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)
