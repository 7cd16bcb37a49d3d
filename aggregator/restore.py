"""`histofed-aggregator restore`: the state of a backup becomes the state, in the next epoch.

    read      manifest, signature, every hash; into STATE/restore.new
    amend     next epoch; join tokens void; open rounds get their whole time again; what the old state, where it is still
              here, knows better: certificates issued or revoked since, sites that joined since
    journal   the old journal goes on where it continues the backup's; else the backup's does; `state.restored` either way
    swap      `histofed/backup/swap.py`; the old state is kept aside

`in_place` is the same without a file: for a state directory that was put back by hand (a copy, a snapshot of a virtual
machine). Nothing is in its old place before everything was proven. What cannot be known after a restore on an empty disk is
said in `Restored.notes`: certificates that were revoked after the backup are valid again until they end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from aggregator import backup, doctor, schema, setup
from aggregator.config import AggregatorConfig
from aggregator.database import Database
from aggregator.rounds import RoundState
from histofed.audit import history, verify
from histofed.backup import archive, journals, swap
from histofed.backup.manifest import Manifest
from histofed.base import durable
from histofed.base.checkup import megabytes
from histofed.base.clock import Clock, iso
from histofed.base.durable import failpoint
from histofed.base.errors import BadData, CannotWriteState, ConfigError, NotEnrolled, NotFound, UsageError
from histofed.base.ids import sha256
from histofed.pki.keys import certificate_from_pem, der_of

ENDED: Final = (str(RoundState.COMMITTED), str(RoundState.ABANDONED))
TOKENS: Final = "{} join tokens that nobody had used are void: make new ones for sites that have not joined yet"
BLIND: Final = (
    "the state before is not here, so that nobody knows which certificates were revoked and which sites joined after {}: "
    "revoke again what must stay revoked (a site's certificate ends within seven days by itself), enrol those sites again"
)


@dataclass(frozen=True)
class Restored:
    """What a restore did, or with `dry_run` would do."""

    epoch_from: int
    epoch: int
    manifest: Manifest | None
    """None for a state that was put back by hand."""
    aside: str | None = None
    """The folder of the old state in the state directory."""
    notes: tuple[str, ...] = ()
    """What the operator should know or do, in words."""


def restore(
    config: AggregatorConfig, source: Path, clock: Clock, *, replace: bool = False, epoch: int | None = None
) -> Restored:
    """Make the backup in `source` the state. `epoch` is for operators who know of a later one than the backup's.

    Raises `AlreadyThere` (a daemon runs; or there is a state and not `replace`), `BadData`, `DigestMismatch` and
    `NotAuthorised` for a file that is not whole or not this federation's, `VersionMismatch`, `CannotWriteState`.
    """
    state = durable.make_directory(config.state_dir)
    with durable.lock(state / "lock", "histofed-aggregator restore"):
        swap.settle(state)
        swap.refuse_occupied(state, backup.ENTRIES, replace)
        new = swap.prepare(state)
        with archive.reading(source, "aggregator", backup.MEMBERS) as opened:
            archive.unpack(opened, new, lambda manifest: _fits(manifest, config))
            manifest = opened.manifest
        failpoint("restore.unpacked")
        _prove(new, manifest, config, clock)
        old = state if swap.occupied(state, backup.ENTRIES) else None
        before = _old_epoch(state) if old else 0
        later = _next(max(manifest.epoch, before), epoch)
        aside = swap.aside_name(clock.now(), state)
        notes = _amend(new / "state.db", clock, manifest=manifest, epoch=later, old=old)
        old_head = journals.choose(new / "journal", state / "journal", manifest.journal_head)
        subject = history.restored(
            epoch_from=manifest.epoch,
            epoch=later,
            backup=manifest.digest,
            made_at=manifest.made_at,
            backup_head=manifest.journal_head,
            old_head=old_head,
            kept=aside if old else "",
        )
        journals.note(new / "journal", clock, (new / "instance").read_text(), subject, "restored from a backup")
        swap.swap(state, backup.ENTRIES, aside)
    return Restored(manifest.epoch, later, manifest, aside if old else None, tuple(notes))


def in_place(config: AggregatorConfig, clock: Clock, *, epoch: int | None = None) -> Restored:
    """Begin the next epoch of a state directory that was put back by hand. Raises as `restore` does."""
    state = config.state_dir
    if not (state / "identity" / "ca.key").exists():
        raise NotEnrolled(f"{state} holds no federation: nothing was put back here (state_dir in the configuration?)")
    with durable.lock(state / "lock", "histofed-aggregator restore"):
        swap.settle(state)
        if not (state / "state.db").exists():
            raise NotFound(f"{state} holds no state yet: nothing was put back here")
        head = journals.proven(state / "journal")
        before = _old_epoch(state)
        later = _next(before, epoch)
        subject = history.restored(
            epoch_from=before,
            epoch=later,
            backup="",
            made_at=_last_word(state / "journal"),
            backup_head=head,
            old_head=None,
            kept="",
        )
        # before the rows: a crash in between leaves a record of an epoch that begins when this is run again
        journals.note(state / "journal", clock, setup.instance(state), subject, "the state was put back by hand")
        notes = _amend(state / "state.db", clock, manifest=None, epoch=later, old=None)
    return Restored(before, later, None, None, (*notes, BLIND.format("the copy was made")))


def dry_run(config: AggregatorConfig, source: Path, *, epoch: int | None = None) -> Restored:
    """Prove the backup and say what a restore would do; writes nothing. Raises as `restore` does."""
    manifest = backup.check(source)
    _fits(manifest, config)
    before = _old_epoch(config.state_dir)
    notes = []
    if found := swap.occupied(config.state_dir, backup.ENTRIES):
        notes.append(f"{config.state_dir} holds a state ({', '.join(found)}): --replace would move it aside")
    return Restored(manifest.epoch, _next(max(manifest.epoch, before), epoch), manifest, None, tuple(notes))


# --- proofs ------------------------------------------------------------------------------------------------------------


def _fits(manifest: Manifest, config: AggregatorConfig) -> None:
    """The backup is of this federation, and the disk has room for it."""
    if manifest.federation != config.federation:
        raise ConfigError(
            f"the backup is of federation {manifest.federation!r}, the configuration says {config.federation!r}: correct it"
        )
    ca = config.state_dir / "identity" / "ca.pem"
    if ca.exists() and sha256(der_of(certificate_from_pem(ca.read_bytes(), "CA certificate"))) != manifest.ca_sha256:
        raise BadData(
            f"the backup is of another federation than the one in {config.state_dir}, under the same name: their CAs "
            "differ; restore it into an empty state directory if that is what you want"
        )
    there = next(path for path in (config.state_dir, *config.state_dir.absolute().parents) if path.exists())
    wanted = manifest.total_bytes + config.retention.reserve_bytes
    if (free := durable.free_bytes(there)) < wanted:
        raise CannotWriteState(f"the restore needs {megabytes(wanted)}, the disk has {megabytes(free)}: make room")


def _prove(new: Path, manifest: Manifest, config: AggregatorConfig, clock: Clock) -> None:
    """What was unpacked is a state that a daemon can go on from, beyond the hashes."""
    setup.load(config.model_copy(update={"state_dir": new}), clock)  # issues the daemon's own certificate
    found = journals.proven(new / "journal")
    if found != manifest.journal_head:
        raise BadData("the journal in the backup does not end where its manifest says: it was not made by histofed")
    Database(new / "state.db").close()
    durable.make_directory(new / "blobs")
    doctor.database(new / "state.db")
    doctor.models(new / "state.db", new / "blobs")


def _last_word(journal: Path) -> str:
    record = verify.newest(journal)
    return "" if record is None else record.recorded


# --- amendments --------------------------------------------------------------------------------------------------------


def _next(known: int, wanted: int | None) -> int:
    """The epoch to begin. Raises `UsageError` for one that does not lie ahead."""
    if wanted is None:
        return known + 1
    if wanted <= known or wanted > 2**31 - 1:
        raise UsageError(
            f"--epoch {wanted} does not lie ahead: the epoch known here is {known}; leave --epoch out for {known + 1}"
        )
    return wanted


def _old_epoch(state: Path) -> int:
    """The epoch of the state that is here; 0 where none can be read."""
    if not (state / "state.db").exists():
        return 0
    try:
        with backup.connected(state / "state.db") as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'epochs'").fetchone() is None:
                return 1
            (number,) = connection.execute("SELECT max(number) FROM epochs").fetchone()
    except CannotWriteState:
        return 0  # damaged, which is why it is being replaced; `_amend` says so
    return int(number or 1)


def _amend(path: Path, clock: Clock, *, manifest: Manifest | None, epoch: int, old: Path | None) -> list[str]:
    """Make the rows those of the next epoch, in one transaction; what the operator should know."""
    notes: list[str] = []
    known, trouble = _known_since(old) if old else ({}, "")
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
        notes.append(BLIND.format(manifest.made_at[:19]) + (f" ({trouble})" if trouble else ""))
    return notes


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


def _known_since(state: Path) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """Membership as the old state knows it: sites and certificates; nothing, and why, where it cannot be read."""
    if not (state / "state.db").exists():
        return {}, "its database is gone"
    try:
        with backup.connected(state / "state.db") as connection:
            found = {}
            for name in ("sites", "certificates"):
                cursor = connection.execute(f"SELECT * FROM {name}")  # noqa: S608  # two constants
                columns = [column[0] for column in cursor.description]
                found[name] = [dict(zip(columns, row, strict=True)) for row in cursor]
            return found, ""
    except CannotWriteState as error:
        return {}, str(error)


def _merge(connection: sa.Connection, known: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What was issued, revoked and joined after the backup stays so."""
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
    return notes


def summary(done: Restored, *, dry: bool) -> Sequence[str]:
    """What a person reads."""
    verb = "would restore" if dry else "restored"
    lines = []
    if done.manifest is None:
        lines.append(f"epoch {done.epoch_from} -> {done.epoch}; the state that was put back by hand is now a restored one")
    else:
        rounds = ", ".join(f"{name}/{number}" for name, number in sorted(done.manifest.rounds.items())) or "no round"
        lines.append(
            f"{verb} {done.manifest.federation} as it was at {done.manifest.made_at[:19]} UTC, epoch {done.epoch_from} -> "
            f"{done.epoch}; newest committed: {rounds}; CA SHA-256 {done.manifest.ca_sha256}"
        )
    if done.aside is not None:
        lines.append(
            f"the state before is in {done.aside}/ of the state directory: remove it when you do not need it any more"
        )
    return [*lines, *done.notes]
