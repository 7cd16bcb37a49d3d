"""`histofed audit verify`: prove a journal from its files alone, without any daemon."""

from __future__ import annotations

import argparse
from pathlib import Path

from histofed.base.errors import BadData
from histofed.cli.command import Answer, Commands, Terminal, add_command, add_group


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group."""
    group = add_group(commands, "audit", "Check the audit journals.")
    check = add_command(group, "verify", verify, "Prove that nothing was changed in a journal (STATE/journal).", common)
    check.add_argument("directory", type=Path, metavar="DIR", help="the journal's folder, or a copy of it")
    check.add_argument("--head", metavar="N:HASH", help="a head that was noted elsewhere; it must still be in the chain")


def verify(args: argparse.Namespace, _: Terminal) -> Answer:
    """Walk the chain. Raises `NotFound` and, for a chain that is broken, `BadData` with the place."""
    from histofed.audit.verify import Head
    from histofed.audit.verify import verify as walk

    expected = None
    if args.head is not None:
        sequence, _colon, digest = args.head.partition(":")
        if not sequence.isdecimal() or not digest:
            raise BadData(f"--head {args.head[:80]!r} is not N:HASH, as this command prints it")
        expected = Head(int(sequence), digest)
    report = walk(args.directory, expected)
    if not report.ok:
        place = f" ({report.segment}, line {report.line})" if report.segment else ""
        raise BadData(
            f"the journal is not what was written: {report.problem}{place}; {report.records} records before it are proven"
        )
    head = f"{report.head.sequence}:{report.head.hash}"
    restores = [{"record": each.sequence, **each.subject} for each in report.restores]
    words = [f"{report.records} records are proven; head {head}"]
    words += [
        f"record {each.sequence}: restored from a backup of {str(each.subject.get('made_at'))[:19]}, "
        f"epoch {each.subject.get('epoch_from')} -> {each.subject.get('epoch')}"
        for each in report.restores
    ]
    return Answer({"records": report.records, "head": head, "ok": True, "restores": restores}, "\n".join(words))
