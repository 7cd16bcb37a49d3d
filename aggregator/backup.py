"""`histofed-aggregator backup`: the aggregator's state in one file, also while the daemon runs.

    snapshot  database (one transaction's view), journal up to its end now, hard links of the files that its rows name, and
              of first weights that operators brought for experiments without a model
    check     every file that a row needs is there, no round was committed and no experiment began meanwhile; otherwise
              another snapshot
    claim     a row says which rounds are in it: from the next offer on sites keep the private tensors of those rounds;
              a backup that fails takes its claim back, one that is killed leaves it (`aggregator/claims.py`)
    write     manifest, signature, members; one rename
    journal   `backup.made`: here when no daemon runs, by the daemon (`aggregator/history.py`) when one does

The journal is taken after the database, so that it knows at least what the rows know. Uploads that are not complete are left
out: a site sends them again. The CA's key and the token key are in the file, which is therefore to be kept like them; the
daemon's own certificate is not, a restore issues a new one.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from aggregator import claims, setup
from aggregator.config import AggregatorConfig
from aggregator.database import revisions
from aggregator.history import refuse_emptied
from aggregator.rounds import RoundState
from aggregator.tasks import TaskState
from histofed import __version__
from histofed.backup import archive, journals, snapshot
from histofed.backup.archive import Source
from histofed.backup.manifest import CA_MEMBER, FORMAT, Manifest
from histofed.backup.snapshot import JournalEnd
from histofed.base import durable
from histofed.base.clock import Clock, iso
from histofed.base.errors import AlreadyThere, BadData, CannotWriteState, NotEnrolled, TryLater, VersionMismatch
from histofed.base.failpoints import failpoint
from histofed.base.ids import ExperimentId, RoundKey, SiteId, TaskKey, digest
from histofed.base.owner import database_files, denial
from histofed.transport.store import owner_of

ENTRIES: Final = ("state.db", "state.db-wal", "state.db-shm", "journal", "blobs", "first", "identity", "instance", "scratch")
"""What the daemon keeps in its state directory; an operator's folder there is not its own."""
MEMBERS: Final = re.compile(
    r"identity/(ca\.pem|ca\.key|token\.key)|instance|state\.db|journal/\d{12}\.jsonl|blobs/[0-9a-f]{64}(\.[0-9a-f]{16}\.received)?"
    r"|first/[a-z0-9][a-z0-9-]{0,39}\.safetensors"
)
"""Names in an aggregator's backup."""
ATTEMPTS: Final = 8
"""Snapshots that are taken while rounds end too quickly for one."""


@dataclass(frozen=True)
class Rows:
    """What a database says about itself."""

    schema: str
    epoch: int
    rounds: dict[str, int]
    """The newest committed round of each experiment."""
    open_rounds: tuple[str, ...]
    blobs: tuple[str, ...]
    """Names in the blob folder that the rows need: files, and receipts of updates of open rounds."""
    sites: int
    experiments: int
    """How many it knows."""
    begun: frozenset[str]
    """Experiments that have a model, and need no first weights any more."""


@dataclass(frozen=True)
class Taken:
    """A snapshot in its room."""

    rows: Rows
    journal: JournalEnd


def back_up(config: AggregatorConfig, target: Path, clock: Clock) -> Manifest:
    """Write a backup of the state to the new file `target`.

    Raises `AlreadyThere`, `UsageError` for a file in the state, `NotEnrolled`, `BadData` for a damaged state, `WentBack`
    for an emptied journal or a database that was lost, `TryLater`, `CannotWriteState`.
    """
    state = config.state_dir
    archive.refuse_inside(target, state)
    archive.refuse_existing(target)
    if not (state / "identity" / "ca.key").exists():
        raise NotEnrolled(f"{state} holds no federation; there is nothing to back up (state_dir in the configuration?)")
    setup.refuse_lost_database(state)
    credentials = setup.own_credentials(state / "identity")
    own, made_at = uuid.uuid4().hex, iso(clock.now())
    with snapshot.room(state) as room, _claimed_only_if_made(state, own, target):
        taken = _take(state, room, own, made_at)
        failpoint("backup.snapshot_taken")
        sources = list(_sources(state, room, taken))
        manifest = Manifest(
            format=FORMAT,
            kind="aggregator",
            id=own,
            made_at=made_at,
            version=__version__,
            db_schema=taken.rows.schema,
            federation=credentials.federation,
            ca_sha256=credentials.ca_sha256,
            holder=credentials.identity.uri,
            epoch=taken.rows.epoch,
            records=taken.journal.head.sequence,
            head=taken.journal.head.hash,
            rounds=taken.rows.rounds,
            open_rounds=list(taken.rows.open_rounds),
            members=[source.member for source in sources],
        )
        archive.write(target, manifest, sources, credentials, partial(_note, state, own, target))
        failpoint("backup.written")
        with connected(state / "state.db") as live:
            claims.complete(live, manifest)
        _journal(config, clock, manifest)
    return manifest


def _take(state: Path, room: Path, own: str, made_at: str) -> Taken:
    """A snapshot in which nothing is missing, claimed in the live database."""
    snapshot.prove_journal(state / "journal")
    lost: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        durable.remove(room)
        durable.make_directory(room / "blobs")
        snapshot.copy_database(state / "state.db", room / "state.db")
        rows = readconnected(room / "state.db")
        journal = snapshot.journal_end(state / "journal")
        refuse_emptied(journal.head, rows.sites, rows.experiments, rows.epoch)  # before `backup.made` becomes its first
        _link_first(state, room, rows)
        lost = [name for name in rows.blobs if not snapshot.link(state / "blobs" / name, room / "blobs" / name)]
        # where rounds end faster than this, sites may lack the private tensors after a restore; a complete backup goes first
        if not lost and _claim(state, own, made_at, rows, whatever=attempt == ATTEMPTS):
            return Taken(rows, journal)
    with connected(state / "state.db") as live:
        still = [name for name in _blobs(live) if not (state / "blobs" / name).exists()]
    if still:
        raise BadData(f"{len(still)} files that the database names are missing, the first is {still[0][:12]}: run doctor")
    raise TryLater(f"rounds ended faster than their files ({len(lost)}) could be kept; try again in a moment")


def _link_first(state: Path, room: Path, rows: Rows) -> None:
    """First weights wait for an experiment that is still to be submitted or begun; no row names them."""
    for path in durable.listing(setup.first_weights(state), "*.safetensors"):
        if path.stem not in rows.begun and MEMBERS.fullmatch(f"first/{path.name}"):
            snapshot.link(path, durable.make_directory(setup.first_weights(room)) / path.name)


def _claim(state: Path, own: str, made_at: str, rows: Rows, whatever: bool) -> bool:
    """Say in the live database what the snapshot holds, unless a round was committed since, or an experiment has begun:
    the daemon removes its first weights then, and the model that was made of them is not in the snapshot."""
    with connected(state / "state.db") as live:
        claims.settle(live)
        live.execute("BEGIN IMMEDIATE")
        if (_committed(live) != rows.rounds or _begun(live) != rows.begun) and not whatever:
            live.execute("ROLLBACK")
            return False
        claims.make(live, own, made_at, rows.rounds)
        live.execute("COMMIT")
    return True


def _note(state: Path, own: str, target: Path) -> None:
    with connected(state / "state.db") as live:
        claims.note(live, own, target)


@contextlib.contextmanager
def _claimed_only_if_made(state: Path, own: str, target: Path) -> Iterator[None]:
    """A backup that fails must not stay the newest, nor leave a file: what a good one needs may be dropped for it."""
    try:
        yield
    except BaseException:
        if (state / "state.db").exists():
            # where the disk refuses this too, the daemon or the next backup does it
            with contextlib.suppress(CannotWriteState), connected(state / "state.db") as live:
                claims.withdraw(live, own, target)
        raise


def _sources(state: Path, room: Path, taken: Taken) -> Iterable[Source]:
    """Everything that goes into the file, the CA first."""
    for name in (CA_MEMBER, "identity/ca.key", "identity/token.key", "instance"):
        yield Source.read(name, state / name)
    yield Source.read("state.db", room / "state.db")
    yield from taken.journal.sources()
    for name in taken.rows.blobs:
        path = room / "blobs" / name
        if path.suffix:
            yield Source.read(f"blobs/{name}", path)
        else:
            # its name is its hash, which is checked as it is written
            yield Source(f"blobs/{name}", path, path.stat().st_size, digest(name))
    for path in durable.listing(setup.first_weights(room)):
        yield Source.read(f"first/{path.name}", path)


def readconnected(path: Path) -> Rows:
    """What a database that is at rest names. Raises `VersionMismatch` for one of another release, `CannotWriteState`."""
    with connected(path) as connection:
        (schema,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if schema != revisions()[0]:
            raise VersionMismatch(
                f"the database has schema {schema}, this release writes {revisions()[0]}: "
                "start this release's daemon once, or use the release that runs"
            )
        (epoch,) = connection.execute("SELECT max(number) FROM epochs").fetchone()
        opened = tuple(
            f"{name}/{number}" for name, number in connection.execute(f"SELECT experiment, number {_OPEN_ROUNDS}", _ENDED)
        )
        counts = "SELECT (SELECT count(*) FROM sites), (SELECT count(*) FROM experiments)"
        sites, experiments = connection.execute(counts).fetchone()
        begun = _begun(connection)
        return Rows(schema, epoch or 1, _committed(connection), opened, _blobs(connection), sites, experiments, begun)


_ENDED: Final = (str(RoundState.COMMITTED), str(RoundState.ABANDONED))
_OPEN_ROUNDS: Final = "FROM rounds WHERE state NOT IN (?, ?) ORDER BY experiment, number"


def _committed(connection: sqlite3.Connection) -> dict[str, int]:
    """The newest committed round of each experiment; 0 where there is none yet."""
    query = (
        "SELECT name, coalesce(max(number), 0) FROM experiments "
        "LEFT JOIN rounds ON experiment = name AND rounds.state = ? GROUP BY name"
    )
    return {str(name): int(number) for name, number in connection.execute(query, (str(RoundState.COMMITTED),))}


def _begun(connection: sqlite3.Connection) -> frozenset[str]:
    """Experiments that have a model, or have ended: from then on what an operator brought for them may be gone."""
    query = "SELECT experiment FROM models UNION SELECT name FROM experiments WHERE ended_at IS NOT NULL"
    return frozenset(str(name) for (name,) in connection.execute(query))


def _blobs(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Files that rows need: parts of models that are kept, updates of open rounds and the receipts that keep them."""
    parts = connection.execute("SELECT sha256 FROM model_parts JOIN models ON model = digest WHERE removed_at IS NULL")
    held = (str(TaskState.RECEIVED), str(TaskState.ADMITTED))
    updates = connection.execute(
        "SELECT tasks.experiment, tasks.round, rounds.kind, site, weights FROM tasks JOIN rounds "
        "ON rounds.experiment = tasks.experiment AND rounds.number = tasks.round "
        "WHERE rounds.state NOT IN (?, ?) AND tasks.state IN (?, ?) AND weights IS NOT NULL",
        (*_ENDED, *held),
    )
    names = {str(sha) for (sha,) in parts.fetchall()}
    for experiment, number, kind, site, weights in updates:
        task = TaskKey(RoundKey(ExperimentId(experiment), number), kind, SiteId(site))
        names |= {weights, f"{weights}.{owner_of(str(task))}.received"}
    return tuple(sorted(names))


@contextlib.contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of our own beside the daemon's. Raises `CannotWriteState`."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            yield connection
    except sqlite3.Error as error:
        if (refused := denial(*database_files(path))) is not None:
            raise refused from error
        raise CannotWriteState(f"the database {path} cannot be used: {error}") from error


def _journal(config: AggregatorConfig, clock: Clock, manifest: Manifest) -> None:
    """Journal the backup, unless a daemon runs: then it does, for it holds the journal."""
    state = config.state_dir
    try:
        with durable.lock(state / "lock", "histofed-aggregator backup"):
            subject = {"backup": manifest.digest, "made_at": manifest.made_at}
            journals.note(state / "journal", clock, setup.instance(state), subject, "", "backup.made")
            with connected(state / "state.db") as live:
                live.execute("UPDATE backups SET noted_at = ? WHERE id = ?", (iso(clock.now()), manifest.id))
    except AlreadyThere:
        return


def check(source: Path) -> Manifest:
    """Read a backup to its end and prove it. Raises `BadData`, `DigestMismatch`, `NotAuthorised`, `VersionMismatch`."""
    return archive.check(source, "aggregator", MEMBERS)
