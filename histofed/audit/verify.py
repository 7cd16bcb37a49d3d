"""Prove a journal from its files alone: nothing was edited, removed, added or moved since it was written.

A chain cannot know about records that were cut off at its very end; for that, hand in a head that was noted elsewhere
(`Journal.head`, counter-signed by the sites). Called by the operator's CLI and by tests; needs no key and no daemon.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from histofed.audit.record import GENESIS, AuditRecord, Sealed, parse_line
from histofed.audit.segments import find, last_lines, lines, lines_backwards, segments
from histofed.base.doctor import Doubt
from histofed.base.errors import BadData, DigestMismatch, NotFound

_NUMBER: Final = re.compile(r"[0-9]{1,18}\Z")
_HASH: Final = re.compile(r"[0-9a-f]{64}\Z")
TORN: Final = "the line is not complete: cut short, or damaged, or a crash while it was written"
RESTORED: Final = "state.restored"
"""The action of the record that a restore leaves: what the journal says before it may be of a history that was lost."""
CLAIMED: Final = "history.claimed"
"""The action of the record that a site leaves whose last word of this journal is not in it: the head that it claims."""
DAMAGED: Final = (
    "keep the folder as evidence (`histofed audit verify` reads it), and restore a backup with --replace; without one, move "
    "the folder aside and start the daemon, which says what comes next"
)
"""What to do about a journal that is not what was written: one advice, whoever finds it."""
EMPTY: Final = "it holds no record: the daemon's start writes the first one; if it has run here, they were removed"
TORN_END: Final = "was torn by a crash before it was acknowledged; the daemon's next start cuts it off"


@dataclass(frozen=True)
class Head:
    """The last record of a chain; sequence 0 stands for an empty one."""

    sequence: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Head:
        """The reverse of `str`, as a person copied it. Raises `BadData`."""
        number, colon, own = text.strip().partition(":")
        if not colon or not _NUMBER.match(number):
            raise BadData(f"{text[:80]!r} is not NUMBER:HASH, as `histofed audit verify` prints a head")
        if not _HASH.match(own.lower()):
            raise BadData(
                f"the hash must be 64 hex digits, the whole of what was printed; {own[:80]!r} has {len(own)} letters"
            )
        return cls(int(number), own.lower())

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"


@dataclass(frozen=True)
class Report:
    """What `verify` found; `segment`, `line` (from 1) and `problem` name the first bad line, or the end that is missing."""

    records: int
    """Records that are proven, from the first one on; none where another record stands in the place of the expected one."""
    head: Head
    """The last of them."""
    ok: bool
    segment: str | None = None
    line: int | None = None
    problem: str | None = None
    restores: tuple[AuditRecord, ...] = ()
    """Records that say that the state was restored from a backup, or put back by hand."""
    claims: tuple[AuditRecord, ...] = ()
    """Records of heads that sites claim and that this journal does not hold."""
    unfilled: str | None = None
    """The newest segment, where it holds no record: just begun, begun before a crash, or emptied. Files cannot say which."""


class _Broken(Exception):
    """Where the proof ends."""

    def __init__(self, segment: str | None, line: int | None, problem: str) -> None:
        super().__init__(problem)
        self.segment, self.line, self.problem = segment, line, problem


def verify(directory: Path, expected: Head | None = None) -> Report:
    """Walk the whole chain; with `expected`, also prove that it still contains that record. Raises `NotFound`."""
    head = Head(0, GENESIS)
    seen_expected = expected is None or expected == head
    notable: list[AuditRecord] = []
    try:
        for sealed in _walk(directory):
            head = Head(sealed.record.sequence, sealed.hash)
            seen_expected = seen_expected or head == expected
            if sealed.record.action in {RESTORED, CLAIMED}:
                notable.append(sealed.record)
    except _Broken as broken:
        restores, claims = _apart(notable)
        return Report(head.sequence, head, False, broken.segment, broken.line, broken.problem, restores, claims)
    restores, claims = _apart(notable)
    if expected is not None and not seen_expected:
        problem = _missing(head, expected, restores)
        if head.sequence >= expected.sequence:
            head = Head(0, GENESIS)  # whoever wrote that record anew may have written those before it anew too
        return Report(head.sequence, head, False, None, None, problem, restores, claims)
    return Report(head.sequence, head, True, restores=restores, claims=claims, unfilled=_unfilled(directory))


def _apart(notable: Sequence[AuditRecord]) -> tuple[tuple[AuditRecord, ...], tuple[AuditRecord, ...]]:
    """Restores, and what sites claimed."""
    restores, claims = (tuple(record for record in notable if record.action == action) for action in (RESTORED, CLAIMED))
    return restores, claims


def _unfilled(directory: Path) -> str | None:
    """A segment is begun before its first record is written, so that an empty one at the end is no damage by itself."""
    files = segments(directory)
    return files[-1].path.name if files and not files[-1].path.stat().st_size else None


def by_hand(restored: AuditRecord) -> bool:
    """Whether the record `RESTORED` is of a state that was put back without a backup."""
    return not restored.subject.get("backup")


def contains(directory: Path, head: Head) -> bool:
    """Whether this very record is in the journal, where its number says; the rest is not proven. Raises `OSError`."""
    line = find(directory, head.sequence)
    try:
        return head == Head(0, GENESIS) if line is None else parse_line(line).hash == head.hash
    except BadData:
        return False


def records(directory: Path) -> Iterator[AuditRecord]:
    """Every record, oldest first, each proven before it is given. Raises `NotFound`, and `DigestMismatch` at a bad line."""
    try:
        for sealed in _walk(directory):
            yield sealed.record
    except _Broken as broken:
        raise DigestMismatch(f"the audit journal cannot be trusted: {_place(broken)}{broken.problem}") from broken


def unproven(directory: Path, action: str = "") -> Iterator[AuditRecord]:
    """Every record that can be read, oldest first, whether or not it stands where it was written; none of no journal.

    With `action` only the records of this action: the other lines are not parsed.
    """
    for segment in segments(directory) if directory.is_dir() else ():
        for line, _ in lines(segment.path):
            if action.encode() not in line:
                continue
            with contextlib.suppress(BadData):
                record = parse_line(line).record
                if action in {"", record.action}:
                    yield record


def unproven_backwards(directory: Path) -> Iterator[AuditRecord]:
    """As `unproven`, newest first: who needs only the last records reads only them, however long the journal."""
    for segment in reversed(segments(directory)) if directory.is_dir() else ():
        for line in lines_backwards(segment.path):
            with contextlib.suppress(BadData):
                yield parse_line(line).record


def newest(directory: Path) -> AuditRecord | None:
    """The last whole record, unproven; None for an empty journal. Raises `NotFound`."""
    if not directory.is_dir():
        raise NotFound(f"there is no audit journal in {directory}; name the folder that holds its .jsonl files")
    for segment in reversed(segments(directory)):
        for line in reversed(last_lines(segment.path)):
            try:
                return parse_line(line).record
            except BadData:
                continue  # `verify` says what is wrong with it
    return None


def examine(directory: Path) -> str | Doubt:
    """For `doctor`: the chain is whole. Raises `DigestMismatch` with the first bad line."""
    return judge(directory, verify(directory)) if directory.is_dir() else Doubt(EMPTY)


def judge(directory: Path, report: Report) -> str | Doubt:
    """`examine`, of a chain that was walked already."""
    if report.ok and not report.records:
        return Doubt(EMPTY)
    if report.ok:
        return f"{report.records} records, the chain is whole"
    if torn_at_the_end(directory, report):
        return Doubt(f"{report.records} records are whole; what follows {TORN_END}")
    where = f"{report.segment} line {report.line}: " if report.segment else ""
    raise DigestMismatch(f"the audit journal is damaged after record {report.records}: {where}{report.problem}; {DAMAGED}")


def torn_at_the_end(directory: Path, report: Report) -> bool:
    """Whether all that is wrong is half a line behind which nothing stands: a crash left it, or a daemon was writing it."""
    last = segments(directory)[-1].path if report.problem == TORN else None
    if last is None or report.segment is None or report.line is None:
        return False
    following = [complete for _, complete in islice(lines(directory / report.segment), report.line - 1, None)]
    # one that is complete by now was the journal's end when it was read
    return following[:1] == [True] or (report.segment == last.name and len(following) == 1)


def _walk(directory: Path) -> Iterator[Sealed]:
    """The chain, link by link; ends with `_Broken` at the first line that does not belong."""
    if not directory.is_dir():
        raise NotFound(f"there is no audit journal in {directory}; name the folder that holds its .jsonl files")
    head = Head(0, GENESIS)
    for segment in segments(directory):
        if segment.first != head.sequence + 1:
            raise _Broken(segment.path.name, None, _gap(head.sequence + 1, segment.first))
        for number, (line, complete) in enumerate(lines(segment.path), 1):
            sealed = _link(line, complete, head, segment.path.name, number)
            head = Head(sealed.record.sequence, sealed.hash)
            yield sealed


def _link(line: bytes, complete: bool, head: Head, segment: str, number: int) -> Sealed:
    """The record in `line`, if it is whole, unchanged and the one that follows `head`."""
    if not complete:
        raise _Broken(segment, number, TORN)
    try:
        sealed = parse_line(line)
    except BadData as error:
        raise _Broken(segment, number, f"this is not the record that was written: {error}") from error
    if sealed.record.sequence != head.sequence + 1:
        raise _Broken(segment, number, _gap(head.sequence + 1, sealed.record.sequence))
    if sealed.previous != head.hash:
        raise _Broken(segment, number, "the record does not continue the one before it: one of the two was replaced")
    return sealed


def _gap(due: int, found: int) -> str:
    """Say what a wrong sequence means."""
    if found > due:
        return f"record {found} stands where record {due} is due: {found - due} records were removed or moved"
    return f"record {found} stands where record {due} is due: a record was inserted, repeated or moved"


def _missing(head: Head, expected: Head, restores: Sequence[AuditRecord]) -> str:
    """Why the head that was noted is not in the chain that ends with `head`."""
    cut = head.sequence < expected.sequence
    if not restores:
        if cut:
            return f"the journal ends at record {head.sequence}; records up to {expected.sequence} were cut off"
        return f"record {expected.sequence} is another one than the head that was noted: the chain was rewritten"
    last = restores[-1]
    found = (
        f"the journal ends at record {head.sequence}, before record {expected.sequence} that was noted"
        if cut
        else f"record {expected.sequence} is another one than the head that was noted"
    )
    if by_hand(last):
        return (
            f"{found}; the state was put back by hand at record {last.sequence}, without a backup, so the head may be of "
            "the history that was lost then, or records were removed: ask who noted it, and the sites"
        )
    return (
        f"{found}; the state was restored at record {last.sequence} from a backup of "
        f"{str(last.subject.get('made_at'))[:19]}, so the head may be of the history that was lost then: look for it in the "
        f"journal under {last.subject.get('kept') or 'the old disk'}"
    )


def _place(broken: _Broken) -> str:
    return "".join((f"{broken.segment} " if broken.segment else "", f"line {broken.line}: " if broken.line else ""))
