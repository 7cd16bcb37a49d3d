"""How far an aggregator's history goes, and how a site notices that it has gone back.

The audit journal never loses a record, so its head (how many records, the hash of the last one) tells any two states of one
aggregator apart. A restore is the one honest way back: it begins the next *epoch*. What a site was told last must therefore
still be in the aggregator's journal, unless the epoch is a later one. A state directory that was put back by hand, an old
snapshot of a virtual machine, a clone, a journal whose last records somebody removed: each shows an old epoch without that
record.

`restored` makes the record that a restore leaves in a journal, `claimed` that of a site which has seen more; `verify` reads
both, and `examine` says for `doctor` whether a claim is still open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from histofed.audit import verify
from histofed.audit.record import AuditRecord
from histofed.audit.verify import CLAIMED, RESTORED, Head
from histofed.base.doctor import Doubt
from histofed.base.errors import BadData
from histofed.base.ids import Json, digest

EPOCH_KEY: Final = "histofed-epoch"
"""Metadata of a site's calls about its tasks: the epoch in which they were offered."""
LAST: Final = 2**31 - 1
"""The highest epoch: messages have 32 bits for it."""
FARTHEST: Final = 10**8
"""Epochs between two histories at most: also dates make epochs, 20261231, while no slip and no lie uses the numbers up."""
REPAIR: Final = (
    "where nobody put it back, have the journal looked at before anything else (SECURITY.md); then, on the aggregator's "
    "machine, stop the daemon and run `histofed-aggregator restore --in-place"
)
"""What an operator does about a history that went back; the closing mark and an epoch may follow.

Files cannot tell a state that was put back from a journal whose end was removed, and the command hides the difference.
"""


@dataclass(frozen=True)
class History:
    """Where an aggregator's history stands."""

    epoch: int
    """Counts from 1."""
    head: Head
    """The last record of its audit journal."""

    @classmethod
    def parse(cls, epoch: int, records: int, head: str) -> History:
        """What came over the wire, checked. Raises `BadData`."""
        if epoch < 1 or records < 0:
            raise BadData("a history has an epoch from 1 on and no negative number of records")
        return cls(epoch, Head(records, digest(head)))

    def older_than(self, seen: History) -> bool:
        """Whether this history must have gone back, by its numbers alone."""
        return (self.epoch, self.head.sequence) < (seen.epoch, seen.head.sequence)

    def __str__(self) -> str:
        return f"epoch {self.epoch}, record {self.head.sequence}"


def repair(own_epoch: int, seen_epoch: int) -> str:
    """What to do about a history that went back, ending in the command that makes it an honest one."""
    number = f" --epoch {seen_epoch + 1}" if seen_epoch > own_epoch else ""
    return f"{REPAIR}{number}`"


def believable(seen_epoch: int, own_epoch: int) -> bool:
    """Whether the epoch that a site says it saw can be left behind by one restore."""
    return seen_epoch <= own_epoch or seen_epoch < min(own_epoch + FARTHEST, LAST)


def claimed(site: str, seen: History) -> Mapping[str, Json]:
    """The subject of the record `CLAIMED`: what a site says that it was told last."""
    return {"site": site, "epoch": seen.epoch, "head": str(seen.head)}


def restored(
    *, epoch_from: int, epoch: int, backup: str, made_at: str, backup_head: Head, old_head: Head | None, kept: str
) -> Mapping[str, Json]:
    """The subject of the record `RESTORED`.

    `backup` is the digest of the backup's manifest (empty for a state that was put back by hand), `made_at` its moment,
    `old_head` where the journal that was here before ended, `kept` the name of the folder that it was moved to.
    """
    return {
        "epoch_from": epoch_from,
        "epoch": epoch,
        "backup": backup,
        "made_at": made_at,
        "backup_head": str(backup_head),
        "old_head": None if old_head is None else str(old_head),
        "kept": kept,
    }


def examine(directory: Path) -> str | Doubt:
    """For the aggregator's `doctor`: its journal is whole and holds what sites saw. Raises as `verify.examine` does."""
    report = verify.verify(directory)
    found = verify.judge(directory, report)
    epoch = max((_epoch(record) for record in report.restores), default=1)
    # what was seen of an earlier epoch was lost in a restore, and shuts no site out; of one so far ahead nothing was seen
    missed = [claim for claim in report.claims if epoch <= _epoch(claim) and believable(_epoch(claim), epoch)]
    if isinstance(found, Doubt) or not missed:
        return found
    sites = ", ".join(sorted({str(claim.subject["site"]) for claim in missed}))
    return Doubt(
        f"{found}, but {sites} saw a history that is not in it and works no more until that is repaired (`histofed status` "
        "says whether it still is so): the state was put back from a copy without `restore`, or records were removed; "
        f"{repair(epoch, max(map(_epoch, missed)))}"
    )


def _epoch(record: AuditRecord) -> int:
    return int(str(record.subject["epoch"]))


__all__ = [
    "CLAIMED",
    "EPOCH_KEY",
    "FARTHEST",
    "LAST",
    "RESTORED",
    "History",
    "believable",
    "claimed",
    "examine",
    "repair",
    "restored",
]
