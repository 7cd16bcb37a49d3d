"""The journal's files: segments named by the sequence of their first record, `000000000001.jsonl` and so on.

One place knows the names and how a line is cut from a file; `journal.py` writes and `verify.py` reads through it.
"""

from __future__ import annotations

import json
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


def lines_backwards(path: Path, window: int = 4 * MAXIMUM_BYTES) -> Iterator[bytes]:
    """The complete lines, newest first, read in pieces of `window` bytes; one that fills a window is none of a record."""
    with path.open("rb") as file:
        begin, rest = file.seek(0, 2), b""
        while begin:
            size = min(window, begin)
            begin = file.seek(begin - size)
            data = file.read(size) + rest
            cut = data.find(b"\n") + 1 if begin else 0
            rest = data[:cut]
            yield from reversed(data[cut:].split(b"\n")[:-1])


def last_lines(path: Path, window: int = 4 * MAXIMUM_BYTES) -> tuple[bytes, ...]:
    """The complete lines in the last `window` bytes, oldest first; a window always holds at least one whole record."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        begin = file.seek(max(0, size - window))
        pieces = file.read().split(b"\n")
    return tuple(pieces[1 if begin else 0 : -1])


def find(directory: Path, sequence: int) -> bytes | None:
    """The line of the record `sequence`, unproven; None where there is none. Reads a few lines, however long the journal."""
    holder = next((segment for segment in reversed(segments(directory)) if segment.first <= sequence), None)
    if holder is None:
        return None
    with holder.path.open("rb") as file:
        low, high = 0, file.seek(0, 2)
        # the line begins at `low` or behind it, and before `high`
        while high - low > 2 * MAXIMUM_BYTES:
            middle = (low + high) // 2
            file.seek(middle)
            file.readline(MAXIMUM_BYTES + 1)
            begin = file.tell()
            found = _sequence(file.readline(MAXIMUM_BYTES + 1))
            low, high = (begin, high) if found is not None and found <= sequence else (low, middle)
        file.seek(low)
        for line in file:
            found = _sequence(line)
            if found is None or found >= sequence:
                return line.removesuffix(b"\n") if found == sequence else None
    return None


def _sequence(line: bytes) -> int | None:
    """The number in a complete line; None for anything else."""
    try:
        found = json.loads(line)["sequence"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, int) else None
