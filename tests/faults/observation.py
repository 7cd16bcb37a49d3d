"""Reads what the checker wants to know from an aggregator's state directory; the aggregator must not be running.

The I/O shell around `history.py`. Callers: the simulation, after each seed, and fault runs of real processes, at their end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from aggregator import schema
from aggregator.database import Database
from aggregator.models import SHARED
from aggregator.past import Past
from aggregator.rows import ExperimentRow, ModelRow
from aggregator.store import Store
from histofed.audit.record import AuditRecord
from histofed.audit.verify import records
from histofed.base.clock import SystemClock
from histofed.base.experiment import parse_experiment
from histofed.base.ids import Digest, ExperimentId, RoundKey, TaskKey
from histofed.statements import decode_model, decode_update
from histofed.transport.store import BlobStore, owner_of
from tests.faults.facts import Disk, EventRow, ModelFact, Trial

_CHOOSES: Final = frozenset({"flower:Krum", "flower:MultiKrum", "flower:Bulyan"})


def read_state(state: Path) -> Disk:
    """The disk of a stopped daemon, from its `state_dir`."""
    database = Database(state / "state.db")
    try:
        return read_disk(database, tuple(records(state / "journal")), BlobStore(state / "blobs"))
    finally:
        database.close()


def read_disk(database: Database, journal: tuple[AuditRecord, ...], blobs: BlobStore | None) -> Disk:
    """The disk behind open parts; without `blobs` every file that the rows want is taken to be there."""
    clock = SystemClock()
    store = Store(database, clock)
    held = {model.digest: frozenset(sha for sha, _ in model.parts) for model in Past(database, clock).models_held()}
    models = tuple(_model(row, held.get(row.digest, frozenset())) for row in store.models())
    rounds = store.rounds()
    sent = [(task.weights, state.task_key(task.site)) for state in rounds for task in state.tasks if task.weights]
    wanted = frozenset[str]().union(*held.values(), (weights for weights, _ in sent))
    with database.reading() as connection:
        updates = connection.execute(sa.select(schema.updates)).all()
        events = connection.execute(sa.select(schema.events).order_by(schema.events.c.sequence)).all()
    return Disk(
        trials=tuple(_trial(row) for row in sorted(store.experiments(), key=lambda row: row.name)),
        rounds=rounds,
        models=models,
        updates={row.manifest: decode_update(row.payload).task for row in updates},
        events=tuple(_event(row.experiment, row.round, row.event) for row in events),
        journal=journal,
        blobs=frozenset(blobs.digests()) if blobs is not None else wanted,
        receipts=None
        if blobs is None
        else frozenset(pair for pair in sent if blobs.received(pair[0], owner_of(str(pair[1])))),
    )


def _received(blobs: BlobStore, sent: Iterable[tuple[Digest, TaskKey]]) -> Iterator[tuple[Digest, TaskKey]]:
    return ((weights, task) for weights, task in sent if blobs.received(weights, owner_of(str(task))))


def _trial(row: ExperimentRow) -> Trial:
    file = parse_experiment(row.toml).file
    chooses = file.aggregation.strategy in _CHOOSES
    return Trial(row.name, row.state, file.rounds, file.round.abandoned_limit, chooses)


def _model(row: ModelRow, parts: frozenset[str]) -> ModelFact:
    statement = decode_model(row.statement.payload)
    return ModelFact(
        digest=row.digest,
        experiment=statement.experiment,
        round=statement.round,
        base=statement.base,
        shared=statement.parts[SHARED].sha256,
        parts=parts,
        contributions=tuple((each.site, each.weights_sha256) for each in statement.contributions),
    )


def _event(experiment: str, number: int, document: str) -> EventRow:
    facts = json.loads(document)
    return EventRow(RoundKey(ExperimentId(experiment), number), facts.pop("event"), facts)
