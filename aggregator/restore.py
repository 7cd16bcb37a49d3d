"""`histofed-aggregator restore`: the state of a backup becomes the state, in the next epoch.

    read      manifest, signature, every hash; into STATE/restore.new
    amend     next epoch; join tokens void; open rounds get their whole time again; what the old state, where it is still
              here, knows better: certificates issued or revoked since, sites that joined since
    first     weights that operators brought since for experiments to come are kept
    journal   the old journal goes on where it continues the backup's; else the backup's does; `state.restored` either way
    swap      `histofed/backup/swap.py`; the old state is kept aside

`in_place` is the same without a file: for a state directory that was put back by hand (a copy, a snapshot of a virtual
machine). Nothing is in its old place before everything was proven. What cannot be known after a restore on an empty disk is
said in `Restored.notes`: certificates that were revoked after the backup are good again until their site enrols once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aggregator import amendments, backup, doctor, setup
from aggregator.config import AggregatorConfig
from aggregator.database import Database
from histofed.audit import history, verify
from histofed.backup import archive, journals, snapshot, swap
from histofed.backup.manifest import Manifest
from histofed.base import durable
from histofed.base.checkup import megabytes
from histofed.base.clock import Clock
from histofed.base.errors import BadData, CannotWriteState, ConfigError, NotEnrolled, NotFound
from histofed.base.failpoints import failpoint
from histofed.base.ids import sha256
from histofed.pki.keys import certificate_from_pem, der_of

BY_HAND: Final = "the state was put back by hand; no backup was used"
"""Why, in the journal's record."""


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

    Raises `AlreadyThere` (a daemon runs, a backup is made; or there is a state and not `replace`), `VersionMismatch`,
    `CannotWriteState`, and for a file that is not whole or not this federation's `BadData`, `DigestMismatch` and
    `NotAuthorised`.
    """
    state = durable.make_directory(config.state_dir)
    with durable.lock(state / "lock", "histofed-aggregator restore"), snapshot.alone(state, "histofed-aggregator restore"):
        swap.make_way(state, replace)
        with swap.preparing(state) as new:
            with archive.reading(source, "aggregator", backup.MEMBERS) as opened:
                archive.unpack(opened, new, lambda manifest: _fits(manifest, config, replace))
                manifest = opened.manifest
            failpoint("restore.unpacked")
            _prove(new, manifest, config, clock)
            old = state if swap.occupied(state, backup.ENTRIES) else None
            before = _epoch_here(state) if old else 0
            later = amendments.next_epoch(max(manifest.epoch, before), epoch)
            aside = swap.aside_name(clock.now(), state)
            notes = amendments.amend(new / "state.db", clock, manifest=manifest, epoch=later, old=old)
            _keep_first(state, new)
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
    with durable.lock(state / "lock", "histofed-aggregator restore"), snapshot.alone(state, "histofed-aggregator restore"):
        swap.settle(state)
        setup.refuse_lost_database(state)
        if not (state / "state.db").exists():
            raise NotFound(f"{state} holds no state yet: nothing was put back here")
        before = amendments.epoch_of(state)
        later = amendments.next_epoch(_epoch_here(state), epoch)
        head = journals.proven(durable.make_directory(state / "journal"), verify.DAMAGED)
        subject = history.restored(
            epoch_from=before,
            epoch=later,
            backup="",
            made_at=_last_word(state / "journal"),
            backup_head=head,
            old_head=None,
            kept="",
        )
        # before the rows: after a crash in between no daemon starts, and when this is run again, the epoch after it begins
        journals.note(state / "journal", clock, setup.instance(state), subject, BY_HAND)
        notes = amendments.amend(state / "state.db", clock, manifest=None, epoch=later, old=None)
    return Restored(before, later, None, None, (*notes, *amendments.blind("the copy was made")))


def _epoch_here(state: Path) -> int:
    """No number is given twice, or sites would not hear of the restore: also where only the journal is left to tell.

    Raises `BadData` where that cannot be read.
    """
    return max(amendments.epoch_of(state), amendments.epoch_told(state / "journal"))


def dry_run(config: AggregatorConfig, source: Path, *, epoch: int | None = None) -> Restored:
    """Prove the backup and say what a restore would do; writes nothing. Raises as `restore` does."""
    manifest = backup.check(source)
    _fits(manifest, config, replace=True)
    before = _epoch_here(config.state_dir)
    notes = []
    if found := swap.occupied(config.state_dir, backup.ENTRIES):
        notes.append(f"{config.state_dir} holds a state ({', '.join(found)}): --replace would move it aside")
    return Restored(manifest.epoch, amendments.next_epoch(max(manifest.epoch, before), epoch), manifest, None, tuple(notes))


# --- proofs ------------------------------------------------------------------------------------------------------------


def _fits(manifest: Manifest, config: AggregatorConfig, replace: bool) -> None:
    """The backup is of this federation, nothing is in its way, and the disk has room for it."""
    if manifest.federation != config.federation:
        raise ConfigError(
            f"the backup is of federation {manifest.federation!r}, the configuration says {config.federation!r}: correct it"
        )
    ca = config.state_dir / "identity" / "ca.pem"
    if ca.exists() and sha256(der_of(certificate_from_pem(ca.read_bytes(), "CA certificate"))) != manifest.ca_sha256:
        raise BadData(
            f"the backup is of another federation than the one in {config.state_dir}, under the same name: their CAs "
            "differ; if it is the backup's that you want, move that folder aside and restore again"
        )
    swap.refuse_occupied(config.state_dir, backup.ENTRIES, replace)
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


def _keep_first(state: Path, new: Path) -> None:
    """First weights that are here stay, in the place of those in the backup: they were given later."""
    for path in durable.listing(setup.first_weights(state), "*.safetensors"):
        durable.link(path, durable.make_directory(setup.first_weights(new)) / path.name)


def _last_word(journal: Path) -> str:
    record = verify.newest(journal)
    return "" if record is None else record.recorded


def summary(done: Restored, *, dry: bool) -> Sequence[str]:
    """What a person reads."""
    verb = "would restore" if dry else "restored"
    lines = []
    if done.manifest is None:
        lines.append(f"epoch {done.epoch_from} -> {done.epoch}; the state that was put back by hand is now a restored one")
    else:
        lines.append(
            f"{verb} {done.manifest.federation} as it was at {done.manifest.made_at[:19]} UTC, epoch {done.epoch_from} -> "
            f"{done.epoch}; newest committed: {done.manifest.newest_committed}; CA SHA-256 {done.manifest.ca_sha256}"
        )
    if done.aside is not None:
        lines.append(
            f"the state before is in {done.aside}/ of the state directory: remove it when you do not need it any more"
        )
    return [*lines, *done.notes]
