"""Room on the disk: what would eat the reserve is refused in words before it begins.

A disk that is full to the last byte takes the audit journal with it, and then nothing can be done at all, not even making
room. So the last bytes are kept for journal and database: below the reserve no round is planned (`aggregator/scheduler.py`)
and no update is received (`aggregator/services/permissions.py`); sites keep theirs and try again until the deadline of their
round.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from histofed.base import durable
from histofed.base.errors import CannotWriteState


class Space:
    """The disk that a folder is on."""

    def __init__(self, folder: Path, reserve: int, free: Callable[[Path], int] = durable.free_bytes) -> None:
        self._folder = folder
        self.reserve = reserve
        """Bytes that stay free; a reload may change it."""
        self._free = free

    def fits(self, more: int) -> bool:
        """Whether `more` bytes leave the reserve untouched."""
        return self._free(self._folder) - more >= self.reserve

    def check(self, more: int = 0, promised: int = 0) -> None:
        """Raises `CannotWriteState` unless `more` bytes, and those `promised` to others, leave the reserve untouched."""
        free = self._free(self._folder)
        if free - more - promised < self.reserve:
            beside = f" beside the {_mib(promised)} that other uploads still need" if promised else ""
            needed = f"{_mib(more)} more{beside} would leave less than" if more else "less than"
            raise CannotWriteState(
                f"the aggregator's disk has {_mib(free)} free, {needed} its reserve of {_mib(self.reserve)} "
                "(retention.reserve_bytes): make room, or keep fewer models (retention.models, retention.bytes)"
            ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what a site hears of it (transport/gate.py)


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
