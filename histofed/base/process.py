"""What a process tells the kernel (prctl(2), Linux) and the C library about itself."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_M_ARENA_MAX: Final = -8
"""mallopt(3), glibc."""


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, also when it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def set_name(name: str) -> None:
    """The name in /proc/PID/comm, which `top` shows; at most 15 bytes of it."""
    _prctl(_PR_SET_NAME, name.encode())


def share_heap() -> None:
    """Have all threads allocate from one heap; call it before there are any.

    glibc gives each thread a heap of its own, and what passes through threads, as the messages of transfers do, stays behind
    in each of them: about a quarter of a daemon's memory. Only glibc has the knob; other C libraries need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def _prctl(option: int, value: int | bytes) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
