"""`histofed-agent restore`: the state of a backup becomes the site's state; nothing that only grows is lowered by it.

Where the old state is still here its word counts where it is later: how far the aggregator's history went, private tensors
and the rounds that they belong to, the journal, the certificate. Each counts by itself, whatever else is lost: private
tensors without a row are found by their round at the next offer (`agent/private.py`). These say not whose they are, and the
certificate or the journal beside them has to: without either they stay aside. A restored agent is another instance, with
nothing in hand: tasks that are still wanted are offered again, updates that wait in the outbox are handed over or refused by
the aggregator. Private tensors that are nowhere any more are started anew, and the journal says so.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import backup
from agent.layout import Layout
from agent.state import State, lost
from histofed.audit import history
from histofed.backup import archive, journals, snapshot, swap
from histofed.backup.manifest import CA_MEMBER, Manifest
from histofed.base import durable
from histofed.base.checkup import megabytes
from histofed.base.clock import Clock
from histofed.base.errors import BadData, CannotWriteState, HistofedError
from histofed.base.failpoints import failpoint
from histofed.base.ids import digest
from histofed.pki.credentials import Credentials

ENROLL = "there is no certificate in the backup: run `histofed-agent enroll` with a new join line of the operator"
LOST = "private tensors of rounds after the backup are gone: where they are needed training starts anew, and says so"
UNPROVEN = (
    "neither a certificate nor the journal that was here says whose private tensors lay here: they are left aside, and "
    "training goes on from the backup's or starts anew"
)
FORGOTTEN = "what this site saw of its aggregator after the backup is forgotten"


@dataclass(frozen=True)
class Restored:
    """What a restore did, or with `dry_run` would do."""

    manifest: Manifest
    aside: str | None
    notes: tuple[str, ...]


def restore(layout: Layout, source: Path, clock: Clock, *, replace: bool = False) -> Restored:
    """Make the backup in `source` the state.

    Raises `AlreadyThere` (a daemon runs, a backup is made; or there is a state and not `replace`), `VersionMismatch`,
    `CannotWriteState`, and for a file that is not whole or not this site's `BadData`, `DigestMismatch` and
    `NotAuthorised`.
    """
    state = durable.make_directory(layout.root)
    with durable.lock(layout.lock, "histofed-agent restore"), snapshot.alone(state, "histofed-agent restore"):
        swap.make_way(state, replace)
        with swap.preparing(state) as new:
            own = _own(layout)
            with archive.reading(source, "agent", backup.MEMBERS) as opened:
                archive.unpack(opened, new, lambda manifest: _fits(manifest, layout, own, replace))
                manifest = opened.manifest
            failpoint("restore.unpacked")
            if journals.proven(new / "journal") != manifest.journal_head:
                raise BadData("the journal in the backup does not end where its manifest says: it was not made by histofed")
            old = bool(swap.occupied(state, backup.ENTRIES))
            aside = swap.aside_name(clock.now(), state)
            ours = own is not None or journals.goes_on(layout.journal, manifest.journal_head)
            notes = _take_private(layout, new, ours=ours)
            notes += _take_rows(layout, new, clock, manifest, ours=ours)
            notes += _take_identity(layout, new, own)
            old_head = journals.choose(new / "journal", layout.journal, manifest.journal_head)
            subject = history.restored(
                epoch_from=manifest.epoch,
                epoch=_newest_epoch(new, clock, manifest),
                backup=manifest.digest,
                made_at=manifest.made_at,
                backup_head=manifest.journal_head,
                old_head=old_head,
                kept=aside if old else "",
            )
            site = manifest.holder.rpartition("/")[2]
            journals.note(new / "journal", clock, f"agent-{site}", subject, "restored from a backup")
            swap.swap(state, backup.ENTRIES, aside)
    return Restored(manifest, aside if old else None, tuple(notes))


def dry_run(layout: Layout, source: Path) -> Restored:
    """Prove the backup and say what a restore would do; writes nothing. Raises as `restore` does."""
    manifest = backup.check(source)
    _fits(manifest, layout, _own(layout), replace=True)
    found = swap.occupied(layout.root, backup.ENTRIES) if layout.root.is_dir() else ()
    notes = (f"{layout.root} holds a state ({', '.join(found)}): --replace would move it aside",) if found else ()
    return Restored(manifest, None, notes)


def summary(done: Restored, *, dry: bool) -> Sequence[str]:
    """What a person reads."""
    rounds = ", ".join(f"{name}/{number}" for name, number in sorted(done.manifest.rounds.items())) or "none"
    lines = [
        f"{'would restore' if dry else 'restored'} {done.manifest.holder} as it was at {done.manifest.made_at[:19]} UTC; "
        f"private tensors of rounds: {rounds}; CA SHA-256 {done.manifest.ca_sha256}"
    ]
    if done.aside is not None:
        lines.append(
            f"the state before is in {done.aside}/ of the state directory: remove it when you do not need it any more"
        )
    return [*lines, *done.notes]


def _own(layout: Layout) -> Credentials | None:
    """The certificate that is here; None where there is none that can be read."""
    try:
        return Credentials.load(layout.identity)
    except HistofedError:
        return None


def _fits(manifest: Manifest, layout: Layout, own: Credentials | None, replace: bool) -> None:
    """The backup is of this site, nothing is in its way, and the disk has room for it."""
    if own is not None and (own.identity.uri, own.ca_sha256) != (manifest.holder, manifest.ca_sha256):
        raise BadData(
            f"the backup is of {manifest.holder}, this site is {own.identity} of another name or another federation"
        )
    swap.refuse_occupied(layout.root, backup.ENTRIES, replace)
    there = next(path for path in (layout.root, *layout.root.absolute().parents) if path.exists())
    if (free := durable.free_bytes(there)) < manifest.total_bytes:
        raise CannotWriteState(
            f"the restore needs {megabytes(manifest.total_bytes)}, the disk has {megabytes(free)}: make room"
        )


def _take_private(layout: Layout, new: Path, *, ours: bool) -> list[str]:
    """Private tensors that are here, beside and before those of the backup: of one round, the ones here are later."""
    here = layout.private_tensors()
    if here and not ours:
        return [UNPROVEN]
    for path in here:
        target = durable.make_directory(new / "private" / path.parent.name) / path.name
        with path.open("rb") as reading, durable.writing(target) as writing:
            shutil.copyfileobj(reading, writing)
    # a daemon makes the folder at its start, and leaves it empty where nothing is kept
    return [] if layout.private.is_dir() else [LOST]


def _take_rows(layout: Layout, new: Path, clock: Clock, manifest: Manifest, *, ours: bool) -> list[str]:
    """The later of both states' words, row by row; the new state is another instance, with nothing in hand."""
    ca = digest(manifest.ca_sha256)
    with contextlib.closing(State(new / "state.db", clock)) as restored:
        restored.begin_anew()
        if lost(layout.state) is not None:
            return [f"there was no state file here, or an empty one: {FORGOTTEN}"]
        try:
            with contextlib.closing(State(layout.state, clock)) as old:
                heard, rounds = old.history(ca), old.private_rounds() if ours else {}
        except HistofedError as error:
            return [f"the state file before cannot be read ({error}): {FORGOTTEN}"]
        if heard is not None:
            restored.note_history(ca, heard)
        for name, number in rounds.items():
            if (new / "private" / name / f"{number}.safetensors").exists():
                restored.set_private_round(name, number)
    return []


def _take_identity(layout: Layout, new: Path, own: Credentials | None) -> list[str]:
    """The certificate that is here stays; it is at least as new as the backup's."""
    durable.remove(new / CA_MEMBER)
    if own is not None:
        own.save(new / "identity" / "agent.pem")
        if layout.aggregator.exists():
            durable.replace(new / "identity" / "aggregator", layout.aggregator.read_bytes())
    return [] if (new / "identity" / "agent.pem").exists() else [ENROLL]


def _newest_epoch(new: Path, clock: Clock, manifest: Manifest) -> int:
    with contextlib.closing(State(new / "state.db", clock)) as state:
        heard = state.history(digest(manifest.ca_sha256))
    return 0 if heard is None else heard.epoch
