"""What a process tells the kernel (prctl(2), Linux) and the C library about itself."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""mallopt(3), glibc."""
_PIECE: Final = 4 << 20
"""Bytes; what passes through a daemon in a transfer is smaller."""
_SPARE: Final = 64 << 20
"""Bytes of free heap that a daemon keeps for the next message."""


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, also when it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def set_name(name: str) -> None:
    """The name in /proc/PID/comm, which `top` shows; at most 15 bytes of it."""
    _prctl(_PR_SET_NAME, name.encode())


def share_heap() -> None:
    """Have all threads allocate from one heap that keeps what was freed; call it before there are any.

    glibc gives each thread a heap of its own, and what passes through threads, as the messages of transfers do, stays behind
    in each of them: about a quarter of a daemon's memory. And it takes each MiB from the kernel and gives it back, which
    clears every page: a fifth of a transfer's CPU. Only glibc has the knobs; other C libraries need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _PIECE)
        mallopt(_M_TRIM_THRESHOLD, _SPARE)


def _prctl(option: int, value: int | bytes) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
