"""The journal in any order of appends, full disks, crashes in the middle of a line, restarts and tampering."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from histofed.audit.journal import Journal
from histofed.audit.record import GENESIS
from histofed.audit.segments import segments
from histofed.audit.verify import Head, records, verify
from histofed.base.clock import FakeClock
from histofed.base.errors import AlreadyThere, BadData, CannotWriteState, DigestMismatch

SEGMENT = 2000
"""Bytes: a few records, so that segments are begun all the time."""


class AuditJournal(RuleBasedStateMachine):
    """What was acknowledged is there, in order, provable; nothing else is."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.written: list[int] = []
        """The number in each acknowledged record."""
        self.journal = self.open()

    def open(self) -> Journal:
        return Journal(self.folder, FakeClock(), "aggregator", segment_bytes=SEGMENT)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.journal.close()
            shutil.rmtree(self.folder)

    def append(self, number: int) -> None:
        assert self.journal.append("round.opened", subject={"number": number}) == len(self.written) + 1
        self.written.append(number)

    @rule(number=st.integers(), words=st.integers(0, 900))
    def write(self, number: int, words: int) -> None:
        self.journal.append("round.opened", subject={"number": number}, reason="x" * words)
        self.written.append(number)

    @rule(subject=st.sampled_from([{"number": float("nan")}, {"number": "x" * 70_000}]))
    def write_what_no_record_can_hold(self, subject: dict[str, float | str]) -> None:
        with pytest.raises(BadData):
            self.journal.append("round.opened", subject=subject)

    @rule(call=st.sampled_from(["pwrite", "fdatasync", "short"]), number=st.integers(), kept=st.integers(0, 200))
    def write_to_a_full_disk(self, call: str, number: int, kept: int) -> None:
        """The write, its second half, or its sync is refused: nothing was acknowledged, and nothing of it stays."""
        whole = os.pwrite
        pieces = iter([kept])

        def short(descriptor: int, data: bytes, offset: int) -> int:
            for length in pieces:
                return whole(descriptor, bytes(data)[: max(1, length)], offset)
            return _full()

        with pytest.MonkeyPatch.context() as disk, pytest.raises(CannotWriteState):
            disk.setattr(os, "pwrite" if call == "short" else call, short if call == "short" else _full)
            self.journal.append("round.opened", subject={"number": number})

    @rule(number=st.integers())
    def write_to_a_disk_that_refuses_to_take_back_too(self, number: int) -> None:
        """A half line that could not be removed is removed before the next one."""
        with pytest.MonkeyPatch.context() as disk, pytest.raises((CannotWriteState, OSError)):
            disk.setattr(os, "fdatasync", _full)
            disk.setattr(os, "ftruncate", _full)
            self.journal.append("round.opened", subject={"number": number})
        self.append(number)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = self.open()

    @rule(number=st.integers(), share=st.floats(0, 1, exclude_max=True))
    def crash_in_the_middle_of_a_line(self, number: int, share: float) -> None:
        """The line was written in part, and nobody was told that it was."""
        path, acknowledged = self.journal._segment.path, self.journal._segment.size
        self.journal.append("round.opened", subject={"number": number})
        later = self.journal._segment.path
        self.journal.close()
        begin = acknowledged if later == path else 0
        os.truncate(later, begin + int(share * (later.stat().st_size - begin)))
        self.journal = self.open()

    @rule()
    def crash_just_after_a_segment_was_begun(self) -> None:
        if self.written and self.journal._segment.size:
            self.journal.close()
            (self.folder / f"{len(self.written) + 1:012d}.jsonl").touch()
            self.journal = self.open()

    @rule()
    def a_second_daemon_is_started(self) -> None:
        with pytest.raises(AlreadyThere):
            self.open()

    @precondition(lambda self: len(self.written) > 1)
    @rule(data=st.data())
    def somebody_tampers(self, data: st.DataObject) -> None:
        """Any change behind the daemon's back is found by `verify`, with the head noted elsewhere; then it is undone."""
        head = self.journal.head
        files = [segment.path for segment in segments(self.folder) if segment.path.stat().st_size]
        path = data.draw(st.sampled_from(files))
        before = path.read_bytes()
        after = data.draw(st.sampled_from(TAMPERING))(before, data)
        if after == before:
            return
        path.write_bytes(after)
        try:
            assert not verify(self.folder, head).ok
            with pytest.raises(DigestMismatch):
                # the end alone cannot show that something is missing behind it: the head that was noted does
                assert len(list(records(self.folder))) < head.sequence
                raise DigestMismatch("shorter than the head that was noted")
        finally:
            path.write_bytes(before)

    @invariant()
    def the_chain_holds_what_was_acknowledged(self) -> None:
        if hasattr(self, "journal"):
            report = verify(self.folder, self.journal.head)
            assert (report.ok, report.records, report.head) == (True, len(self.written), self.journal.head)
            assert [record.subject["number"] for record in records(self.folder)] == self.written
            if not self.written:
                assert self.journal.head == Head(0, GENESIS)


def _full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "full")


def _flip_a_bit(before: bytes, data: st.DataObject) -> bytes:
    place = data.draw(st.integers(0, len(before) - 1))
    return before[:place] + bytes([before[place] ^ (1 << data.draw(st.integers(0, 7)))]) + before[place + 1 :]


def _drop_a_line(before: bytes, data: st.DataObject) -> bytes:
    lines = before.splitlines(keepends=True)
    del lines[data.draw(st.integers(0, len(lines) - 1))]
    return b"".join(lines)


def _repeat_a_line(before: bytes, data: st.DataObject) -> bytes:
    lines = before.splitlines(keepends=True)
    lines.insert(data.draw(st.integers(0, len(lines))), lines[data.draw(st.integers(0, len(lines) - 1))])
    return b"".join(lines)


def _swap_two_lines(before: bytes, data: st.DataObject) -> bytes:
    lines = before.splitlines(keepends=True)
    one, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def _cut_the_end_off(before: bytes, data: st.DataObject) -> bytes:
    return before[: data.draw(st.integers(0, len(before) - 1))]


TAMPERING: list[Callable[[bytes, st.DataObject], bytes]] = [
    _flip_a_bit,
    _drop_a_line,
    _repeat_a_line,
    _swap_two_lines,
    _cut_the_end_off,
]

TestAuditJournal = AuditJournal.TestCase
TestAuditJournal.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
