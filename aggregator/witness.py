"""What the audit journal proves of the rows: no daemon goes on from a database that is older than the journal beside it.

Somebody may put an older copy of `state.db` alone back. Every site's last word of us is in the journal then, so that no site
misses anything, and the files of all models made since would be swept as those that no row wants.

A record is written before the rows that it announces: a crash leaves the journal one record ahead of them, and a disk that
refuses rows more than one. But most records tell of rows that were there before them, and no such row ever goes:

    round.planned               the model that the round starts from
    round.aggregated            the round, which waited for no update any more
    any other of a round        the round
    any other of an experiment  the experiment, unless the record is its submission

Rows that know a round know all that was journalled before the round was planned: the look back ends there. It ends at a
restore too, before which the journal may tell of a history that was lost; epochs say whether the rows know of the restore.
A round of the lost history may have the number of one that was planned since: only the moment at which it was opened tells
the two apart. And the look back ends where a disk does not give the journal back, for a restore may be told there: a start
proves less then, and refuses nothing that belongs together. The daemon's start calls `refuse_older_rows`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from aggregator.rounds import Round, RoundState
from aggregator.store import Store
from histofed.audit import verify
from histofed.audit.record import AuditRecord
from histofed.audit.verify import RESTORED
from histofed.base.clock import iso
from histofed.base.errors import NotFound, WentBack
from histofed.base.ids import RoundKey
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")

BEFORE_AGGREGATION: Final = frozenset({RoundState.PLANNED, RoundState.OPEN})
ADVICE: Final = (
    "put back the database that belongs to this journal, or run `histofed-aggregator restore FILE --replace` with the "
    "newest backup; where there is neither, `histofed-aggregator restore --in-place` goes on from what this database knows, "
    "and the files of the models made since are removed"
)
"""What an operator does about it, the best first."""


def refuse_older_rows(journal: Path, store: Store, epoch: int) -> None:
    """Raises `WentBack` where the rows of `store`, which are in `epoch`, are older than the journal beside them."""
    record = missed(_readable(journal), store, epoch)
    if record is None:
        return
    if record.action == RESTORED:
        raise _older(f"its epoch is {epoch}, and the journal tells of epoch {record.subject['epoch']}")
    what = f"record {record.sequence} ({record.action}, {record.recorded[:19]} UTC)"
    raise _older(f"it lacks what was in it before {what} was written")


def missed(newest_first: Iterable[AuditRecord], store: Store, epoch: int) -> AuditRecord | None:
    """The first of these records that was not written over such rows; None where all may have been."""
    rows = _Rows(store)
    for record in newest_first:
        if record.action == RESTORED:
            return record if _later(record, epoch) else None
        if rows.planned(record):
            return None
        if not _fits(record, rows):
            return record
    return None


def _readable(journal: Path) -> Iterator[AuditRecord]:
    """The records, newest first, as far as a disk gives them back."""
    try:
        yield from verify.unproven_backwards(journal)
    except OSError as error:
        log.error(
            "a part of the audit journal cannot be read, and the database is compared with what was written behind it alone",
            extra=fields(reason=str(error.strerror)),
        )


def _later(restored: AuditRecord, epoch: int) -> bool:
    """Whether the restore began an epoch after this one."""
    told = restored.subject.get("epoch")
    return isinstance(told, int) and told > epoch


def _fits(record: AuditRecord, rows: _Rows) -> bool:
    """Whether the rows that were there before the record are there."""
    match record.action, record.subject:
        case "round.planned", {"base": str(base)}:
            return rows.model(base)
        case "round.aggregated", {"round": str()}:
            found = rows.round(record)
            return found is not None and found.state not in BEFORE_AGGREGATION
        case _, {"round": str()}:
            return rows.round(record) is not None
        case action, {"experiment": str(name)} if action != "experiment.submitted":
            return rows.experiment(name)
        case _:
            return True


class _Rows:
    """What the rows know, each asked once: a round of a thousand sites has thousands of records."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rounds: dict[str, Round | None] = {}
        self._experiments: dict[str, bool] = {}
        self._opened: dict[str, str] = {}
        """When the record was written that a round was opened; the newest of each."""

    def planned(self, record: AuditRecord) -> bool:
        """Whether the record says that a round was planned that the rows know, and no other of its number."""
        name = str(record.subject.get("round"))
        if record.action == "round.opened":
            self._opened.setdefault(name, record.recorded)
        if record.action != "round.planned" or name not in self._opened:
            return False
        found = self.round(record)
        return (
            found is not None
            and found.opened_at is not None
            and record.recorded <= iso(found.opened_at) <= self._opened[name]
        )

    def round(self, record: AuditRecord) -> Round | None:
        """The record's round without its tasks, of which there may be thousands; None where it has none that is known."""
        name = record.subject.get("round")
        if not isinstance(name, str):
            return None
        if name not in self._rounds:
            found = _found(self._store.round, RoundKey.parse(name))
            self._rounds[name] = None if found is None else replace(found, tasks=())
        return self._rounds[name]

    def experiment(self, name: str) -> bool:
        if name not in self._experiments:
            self._experiments[name] = _found(self._store.experiment, name) is not None
        return self._experiments[name]

    def model(self, digest: str) -> bool:
        return _found(self._store.model, digest) is not None


def _found(read: Callable[[T], U], name: T) -> U | None:
    try:
        return read(name)
    except NotFound:
        return None


def _older(why: str) -> WentBack:
    return WentBack(f"the database is older than the audit journal beside it: {why}; {ADVICE}")
