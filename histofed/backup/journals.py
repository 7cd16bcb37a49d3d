"""The audit journal across a restore: it is proven, the one that knows more goes on, and it says what happened.

A journal is never shortened silently. Where the journal that was here before is whole and continues the backup's, it goes on
itself, so that the lost history stays in it; otherwise the backup's goes on and the old one lies aside. Both end with the
record `state.restored`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from histofed.audit import verify
from histofed.audit.journal import Journal
from histofed.audit.segments import segments
from histofed.audit.verify import RESTORED, Head
from histofed.base import durable
from histofed.base.clock import Clock
from histofed.base.errors import BadData
from histofed.base.ids import Json


def proven(journal: Path, advice: str = "restore another backup") -> Head:
    """The end of a whole chain; half a line at its very end does not count. Raises `NotFound`, `BadData` with `advice`."""
    report = verify.verify(journal)
    if not report.ok and not verify.torn_at_the_end(journal, report):
        raise BadData(
            f"the audit journal is damaged after record {report.records}: {report.problem}; {advice}",
        )
    return report.head


def choose(new: Path, old: Path, backup_head: Head) -> Head | None:
    """Let the old journal take the place of the backup's in `new`, where it is whole and continues it.

    Where the old journal ended, as far as it is proven; None where there is none. Raises `CannotWriteState`.
    """
    if not old.is_dir() or not segments(old):
        return None
    report = verify.verify(old)
    whole = (report.ok or verify.torn_at_the_end(old, report)) and verify.contains(old, backup_head)
    if whole and report.head.sequence > backup_head.sequence:
        for segment in segments(new):
            durable.remove(segment.path)
        for segment in segments(old):
            with segment.path.open("rb") as reading, durable.writing(new / segment.path.name) as writing:
                shutil.copyfileobj(reading, writing)
    return report.head


def goes_on(old: Path, backup_head: Head) -> bool:
    """Whether the journal in `old`, whole or not, is the one that a backup was made of. Raises `OSError`."""
    return old.is_dir() and backup_head.sequence > 0 and verify.contains(old, backup_head)


def note(
    journal: Path, clock: Clock, instance: str, subject: Mapping[str, Json], reason: str, action: str = RESTORED
) -> None:
    """One record in a journal that no daemon holds. Raises `AlreadyThere`, `CannotWriteState`."""
    opened = Journal(journal, clock, instance)
    try:
        opened.append(action, subject=subject, reason=reason)
    finally:
        opened.close()
