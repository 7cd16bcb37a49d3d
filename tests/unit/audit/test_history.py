"""Two states of one aggregator are told apart by the head of its journal, and a restore says that it happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from histofed.audit.history import History, repair, restored
from histofed.audit.journal import Journal
from histofed.audit.record import GENESIS
from histofed.audit.segments import find
from histofed.audit.verify import RESTORED, Head, contains, verify
from histofed.base.clock import FakeClock
from histofed.base.errors import BadData

HEADS = some.builds(Head, some.integers(0, 5), some.sampled_from([GENESIS, "a" * 64]))
HISTORIES = some.builds(History, some.integers(1, 3), HEADS)


def written(folder: Path, count: int, segment_bytes: int = 2000, padding: int = 0) -> list[Head]:
    """A journal of several segments, and its head after each record."""
    journal = Journal(folder, FakeClock(), "test", segment_bytes=segment_bytes)
    heads = [journal.head]
    for number in range(count):
        # lines of very different lengths, so that a search by bytes is not one by records
        journal.append("test.done", subject={"number": number, "words": "x" * (padding * (number % 7))})
        heads.append(journal.head)
    journal.close()
    return heads


@pytest.mark.parametrize(("count", "segment_bytes", "padding"), [(1, 2000, 0), (40, 2000, 0), (300, 2**30, 900)])
def test_every_record_is_found_and_no_other(tmp_path: Path, count: int, segment_bytes: int, padding: int) -> None:
    heads = written(tmp_path, count, segment_bytes, padding)
    for head in heads:
        assert contains(tmp_path, head)
        assert not contains(tmp_path, Head(head.sequence, "f" * 64))
    assert find(tmp_path, count + 1) is None
    assert find(tmp_path, 0) is None


def test_a_head_of_an_empty_or_damaged_journal(tmp_path: Path) -> None:
    assert contains(tmp_path, Head(0, GENESIS))
    assert not contains(tmp_path, Head(1, GENESIS))
    heads = written(tmp_path / "journal", 3, 2**30)
    (segment,) = (tmp_path / "journal").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'"number":1', b'"number":7'))
    assert not contains(tmp_path / "journal", heads[2]), "an edited record is not the one that was noted"


@given(HISTORIES, HISTORIES)
def test_of_two_histories_at_most_one_went_back(one: History, other: History) -> None:
    assert not (one.older_than(other) and other.older_than(one))
    assert not one.older_than(one)


@given(HISTORIES, HISTORIES)
def test_a_later_epoch_never_went_back(one: History, other: History) -> None:
    if one.epoch > other.epoch:
        assert not one.older_than(other)


@pytest.mark.parametrize(
    ("epoch", "records", "head"), [(0, 1, "a" * 64), (1, -1, "a" * 64), (1, 1, "A" * 64), (1, 1, "../x")]
)
def test_what_is_no_history_is_refused(epoch: int, records: int, head: str) -> None:
    with pytest.raises(BadData):
        History.parse(epoch, records, head)


def test_the_repair_names_an_epoch_where_one_is_needed() -> None:
    assert repair(1, 1).endswith("restore --in-place`")
    assert repair(1, 4).endswith("restore --in-place --epoch 5`")


def test_a_restore_stands_in_the_journal_and_explains_a_head_that_is_gone(tmp_path: Path) -> None:
    heads = written(tmp_path, 3)
    journal = Journal(tmp_path, FakeClock(), "test")
    subject = restored(
        epoch_from=1, epoch=2, backup="b" * 64, made_at="2026-01-01T00:00:00.000000Z", backup_head=heads[2],
        old_head=Head(9, "c" * 64), kept="before-restore-1",
    )  # fmt: skip
    journal.append(RESTORED, subject=subject)
    journal.close()
    report = verify(tmp_path, Head(4, "d" * 64))
    assert not report.ok
    assert "restored at record 4 from a backup of 2026-01-01T00:00:00" in str(report.problem)
    assert "before-restore-1" in str(report.problem)
    (record,) = verify(tmp_path).restores
    assert record.subject["backup_head"] == f"2:{heads[2].hash}"
