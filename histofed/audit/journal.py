"""The journal that both daemons write before they act: *no audit, no action*.

Each record names the hash of the one before it, so that nothing can be changed, removed, added or moved inside without
`verify.py` seeing it. Invariants:

- `append` returns only when the record is on disk; when it raises, the caller must not do what it announced;
- sequences count from 1 without gaps, over segments and restarts;
- one process writes a journal at a time (a lock in the folder).

A line torn by a crash was never acknowledged; it is cut off, with a log line, when the journal is opened again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from histofed.audit.record import GENESIS, SYSTEM, AuditRecord, Outcome, Who, parse_line
from histofed.audit.segments import last_lines, segment_path, segments
from histofed.audit.verify import DAMAGED, Head, contains
from histofed.base.clock import Clock, iso
from histofed.base.durable import AppendLog, lock, make_directory
from histofed.base.errors import BadData, DigestMismatch
from histofed.base.ids import Json
from histofed.base.words import one_line
from histofed.telemetry.context import TraceContext

log = logging.getLogger(__name__)

REASON_LETTERS: Final = 1000
"""Of a reason, that are kept; twelve bytes each at most."""
SEGMENT_BYTES: Final = 64 * 1024 * 1024
"""A segment is closed when it has grown to this; about 100,000 records."""


class Journal:
    """An open journal. `append` may be called from any thread.

    Raises `AlreadyThere` when another process writes it, `CannotWriteState` when the folder cannot be written and
    `DigestMismatch` when its end is not the end of a chain.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        instance: str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        """`written` is told of each record when it is on disk: whoever counts them."""
        self._directory = make_directory(directory)
        self._written = written
        self._clock = clock
        self._instance = instance
        self._segment_bytes = segment_bytes
        self._mutex = threading.Lock()
        self._closing = contextlib.ExitStack()
        self._closing.enter_context(lock(directory / "lock", instance))
        try:
            self._head, self._segment = self._resume()
        except BaseException:
            self._closing.close()
            raise

    @property
    def head(self) -> Head:
        """The last record: what a site counter-signs, and what `verify` is given to notice a missing end."""
        return self._head

    def contains(self, head: Head) -> bool:
        """Whether this very record is in the journal: a head that was noted elsewhere, when the journal ended there."""
        return contains(self._directory, head)

    def append(
        self,
        action: str,
        *,
        who: Who = SYSTEM,
        subject: Mapping[str, Json],
        outcome: Outcome = "success",
        reason: str = "",
        trace: TraceContext | None = None,
    ) -> int:
        """Write one record, durable on return, and give its sequence.

        Of a long reason the beginning is kept: others chose it, and a refusal that cannot be written could not be made.
        Raises `CannotWriteState` (nothing was written: do not act) and `BadData` (a subject too long, or with NaN in it).
        """
        with self._mutex:
            record = AuditRecord(
                sequence=self._head.sequence + 1,
                recorded=iso(self._clock.now()),
                monotonic=round(self._clock.monotonic() * 1_000_000),
                where=self._instance,
                action=action,
                who=who,
                subject=subject,
                outcome=outcome,
                reason=one_line(reason, REASON_LETTERS),
                trace=trace,
            )
            line, own = record.line(self._head.hash)
            self._writable_segment().append(line)
            self._head = Head(record.sequence, own)
        self._written()
        return record.sequence

    def close(self) -> None:
        """Release the files and the lock."""
        with self._mutex:
            self._segment.close()
            self._closing.close()

    def _resume(self) -> tuple[Head, AppendLog]:
        """Find the end of the chain and open the segment that it stands in."""
        files = segments(self._directory)
        if not files:
            return Head(0, GENESIS), AppendLog(segment_path(self._directory, 1))
        current = _open(files[-1].path)
        try:
            # a crash just after a segment was begun leaves it empty: the chain ends in the one before
            holder = files[-1] if current.size or len(files) == 1 else files[-2]
            head = _tail(holder.path, holder.first)
            if not current.size and files[-1].first != head.sequence + 1:
                raise _broken(f"the segment {files[-1].path.name} does not follow record {head.sequence}")
        except BaseException:
            current.close()
            raise
        return head, current

    def _writable_segment(self) -> AppendLog:
        """The current segment, or the next one when the current one is full."""
        if self._segment.size >= self._segment_bytes:
            following = AppendLog(segment_path(self._directory, self._head.sequence + 1))
            self._segment.close()
            self._segment = following
        return self._segment


def _open(path: Path) -> AppendLog:
    """Open a segment for writing; say so when half a line had to be cut off."""
    before = path.stat().st_size
    segment = AppendLog(path)
    if segment.size != before:
        log.warning(
            "the audit journal ended in the middle of a record (%d bytes, never acknowledged); it was cut off",
            before - segment.size,
        )
    return segment


def _tail(path: Path, first: int) -> Head:
    """The last record of a segment, after a look at the records before it. Raises `DigestMismatch`."""
    head: Head | None = None
    for line in last_lines(path):
        try:
            sealed = parse_line(line)
        except BadData as error:
            raise _broken(f"a record near its end cannot be trusted: {error}") from error
        if head is not None and (sealed.previous, sealed.record.sequence) != (head.hash, head.sequence + 1):
            raise _broken(f"record {sealed.record.sequence} does not follow record {head.sequence}")
        head = Head(sealed.record.sequence, sealed.hash)
    if head is None:
        if first == 1:
            return Head(0, GENESIS)
        raise _broken(f"the segment {path.name} is empty")
    return head


def _broken(what: str) -> DigestMismatch:
    return DigestMismatch(f"the audit journal is damaged: {what}; {DAMAGED}")
