"""`histofed audit verify`: prove a journal from its files alone, without any daemon."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from histofed.base.errors import BadData, UsageError
from histofed.base.ids import Json
from histofed.cli.command import Answer, Commands, Terminal, WithFacts, add_command, add_group

if TYPE_CHECKING:
    from histofed.audit.record import AuditRecord
    from histofed.audit.verify import Head, Report

OPEN_END: Final = "records that were cut off at the end would not show: give --head NUMBER:HASH, noted elsewhere before"


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group."""
    group = add_group(commands, "audit", "Check the audit journals.")
    check = add_command(group, "verify", verify, "Prove that nothing was changed in a journal (STATE/journal).", common)
    check.add_argument(
        "directory", type=Path, metavar="DIR", help="the folder `journal` of the state folder, or a copy of it"
    )
    check.add_argument(
        "--head", metavar="NUMBER:HASH", help="a head that was noted elsewhere; it must still be in the chain"
    )


def verify(args: argparse.Namespace, _: Terminal) -> Answer:
    """Walk the chain. Raises `UsageError` for a head that is none, `NotFound`, and `BadData` for what is no whole chain.

    Errors about a journal come with what is proven of it, for `--json`.
    """
    from histofed.audit.verify import verify as walk

    expected = _head(args.head)
    _refuse_other_folders(args.directory)
    report = walk(args.directory, expected)
    if not report.ok:
        line = f", line {report.line}" if report.line else ""
        place = f" ({report.segment}{line})" if report.segment else ""
        rewritten = not (report.records or report.segment)
        proven = "no record is proven by this head" if rewritten else f"{report.records} records before it are proven"
        raise _unproven(report, f"not what was written: {report.problem}{place}; {proven}")
    if not report.records:
        raise _unproven(
            report,
            "without a record, so nothing is proven: its daemon writes the first one when it starts; if it has run, "
            "every record was removed",
        )
    return Answer(_document(report, expected), "\n".join(_words(report, expected)))


def _head(text: str | None) -> Head | None:
    """What `--head` says."""
    from histofed.audit.verify import Head

    try:
        return None if text is None else Head.parse(text)
    except BadData as error:
        raise UsageError(f"--head: {error}") from error


def _refuse_other_folders(directory: Path) -> None:
    """A folder without a segment is no journal: a proof of nothing would read like one."""
    from histofed.audit.segments import segments

    if not directory.is_dir() or segments(directory):
        return  # `walk` says what a missing folder is
    inside = directory / "journal"
    meant = str(inside) if inside.is_dir() else "the folder `journal` inside the state folder, or a whole copy of it"
    raise WithFacts(
        BadData(f"{directory} is no audit journal, it holds no file such as 000000000001.jsonl: give {meant}"),
        {"ok": False, "records": 0},
    )


def _unproven(report: Report, what: str) -> WithFacts:
    facts: dict[str, Json] = {"ok": False, "records": report.records, "head": str(report.head)}
    return WithFacts(BadData(f"the journal is {what}"), facts)


def _document(report: Report, expected: Head | None) -> dict[str, Json]:
    return {
        "records": report.records,
        "head": str(report.head),
        "ok": True,
        "noted_head": None if expected is None else str(expected),
        "unfilled": report.unfilled,
        "restores": [{"record": each.sequence, **each.subject} for each in report.restores],
        "claims": [{"record": each.sequence, **each.subject} for each in report.claims],
    }


def _words(report: Report, expected: Head | None) -> list[str]:
    """What is proven, what is not, and what a reader should know."""
    words = [f"{report.records} records are proven; head {report.head}"]
    if expected is None:
        words.append(OPEN_END)
    else:
        words.append(f"the head that was noted, record {expected.sequence}, is among them")
    if report.unfilled:
        words.append(
            f"{report.unfilled} holds no record: its daemon has just begun it, or was stopped then, or it was emptied"
        )
    words += map(_restored, report.restores)
    words += [
        f"record {each.sequence}: site {each.subject.get('site')} said that it saw {each.subject.get('head')} in epoch "
        f"{each.subject.get('epoch')}, which is not in this journal"
        for each in report.claims
    ]
    return words


def _restored(record: AuditRecord) -> str:
    from histofed.audit.verify import by_hand

    moment = str(record.subject.get("made_at"))[:19]
    if not by_hand(record):
        how = f"restored from a backup of {moment}"
    elif moment:
        how = f"put back by hand, without a backup, as it was at {moment}"
    else:
        how = "put back by hand, without a backup and without a journal"
    return f"record {record.sequence}: {how}, epoch {record.subject.get('epoch_from')} -> {record.subject.get('epoch')}"
