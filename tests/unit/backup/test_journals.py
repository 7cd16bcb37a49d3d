"""Which journal a backup, and a restore, may go on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from histofed.audit import verify
from histofed.audit.journal import Journal
from histofed.audit.segments import segments
from histofed.audit.verify import DAMAGED, Head, Report
from histofed.backup import journals, snapshot
from histofed.base.clock import FakeClock
from histofed.base.errors import BadData

RECORDS = 20


def written(folder: Path, records: int = RECORDS) -> Head:
    """A journal of some segments; where it ends."""
    journal = Journal(folder, FakeClock(), "agent-north", segment_bytes=1500)
    for number in range(records):
        journal.append("round.opened", subject={"round": number})
    journal.close()
    assert len(segments(folder)) > 1
    return journals.proven(folder)


def tear(segment: Path) -> None:
    """Its last line loses its end."""
    segment.write_bytes(segment.read_bytes()[:-20])


def test_half_a_line_that_a_crash_left_does_not_count(tmp_path: Path) -> None:
    head = written(tmp_path)
    tear(segments(tmp_path)[-1].path)
    snapshot.prove_journal(tmp_path)
    assert journals.proven(tmp_path).sequence == head.sequence - 1


@pytest.mark.parametrize("prove", [snapshot.prove_journal, lambda folder: journals.proven(folder, DAMAGED)])
def test_half_a_line_behind_which_others_stand_is_damage(tmp_path: Path, prove: Callable[[Path], object]) -> None:
    written(tmp_path)
    tear(segments(tmp_path)[0].path)
    with pytest.raises(BadData, match=r"the audit journal is damaged after record \d+: .*not complete.*keep the folder"):
        prove(tmp_path)


@pytest.mark.parametrize("segment", [-2, -1])
def test_a_line_that_a_daemon_was_just_writing_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    """Further records, or another segment, follow before the backup looks at the end again."""
    written(tmp_path)
    files = [each.path for each in segments(tmp_path)]
    later = {path: path.read_bytes() for path in files[segment:]}
    busy, *following = later
    begin = later[busy].splitlines(keepends=True)
    busy.write_bytes(b"".join(begin[: -1 if following else 1])[:-20])
    for path in following:
        path.unlink()
    walk = verify.verify

    def beside_a_daemon(folder: Path) -> Report:
        report = walk(folder)
        for path, data in later.items():
            path.write_bytes(data)
        return report

    monkeypatch.setattr(verify, "verify", beside_a_daemon)
    snapshot.prove_journal(tmp_path)
    assert walk(tmp_path).ok


@pytest.mark.parametrize(("segment", "goes_on"), [(-2, False), (-1, True)])
def test_an_old_journal_goes_on_where_only_its_end_is_torn(tmp_path: Path, segment: int, goes_on: bool) -> None:
    backup_head = written(tmp_path / "new", 8)
    written(tmp_path / "old")
    tear(segments(tmp_path / "old")[segment].path)
    told = journals.choose(tmp_path / "new", tmp_path / "old", backup_head)
    assert told is not None
    assert (journals.proven(tmp_path / "new") == told) is goes_on
    assert (journals.proven(tmp_path / "new") == backup_head) is not goes_on
