"""The journal: a record that was acknowledged is there, in order, whatever happens around it."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from histofed.audit.journal import REASON_LETTERS, SEGMENT_BYTES, Journal
from histofed.audit.record import GENESIS, SYSTEM, Who
from histofed.audit.verify import Head, records, verify
from histofed.base.clock import FakeClock
from histofed.base.errors import AlreadyThere, BadData, CannotWriteState, DigestMismatch
from histofed.telemetry.context import round_parent


def open_journal(directory: Path, segment_bytes: int = SEGMENT_BYTES) -> Journal:
    return Journal(directory, FakeClock(), "aggregator", segment_bytes=segment_bytes)


def write(directory: Path, count: int, segment_bytes: int = SEGMENT_BYTES) -> Head:
    journal = open_journal(directory, segment_bytes)
    for number in range(count):
        journal.append("round.opened", subject={"round": number})
    head = journal.head
    journal.close()
    return head


def segment(directory: Path, first: int = 1) -> Path:
    return directory / f"{first:012d}.jsonl"


def test_a_record_says_who_what_when_where_why_and_in_which_trace(tmp_path: Path) -> None:
    journal = Journal(tmp_path, FakeClock(), "aggregator")
    who = Who("spiffe://demo/site/north", "0a1b")
    sequence = journal.append(
        "update.admitted",
        who=who,
        subject={"experiment": "crc", "round": 3, "update": "ab" * 32},
        outcome="refused",
        reason="its norm is above the bound",
        trace=round_parent("crc", 3),
    )
    journal.close()
    (record,) = records(tmp_path)
    assert (record.sequence, record.action, record.who, record.where) == (sequence, "update.admitted", who, "aggregator")
    assert (record.outcome, record.reason) == ("refused", "its norm is above the bound")
    assert record.subject == {"experiment": "crc", "round": 3, "update": "ab" * 32}
    assert record.recorded == "2026-01-01T00:00:00.000000Z"
    assert record.trace == round_parent("crc", 3)


def test_each_record_is_told_when_it_is_on_disk_and_what_was_refused_is_not(tmp_path: Path) -> None:
    on_disk: list[int] = []
    journal = Journal(tmp_path, FakeClock(), "aggregator", written=lambda: on_disk.append(len(list(records(tmp_path)))))
    journal.append("round.opened", subject={"round": 1})
    with pytest.raises(BadData):
        journal.append("round.opened", subject={"round": float("nan")})
    journal.append("round.opened", subject={"round": 2})
    journal.close()
    assert on_disk == [1, 2]


def test_an_empty_journal_is_a_chain_of_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    assert journal.head == Head(0, GENESIS)
    journal.close()
    assert verify(tmp_path).ok


def test_the_chain_continues_after_a_restart(tmp_path: Path) -> None:
    before = write(tmp_path, 3)
    journal = open_journal(tmp_path)
    assert journal.head == before
    assert journal.append("round.opened", subject={}) == 4
    journal.close()
    report = verify(tmp_path, before)
    assert (report.ok, report.records) == (True, 4)


def test_what_a_daemon_does_by_itself_is_done_by_system(tmp_path: Path) -> None:
    write(tmp_path, 1)
    assert next(records(tmp_path)).who == SYSTEM


def test_segments_rotate_and_the_chain_goes_through_them(tmp_path: Path) -> None:
    head = write(tmp_path, 10, segment_bytes=900)
    names = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert len(names) > 2
    assert names[0] == "000000000001.jsonl"
    assert verify(tmp_path, head).records == 10
    assert write(tmp_path, 1, segment_bytes=900).sequence == 11


def test_a_crash_just_after_a_segment_was_begun_is_recovered(tmp_path: Path) -> None:
    write(tmp_path, 2)
    segment(tmp_path, 3).touch()
    assert write(tmp_path, 1).sequence == 3
    assert segment(tmp_path, 3).stat().st_size > 0
    assert verify(tmp_path).records == 3


def test_a_crash_at_every_byte_of_the_last_line_is_recovered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    acknowledged = write(tmp_path, 2)
    before = segment(tmp_path).read_bytes()
    write(tmp_path, 1)
    whole = segment(tmp_path).read_bytes()
    for size in range(len(before), len(whole)):
        segment(tmp_path).write_bytes(whole[:size])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            journal = open_journal(tmp_path)
        assert journal.head == acknowledged
        assert segment(tmp_path).read_bytes() == before
        assert bool(caplog.records) == (size > len(before))
        journal.close()
    assert write(tmp_path, 1).sequence == 3
    assert verify(tmp_path, acknowledged).records == 3


def test_no_audit_no_action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal(tmp_path)
    journal.append("round.opened", subject={})
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", _disk_full)
        with pytest.raises(CannotWriteState, match="No space left"):
            journal.append("round.committed", subject={})
    assert journal.head.sequence == 1
    assert journal.append("round.committed", subject={}) == 2
    journal.close()
    assert [record.action for record in records(tmp_path)] == ["round.opened", "round.committed"]


def _disk_full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_segment_that_cannot_be_begun_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, segment_bytes=1)
    journal.append("round.opened", subject={})
    segment(tmp_path, 2).mkdir()
    with pytest.raises(CannotWriteState):
        journal.append("round.committed", subject={})
    segment(tmp_path, 2).rmdir()
    assert journal.append("round.committed", subject={}) == 2
    journal.close()
    assert verify(tmp_path).records == 2


def test_two_writers_would_fork_the_chain(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    with pytest.raises(AlreadyThere, match="another process uses"):
        open_journal(tmp_path)
    journal.close()
    open_journal(tmp_path).close()


def test_a_reason_of_any_length_is_kept_in_few_words(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append("round.rejected", subject={"site": "north"}, reason="\N{PILE OF POO}\n" * 100_000)
    journal.close()
    (record,) = records(tmp_path)
    assert len(record.reason) == REASON_LETTERS
    assert record.reason.isprintable() and record.reason.endswith("…")


def test_a_record_that_is_a_document_is_refused_and_the_chain_goes_on(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    with pytest.raises(BadData, match="too long"):
        journal.append("round.opened", subject={"words": "x" * 70_000})
    with pytest.raises(BadData, match="not finite"):
        journal.append("round.opened", subject={"loss": float("nan")})
    assert journal.append("round.opened", subject={}) == 1
    journal.close()


@pytest.mark.parametrize("damage", [b"{}\n", b"not json\n", b"\n"])
def test_a_journal_that_ends_in_something_else_is_not_continued(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, 2)
    with segment(tmp_path).open("ab") as file:
        file.write(damage)
    with pytest.raises(DigestMismatch, match="histofed audit verify"):
        open_journal(tmp_path)


def test_a_journal_that_lost_a_record_near_its_end_is_not_continued(tmp_path: Path) -> None:
    write(tmp_path, 5)
    lines = segment(tmp_path).read_bytes().splitlines(keepends=True)
    segment(tmp_path).write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(DigestMismatch, match="does not follow"):
        open_journal(tmp_path)
    # the lock was given back: the operator may repair and start again
    segment(tmp_path).write_bytes(b"".join(lines))
    open_journal(tmp_path).close()


def test_a_segment_that_does_not_follow_is_not_continued(tmp_path: Path) -> None:
    write(tmp_path, 2)
    segment(tmp_path, 9).touch()
    with pytest.raises(DigestMismatch, match="does not follow record 2"):
        open_journal(tmp_path)


def test_the_tail_is_found_in_a_journal_longer_than_the_window(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for _ in range(8):
        journal.append("round.opened", subject={"words": "x" * 60_000})
    head = journal.head
    journal.close()
    journal = open_journal(tmp_path)
    assert journal.head == head
    journal.close()


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    write(tmp_path / "journal", 1)
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700
    assert segment(tmp_path / "journal").stat().st_mode & 0o777 == 0o600
