"""What must be true of a restored database before a daemon goes on from it: the rows of the next epoch.

The epoch itself and the backup; join tokens void, because one that was used since would be good again; deadlines of open
rounds moved on; and what the state before, where it can still be read, knows better: certificates issued or revoked since,
sites that joined since. Experiments that were submitted since are named: their rows alone would be of no use. One
transaction. `aggregator/restore.py` is the caller.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from aggregator import backup, schema
from aggregator.database import Database
from aggregator.rounds import RoundState
from histofed.audit import verify
from histofed.audit.history import FARTHEST, LAST, RESTORED
from histofed.backup.manifest import Manifest
from histofed.base.clock import Clock, iso
from histofed.base.errors import BadData, CannotWriteState, UsageError

ENDED: Final = (str(RoundState.COMMITTED), str(RoundState.ABANDONED))
TOKENS: Final = "{} join tokens that nobody had used are void: make new ones for sites that have not joined yet"
BLIND: Final = (
    "the state before is not here, so that nobody knows which certificates were revoked and which sites joined after {}: "
    "enrol those sites again, and each that enrolled again since, for what that had revoked is good until then",
    "experiments submitted and first weights given after {} must be given again: the weights first (`histofed-aggregator "
    "first`), then the experiments; rounds and models made since are made again by themselves",
    "what the journal told after {} is gone with it, where it is gone too: sites' journals tell their part",
)
UNREADABLE: Final = (
    "the audit journal cannot be read ({}), which tells what epochs there were: move its folder aside, as evidence, and run "
    "this again; the log of the daemon names the --epoch that is needed where a site has seen a later one than that leads to"
)
LOST: Final = (
    "experiments submitted after the backup are not in it: {}; submit again what is still wanted, after its first weights "
    "where they were given (`histofed-aggregator first`)"
)


def next_epoch(known: int, wanted: int | None) -> int:
    """The epoch to begin. Raises `UsageError` for one that does not lie ahead, or too far, and where none is left."""
    if known >= LAST:
        raise UsageError(
            f"epoch {known} is the last that there is, so no restore can follow it: begin a new federation, with an empty "
            "state directory"
        )
    if wanted is None:
        return known + 1
    if not known < wanted <= min(known + FARTHEST, LAST):
        raise UsageError(
            f"--epoch {wanted} does not lie ahead of {known}, the epoch known here, or by more than {FARTHEST}; "
            f"leave --epoch out for {known + 1}"
        )
    return wanted


def epoch_of(state: Path) -> int:
    """The epoch of the state that is here; 0 where none can be read."""
    if not (state / "state.db").exists():
        return 0
    try:
        with backup.connected(state / "state.db") as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'epochs'").fetchone() is None:
                return 1
            (number,) = connection.execute("SELECT max(number) FROM epochs").fetchone()
    except CannotWriteState:
        return 0  # damaged, which is why it is being replaced; `amend` says so
    return int(number or 1)


def epoch_told(journal: Path) -> int:
    """The newest epoch that a restore began here by the journal, which may be there when the database is lost; 0 for none.

    Unproven: a number too high costs a restore nothing, one that was given before lets sites miss it. Raises `BadData` where
    the journal cannot be read.
    """
    try:
        told = [record.subject.get("epoch") for record in verify.unproven(journal, RESTORED)]
    except OSError as error:
        raise BadData(UNREADABLE.format(error.strerror)) from error
    return max((epoch for epoch in told if isinstance(epoch, int) and epoch < LAST), default=0)


def amend(path: Path, clock: Clock, *, manifest: Manifest | None, epoch: int, old: Path | None) -> list[str]:
    """Make the rows those of the next epoch, in one transaction; what the operator should know."""
    notes: list[str] = []
    known, trouble = _known_since(old)
    database = Database(path)
    try:
        with database.writing() as connection:
            now = iso(clock.now())
            row = {"number": epoch, "began_at": now, "backup": manifest.digest if manifest else ""}
            connection.execute(sa.insert(schema.epochs).values(row))
            if manifest is not None:
                connection.execute(sa.insert(schema.backups).values(_backup_row(manifest, now)))
            voided = connection.execute(
                sa.update(schema.tokens)
                .where(schema.tokens.c.used_at.is_(None), schema.tokens.c.expires_at > now)
                .values(used_at=now)
            ).rowcount
            if voided:
                notes.append(TOKENS.format(voided))
            _renew_deadlines(connection, clock)
            notes += _merge(connection, known)
    finally:
        database.close()
    if manifest is not None and (old is None or trouble):
        notes += blind(manifest.made_at[:19], trouble)
    return notes


def blind(moment: str, trouble: str = "") -> list[str]:
    """What nobody can know of the time after `moment`, and what to do; `trouble`: why the state before tells nothing."""
    first, *others = (sentence.format(moment) for sentence in BLIND)
    return [f"{first} ({trouble})" if trouble else first, *others]


def _backup_row(manifest: Manifest, now: str) -> dict[str, Any]:
    """The backup that is being restored, for sites: what they keep for it stays."""
    rounds = json.dumps(manifest.rounds, sort_keys=True)
    return {"id": manifest.id, "made_at": manifest.made_at, "rounds": rounds, "digest": manifest.digest, "noted_at": now}


def _renew_deadlines(connection: sa.Connection, clock: Clock) -> None:
    """An open round gets its whole time again: the one that it had has passed while nobody could work on it."""
    table = schema.rounds
    query = sa.select(table.c.experiment, table.c.number, table.c.deadline_s).where(
        table.c.state.not_in(ENDED), table.c.deadline.is_not(None)
    )
    for row in connection.execute(query).all():
        deadline = iso(clock.now() + timedelta(seconds=row.deadline_s))
        where = (table.c.experiment == row.experiment, table.c.number == row.number)
        connection.execute(sa.update(table).where(*where).values(deadline=deadline))


def _known_since(state: Path | None) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """What the old state knows of sites, certificates and experiments; nothing, and why, where it cannot be read."""
    if state is None:
        return {}, ""
    if not (state / "state.db").exists():
        return {}, "its database is gone"
    try:
        with backup.connected(state / "state.db") as connection:
            found: dict[str, list[dict[str, Any]]] = {}
            for table in (schema.sites, schema.certificates, schema.experiments):
                there = {row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")}
                # a database of another release may lack some, or have more
                columns = [column.name for column in table.c if column.name in there]
                rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table.name}")  # noqa: S608  # our own names
                found[table.name] = [dict(zip(columns, row, strict=True)) for row in rows]
            return found, ""
    except CannotWriteState as error:
        return {}, str(error)


def _merge(connection: sa.Connection, known: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What was issued, revoked and joined after the backup stays so; experiments that it does not have are named."""
    certificates, sites = schema.certificates, schema.sites
    here = set(connection.execute(sa.select(certificates.c.serial)).scalars())
    revoked = set(
        connection.execute(sa.select(certificates.c.serial).where(certificates.c.revoked_at.is_not(None))).scalars()
    )
    again = 0
    for row in known.get("certificates", []):
        if row["serial"] not in here:
            connection.execute(sa.insert(certificates).values(row))
        elif row["revoked_at"] is not None and row["serial"] not in revoked:
            connection.execute(
                sa.update(certificates).where(certificates.c.serial == row["serial"]).values(revoked_at=row["revoked_at"])
            )
        again += row["revoked_at"] is not None and row["serial"] not in revoked
    names = set(connection.execute(sa.select(sites.c.name)).scalars())
    joined = [row for row in known.get("sites", []) if row["name"] not in names]
    for row in joined:
        connection.execute(sa.insert(sites).values(row))
    notes = []
    if again:
        notes.append(f"{again} certificates that were revoked after the backup stay revoked")
    if joined:
        notes.append(f"{len(joined)} sites that joined after the backup stay members")
    kept = set(connection.execute(sa.select(schema.experiments.c.name)).scalars())
    if lost := sorted({row["name"] for row in known.get("experiments", [])} - kept):
        notes.append(LOST.format(", ".join(lost)))
    return notes
