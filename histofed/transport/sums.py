"""The digests of a growing file's beginnings, beside it: after a restart they tell which of its bytes are good.

    <part>.sums    a line for each stretch that was synced: how long the file was, and the SHA-256 of all of it until there

They cost nothing, because the running digest of the whole is there anyway. A stretch that a disk has damaged meanwhile is so
found when the transfer resumes, and only it and what follows is sent again; without them the digest of the whole would find
it behind the last byte. They are advice: what is torn, missing or cannot be read is not compared. Used by `part.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histofed.base.errors import passes

_LINE = re.compile(rb"(\d{1,18}) ([0-9a-f]{64})\Z")


@dataclass(frozen=True)
class Sum:
    """The file's first `length` bytes have this digest."""

    length: int
    sha256: str


class Sums:
    """The lines beside one part. Raises `OSError`; the part tells it in words."""

    def __init__(self, part: Path) -> None:
        self._path = part.with_name(f"{part.name}.sums")
        self._last = 0

    def read(self, length: int) -> tuple[Sum, ...]:
        """What is known of the first `length` bytes, by rising length; stops at the first line that cannot be."""
        found: list[Sum] = []
        try:
            lines = self._path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            if passes(error):
                raise
            return ()
        for line in lines:
            match = _LINE.match(line)
            if match is None or not (found[-1].length if found else 0) < int(match[1]) <= length:
                break
            found.append(Sum(int(match[1]), match[2].decode()))
        return tuple(found)

    def add(self, new: Sum) -> None:
        """One more stretch was synced."""
        if new.length > self._last:
            self._append(new)

    def start_with(self, good: Sequence[Sum]) -> None:
        """Only these hold; whatever else the file says is forgotten."""
        self.remove()
        for each in good:
            self._append(each)

    def remove(self) -> None:
        """The part is complete, or nothing of it is good."""
        self._path.unlink(missing_ok=True)
        self._last = 0

    def _append(self, new: Sum) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{new.length} {new.sha256}\n".encode())
        finally:
            os.close(descriptor)
        self._last = new.length
