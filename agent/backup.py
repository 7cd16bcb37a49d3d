"""`histofed-agent backup`: what a site must not lose, in one file, also while the daemon runs.

In it: the state file (private rounds, how far the aggregator's history went), the audit journal with every consent decision,
private tensors, finished updates that wait. Not in it: the work of the task in hand and decoded tiles, which are made again,
the hospital's configuration and consent file, which its own management keeps, and, unless it is asked for, the site's key: a
new join line makes a new one, and a key that lies in fewer places is stolen less easily.

The journal tells of a backup before its file has its name, so that no file, perhaps with a key in it, is there untold: by a
record, or, while a daemon holds the journal, by a note that the daemon makes a record of. A kill in between leaves a record
without a file.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from agent.layout import Layout
from agent.state import SCHEMA, State, lost
from histofed import __version__
from histofed.audit.journal import Journal
from histofed.audit.segments import segments
from histofed.backup import archive, journals, snapshot
from histofed.backup.archive import Source
from histofed.backup.manifest import CA_MEMBER, FORMAT, Manifest
from histofed.base import durable
from histofed.base.clock import Clock, iso
from histofed.base.errors import AlreadyThere, BadData, NotFound, TryLater
from histofed.base.failpoints import failpoint
from histofed.pki.credentials import Credentials

ENTRIES: Final = (
    *("state.db", "state.db-wal", "state.db-shm", "journal", "private", "outbox", "identity", "work", "status.json"),
)
"""What the daemon keeps in its state directory; decoded tiles are a cache, and stay."""
_NAME: Final = "[a-z0-9-]{1,40}"
MEMBERS: Final = re.compile(
    rf"identity/(ca\.pem|agent\.pem|aggregator)|state\.db|journal/\d{{12}}\.jsonl|private/{_NAME}/\d{{1,9}}\.safetensors"
    rf"|outbox/{_NAME}\.\d{{1,9}}\.[a-z]{{1,20}}/(manifest\.json|update\.safetensors)"
)
"""Names in an agent's backup."""
ATTEMPTS: Final = 8
MADE: Final = "backups-made"
"""Folder of notes that a running daemon journals: one file for each backup that is made beside it."""


@dataclass(frozen=True)
class Taken:
    """A snapshot in its room."""

    private_rounds: dict[str, int]
    epoch: int
    journal: snapshot.JournalEnd
    files: tuple[str, ...]
    """Names below the room, of private tensors and of the outbox."""


def back_up(layout: Layout, target: Path, clock: Clock, *, with_identity: bool = False) -> Manifest:
    """Write a backup of the state to the new file `target`.

    Raises `AlreadyThere`, `UsageError` for a file in the state, `NotEnrolled`, `NotFound` where no daemon has run yet or
    its state file was lost, `BadData`, `TryLater`, `CannotWriteState`.
    """
    archive.refuse_inside(target, layout.root)
    archive.refuse_existing(target)
    credentials = Credentials.load(layout.identity)
    if (sentence := lost(layout.state)) is not None and layout.journal.is_dir() and segments(layout.journal):
        raise NotFound(sentence)
    with snapshot.room(layout.root) as room:
        taken = _take(layout, room, clock, credentials)
        failpoint("backup.snapshot_taken")
        _keep_identity(layout, room, credentials, with_identity)
        sources = list(_sources(room, taken))
        manifest = Manifest(
            format=FORMAT,
            kind="agent",
            id=uuid.uuid4().hex,
            made_at=iso(clock.now()),
            version=__version__,
            db_schema=str(SCHEMA),
            federation=credentials.federation,
            ca_sha256=credentials.ca_sha256,
            holder=credentials.identity.uri,
            epoch=taken.epoch,
            records=taken.journal.head.sequence,
            head=taken.journal.head.hash,
            rounds=taken.private_rounds,
            open_rounds=sorted({name.split("/")[1] for name in taken.files if name.startswith("outbox/")}),
            members=[source.member for source in sources],
        )
        archive.write(target, manifest, sources, credentials, partial(_journal, layout, clock, credentials, manifest))
        failpoint("backup.written")
    return manifest


def check(source: Path) -> Manifest:
    """Read a backup to its end and prove it. Raises `BadData`, `DigestMismatch`, `NotAuthorised`, `VersionMismatch`."""
    return archive.check(source, "agent", MEMBERS)


def note_made(layout: Layout, journal: Journal) -> None:
    """For the daemon: journal the backups that were made beside it. Raises `CannotWriteState`; a later call notes them."""
    for path in durable.listing(layout.root / MADE, "[0-9a-f]*"):
        digest, _, made_at = path.read_text(encoding="utf-8").partition(" ")
        journal.append("backup.made", subject={"backup": digest, "made_at": made_at})
        durable.remove(path)


def _take(layout: Layout, room: Path, clock: Clock, credentials: Credentials) -> Taken:
    """A snapshot with the private tensors that its rows name."""
    snapshot.prove_journal(layout.journal)
    for _ in range(ATTEMPTS):
        durable.remove(room)
        durable.make_directory(room)
        snapshot.copy_database(layout.state, room / "state.db")
        with contextlib.closing(State(room / "state.db", clock)) as state:
            rounds = {str(name): number for name, number in state.private_rounds().items()}
            history = state.history(credentials.ca_sha256)
        journal = snapshot.journal_end(layout.journal)
        if history is not None and not journal.head.sequence:
            # `backup.made` would become its first record, and the daemon's next start would find nothing wrong
            raise BadData(
                f"the audit journal in {layout.journal} holds no record, though this site has talked to its aggregator: "
                "its files were removed or emptied; put them back, or start the agent, which writes that down, and try again"
            )
        files = tuple(_link(layout, room))
        if all(f"private/{name}/{number}.safetensors" in files for name, number in rounds.items()):
            return Taken(rounds, 0 if history is None else history.epoch, journal, files)
    missing = [name for name, number in rounds.items() if not (layout.private / name / f"{number}.safetensors").exists()]
    if missing:
        raise BadData(
            f"the private tensors of {', '.join(missing)} are missing: run doctor, training starts with fresh ones"
        )
    raise TryLater("rounds ended faster than their private tensors could be kept; try again in a moment")


def _link(layout: Layout, room: Path) -> Iterator[str]:
    """Keep private tensors and whole outbox entries; the names of those that are there."""
    for path in layout.private_tensors():
        name = path.relative_to(layout.root).as_posix()
        if MEMBERS.fullmatch(name) and snapshot.link(path, durable.make_directory((room / name).parent) / path.name):
            yield name
    for update in durable.listing(layout.outbox):
        entry = [update / "manifest.json", update / "update.safetensors"]
        names = [path.relative_to(layout.root).as_posix() for path in entry]
        if not entry[-1].exists() or not all(MEMBERS.fullmatch(name) for name in names):
            continue
        folder = durable.make_directory((room / names[0]).parent)
        if all(snapshot.link(path, folder / path.name) for path in entry):
            yield from names


def _keep_identity(layout: Layout, room: Path, credentials: Credentials, with_key: bool) -> None:
    """Who the site is, as it was when the backup began: a renewal may replace its files before they are read."""
    kept = Layout(room)
    durable.make_directory(kept.identity.parent)
    durable.replace(room / CA_MEMBER, credentials.ca_pem)
    with contextlib.suppress(FileNotFoundError):
        durable.replace(kept.aggregator, layout.aggregator.read_bytes())
    if with_key:
        credentials.save(kept.identity)


def _sources(room: Path, taken: Taken) -> Iterator[Source]:
    """Everything that goes into the file, the CA first."""
    yield Source.read(CA_MEMBER, room / CA_MEMBER)
    for path in sorted((room / "identity").iterdir()):
        if path != room / CA_MEMBER:
            yield Source.read(f"identity/{path.name}", path)
    yield Source.read("state.db", room / "state.db")
    yield from taken.journal.sources()
    for name in taken.files:
        yield Source.read(name, room / name)


def _journal(layout: Layout, clock: Clock, credentials: Credentials, manifest: Manifest) -> None:
    """Journal the backup, or leave a note for the daemon that holds the journal."""
    try:
        with durable.lock(layout.lock, "histofed-agent backup"):
            subject = {"backup": manifest.digest, "made_at": manifest.made_at}
            journals.note(layout.journal, clock, f"agent-{credentials.identity.name}", subject, "", "backup.made")
    except AlreadyThere:
        folder = durable.make_directory(layout.root / MADE)
        durable.replace(folder / manifest.id, f"{manifest.digest} {manifest.made_at}".encode())
