"""The journal's files: segments named by the sequence of their first record, `000000000001.jsonl` and so on.

One place knows the names and how a line is cut from a file; `journal.py` writes and `verify.py` reads through it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from histofed.audit.record import MAXIMUM_BYTES

_NAME = re.compile(r"(\d{12})\.jsonl\Z")


@dataclass(frozen=True, order=True)
class Segment:
    """One file of the journal."""

    first: int
    """Sequence of its first record."""
    path: Path


def segment_path(directory: Path, first: int) -> Path:
    """The file whose first record has the sequence `first`."""
    return directory / f"{first:012d}.jsonl"


def segments(directory: Path) -> tuple[Segment, ...]:
    """Every segment, oldest first; other files in the folder are not the journal's."""
    found = ((_NAME.match(path.name), path) for path in directory.iterdir())
    return tuple(sorted(Segment(int(name[1]), path) for name, path in found if name))


def lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Each line without its newline, and whether it was complete; only the last one can be incomplete.

    A line longer than any record comes in pieces, so that a damaged file cannot fill the memory.
    """
    with path.open("rb") as file:
        while line := file.readline(MAXIMUM_BYTES + 1):
            yield line.removesuffix(b"\n"), line.endswith(b"\n")


def last_lines(path: Path, window: int = 4 * MAXIMUM_BYTES) -> tuple[bytes, ...]:
    """The complete lines in the last `window` bytes, oldest first; a window always holds at least one whole record."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        begin = file.seek(max(0, size - window))
        pieces = file.read().split(b"\n")
    return tuple(pieces[1 if begin else 0 : -1])
