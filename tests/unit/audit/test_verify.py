"""Every way of tampering with a journal is found, and named."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histofed.audit.journal import Journal
from histofed.audit.record import GENESIS, AuditRecord, Who, chain_hash
from histofed.audit.verify import RESTORED, Head, examine, records, verify
from histofed.base.clock import FakeClock
from histofed.base.doctor import Doubt
from histofed.base.errors import BadData, DigestMismatch, NotFound
from histofed.base.ids import canonical

FILE = "000000000001.jsonl"


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """Five records, as they stand in the file."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory), FakeClock(), "aggregator")
        for number in range(5):
            journal.append(
                "round.opened",
                who=Who("spiffe://demo/operator/ann", "1f"),
                subject={"round": number},
                reason="geplant für März",
            )
        journal.close()
        return (Path(directory) / FILE).read_bytes().splitlines(keepends=True)


def store(directory: Path, lines: list[bytes]) -> Path:
    (directory / FILE).write_bytes(b"".join(lines))
    return directory


def rewritten(previous: Head, sequence: int, action: str) -> tuple[bytes, Head]:
    """A record as somebody would forge it who knows the format."""
    record = AuditRecord(
        sequence, "2026-01-01T00:00:00.000000Z", 0, "aggregator", action, Who("system"), {}, "success", "", None
    )
    line, own = record.line(previous.hash)
    return line + b"\n", Head(sequence, own)


def test_an_untouched_journal_is_proven(tmp_path: Path, lines: list[bytes]) -> None:
    report = verify(store(tmp_path, lines))
    assert (report.ok, report.records, report.head.sequence, report.problem) == (True, 5, 5, None)
    assert report.head.hash == json.loads(lines[-1])["hash"]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_single_byte_that_changes_is_found(lines: list[bytes], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(lines) - 1), label="line")
    position = data.draw(st.integers(0, len(lines[number]) - 1), label="byte")
    changed = bytearray(lines[number])
    changed[position] = data.draw(st.integers(0, 255).filter(lambda value: value != changed[position]), label="value")
    with tempfile.TemporaryDirectory() as directory:
        report = verify(store(Path(directory), [*lines[:number], bytes(changed), *lines[number + 1 :]]))
    assert not report.ok
    assert report.records <= number
    assert report.line == report.records + 1
    assert "format" not in str(report.problem), "whoever changed a byte changed it, also in the version"
    assert report.segment == FILE


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_byte_that_is_added_or_taken_away_is_found(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(lines)
    position = data.draw(st.integers(0, len(whole) - 1), label="byte")
    added = data.draw(st.binary(max_size=1), label="added")
    changed = whole[:position] + added + whole[position + (not added) :]
    with tempfile.TemporaryDirectory() as directory:
        assert not verify(store(Path(directory), [changed])).ok


def test_an_edit_is_named(tmp_path: Path, lines: list[bytes]) -> None:
    edited = lines[2].replace(b"round.opened", b"round.closed")
    report = verify(store(tmp_path, [*lines[:2], edited, *lines[3:]]))
    assert (report.ok, report.records, report.line) == (False, 2, 3)
    assert "was changed after it was written" in str(report.problem)


def test_a_deletion_is_named(tmp_path: Path, lines: list[bytes]) -> None:
    report = verify(store(tmp_path, lines[:1] + lines[3:]))
    assert report.problem == "record 4 stands where record 2 is due: 2 records were removed or moved"
    assert report.line == 2


def test_a_deletion_at_the_beginning_is_named(tmp_path: Path, lines: list[bytes]) -> None:
    assert "1 records were removed" in str(verify(store(tmp_path, lines[1:])).problem)


def test_an_insertion_is_named(tmp_path: Path, lines: list[bytes]) -> None:
    report = verify(store(tmp_path, [*lines[:3], lines[1], *lines[3:]]))
    assert "was inserted, repeated or moved" in str(report.problem)
    assert report.line == 4


def test_a_forged_insertion_breaks_the_chain_behind_it(tmp_path: Path, lines: list[bytes]) -> None:
    forged, _ = rewritten(Head(2, json.loads(lines[1])["hash"]), 3, "round.opened")
    report = verify(store(tmp_path, [*lines[:2], forged, *lines[3:]]))
    assert "does not continue the one before it" in str(report.problem)
    assert report.line == 4


def test_a_change_of_order_is_found(tmp_path: Path, lines: list[bytes]) -> None:
    report = verify(store(tmp_path, [lines[0], lines[2], lines[1], *lines[3:]]))
    assert (report.ok, report.line) == (False, 2)


def test_a_cut_at_the_end_is_found_with_a_head_that_was_noted(tmp_path: Path, lines: list[bytes]) -> None:
    head = verify(store(tmp_path, lines)).head
    store(tmp_path, lines[:3])
    assert verify(tmp_path).ok
    report = verify(tmp_path, head)
    assert (report.ok, report.records) == (False, 3)
    assert report.problem == "the journal ends at record 3; records up to 5 were cut off"


def test_a_chain_that_was_written_anew_is_found_with_a_head_that_was_noted(tmp_path: Path, lines: list[bytes]) -> None:
    noted = Head(5, json.loads(lines[4])["hash"])
    forged, _ = rewritten(Head(4, json.loads(lines[3])["hash"]), 5, "nothing.happened")
    report = verify(store(tmp_path, [*lines[:4], forged]), noted)
    assert "the chain was rewritten" in str(report.problem)
    assert (report.ok, report.records, report.head) == (False, 0, Head(0, GENESIS)), "what came before may be forged as well"


@pytest.mark.parametrize("backup", ["", "a" * 64])
def test_a_head_beyond_the_end_of_a_restored_journal_is_not_said_to_be_another_record(tmp_path: Path, backup: str) -> None:
    journal = Journal(tmp_path, FakeClock(), "aggregator")
    journal.append("round.opened", subject={"round": 1})
    kept = "before-restore-1" if backup else ""
    journal.append(RESTORED, subject={"backup": backup, "made_at": "2026-01-01T00:00:00.000000Z", "kept": kept})
    journal.close()
    beyond, within = (verify(tmp_path, Head(number, "a" * 64)) for number in (300, 1))
    assert "the journal ends at record 2, before record 300" in str(beyond.problem)
    assert "restored at record 2 from" in str(beyond.problem) or "put back by hand at record 2" in str(beyond.problem)
    assert beyond.records == 2
    assert "record 1 is another one than the head that was noted" in str(within.problem)
    assert within.records == 0


def test_a_head_from_the_middle_is_still_contained(tmp_path: Path, lines: list[bytes]) -> None:
    noted = Head(3, json.loads(lines[2])["hash"])
    assert verify(store(tmp_path, lines), noted).ok


def test_a_missing_segment_is_found(tmp_path: Path) -> None:
    journal = Journal(tmp_path, FakeClock(), "aggregator", segment_bytes=500)
    for number in range(6):
        journal.append("round.opened", subject={"round": number})
    journal.close()
    files = sorted(tmp_path.glob("*.jsonl"))
    files[1].unlink()
    report = verify(tmp_path)
    assert (report.ok, report.segment, report.line) == (False, files[2].name, None)
    assert "removed or moved" in str(report.problem)


def test_a_line_of_an_unknown_format_is_not_trusted(tmp_path: Path, lines: list[bytes]) -> None:
    document = {**json.loads(lines[0]), "version": 2}
    del document["hash"]
    newer = canonical({**document, "hash": chain_hash(GENESIS, document)}) + b"\n"
    assert "format that this version" in str(verify(store(tmp_path, [newer])).problem)


@pytest.mark.parametrize(
    ("before", "after"), [(b'"version":1', b'"version":2'), (b'"version"', b'"Version"'), (b'"hash"', b'"hush"')]
)
def test_a_byte_in_what_frames_a_record_is_a_change_and_no_other_format(
    tmp_path: Path, lines: list[bytes], before: bytes, after: bytes
) -> None:
    problem = str(verify(store(tmp_path, [lines[0].replace(before, after)])).problem)
    assert problem.endswith("its content was changed after it was written")


def test_a_segment_that_was_just_begun_is_no_damage_but_is_told(tmp_path: Path, lines: list[bytes]) -> None:
    store(tmp_path, lines)
    assert verify(tmp_path).unfilled is None
    (tmp_path / "000000000006.jsonl").touch()
    report = verify(tmp_path)
    assert (report.ok, report.records, report.unfilled) == (True, 5, "000000000006.jsonl")


def test_doctor_doubts_a_journal_without_a_record(tmp_path: Path, lines: list[bytes]) -> None:
    Journal(tmp_path, FakeClock(), "aggregator").close()
    found = examine(tmp_path)
    assert isinstance(found, Doubt), "a daemon that is only just begun has not failed"
    assert "holds no record" in found.words
    assert examine(store(tmp_path, lines)) == "5 records, the chain is whole"


@pytest.mark.parametrize("number", [0, 7, 10**12])
def test_a_head_is_read_as_it_is_printed(number: int) -> None:
    head = Head(number, "ab" * 32)
    assert Head.parse(f" {head}\n") == head
    assert Head.parse(str(head).upper()) == head


@pytest.mark.parametrize(
    "text", ["", "59b4", "nine:" + "a" * 64, ":" + "a" * 64, "-1:" + "a" * 64, "1" * 5000 + ":" + "a" * 64]
)
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(BadData, match="is not NUMBER:HASH"):
        Head.parse(text)


@pytest.mark.parametrize("own", ["", "59b4", "a" * 63, "a" * 65, "g" * 64, "a" * 63 + "\n" + "a"])
def test_a_head_whose_hash_is_shortened_is_refused(own: str) -> None:
    with pytest.raises(BadData, match="must be 64 hex digits"):
        Head.parse(f"34:{own}")


def test_reading_stops_at_the_first_bad_line(tmp_path: Path, lines: list[bytes]) -> None:
    store(tmp_path, [lines[0], lines[1].replace(b"round.opened", b"round.closed")])
    reader = records(tmp_path)
    assert next(reader).sequence == 1
    with pytest.raises(DigestMismatch, match=f"{FILE} line 2: this is not the record"):
        next(reader)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no audit journal"):
        verify(tmp_path / "elsewhere")
