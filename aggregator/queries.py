"""The statements of the store: those of every transition and every offer, and what one transaction says in several places.

`aggregator/store.py` and `aggregator/past.py` are the callers; nothing here begins or ends a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from aggregator import lifecycle, schema
from aggregator.rounds import RoundState
from aggregator.rows import ModelRow, envelope_values, to_task
from aggregator.tasks import Task, TaskState
from histofed.base.clock import Clock, iso
from histofed.base.ids import ExperimentId, RoundKey
from histofed.pki.signing import Envelope
from histofed.statements import decode_model

OPEN_STATES: Final = tuple(sorted(lifecycle.OPEN))

# Made once: building a statement costs several times what SQLite needs to run it.
# A parameter that is not a column's new value begins with "of_".
OF_ROUND: Final[tuple[sa.BindParameter[Any], ...]] = (sa.bindparam("of_experiment"), sa.bindparam("of_round"))
SAVE_ROUND: Final = sa.update(schema.rounds).where(
    schema.rounds.c.experiment == OF_ROUND[0], schema.rounds.c.number == OF_ROUND[1]
)
SAVE_TASK: Final = sa.update(schema.tasks).where(
    schema.tasks.c.experiment == OF_ROUND[0],
    schema.tasks.c.round == OF_ROUND[1],
    schema.tasks.c.site == sa.bindparam("of_site"),
)
ADD_EVENT: Final = sa.insert(schema.events)
UPDATE: Final = sa.select(schema.updates).where(schema.updates.c.manifest == sa.bindparam("of_manifest"))
ADD_UPDATE: Final = sa.insert(schema.updates)
PART: Final = sa.select(schema.model_parts.c.sha256, schema.model_parts.c.bytes).where(
    schema.model_parts.c.model == sa.bindparam("of_model"), schema.model_parts.c.name == sa.bindparam("of_name")
)
NEWEST: Final = 2**31 - 1
"""No round has a higher number."""
SETTLED_ROUND: Final = (
    # down the index from the site's newest round: as quick after ten thousand rounds as after one
    sa.select(schema.tasks.c.round)
    .join(
        schema.rounds,
        (schema.rounds.c.experiment == schema.tasks.c.experiment) & (schema.rounds.c.number == schema.tasks.c.round),
    )
    .where(
        schema.tasks.c.experiment == sa.bindparam("of_experiment"),
        schema.tasks.c.site == sa.bindparam("of_site"),
        schema.tasks.c.round <= sa.bindparam("through"),
        schema.tasks.c.state == TaskState.ADMITTED,
        schema.rounds.c.state == RoundState.COMMITTED,
    )
    .order_by(schema.tasks.c.round.desc())
    .limit(1)
)
HOLDERS: Final = (
    sa.select(schema.model_parts.c.model)
    .join(schema.models)
    .where(schema.models.c.removed_at.is_(None), schema.model_parts.c.sha256 == sa.bindparam("of_sha256"))
    .limit(1)
)
EXPERIMENT: Final = sa.select(schema.experiments).where(schema.experiments.c.name == sa.bindparam("of_name"))
EXPERIMENTS: Final = sa.select(schema.experiments).order_by(
    schema.experiments.c.created_at.desc(), schema.experiments.c.name
)
OPEN_EXPERIMENTS: Final = EXPERIMENTS.where(schema.experiments.c.state.in_(OPEN_STATES))
ENDED_EXPERIMENTS: Final = (
    sa.select(schema.experiments.c.name)
    .where(
        schema.experiments.c.name.in_(sa.bindparam("of_names", expanding=True)),
        schema.experiments.c.state.not_in(OPEN_STATES),
    )
    .order_by(schema.experiments.c.name)
)
ROUND: Final = sa.select(schema.rounds).where(
    schema.rounds.c.experiment == OF_ROUND[0], schema.rounds.c.number == OF_ROUND[1]
)
COMMITTED: Final = (
    sa.select(sa.func.count())
    .select_from(schema.rounds)
    .where(schema.rounds.c.experiment == sa.bindparam("of_experiment"), schema.rounds.c.state == RoundState.COMMITTED)
)
LATEST_MODEL: Final = (
    sa.select(schema.models)
    .where(schema.models.c.experiment == sa.bindparam("of_experiment"))
    .order_by(schema.models.c.round.desc())
    .limit(1)
)


MODELS_ORDER: Final = (schema.models.c.created_at, schema.models.c.round, schema.models.c.digest)


def models(experiment: str, *, newest_first: bool = False) -> sa.Select[Any]:
    """The models of one or all experiments."""
    query = sa.select(schema.models).order_by(*(column.desc() if newest_first else column for column in MODELS_ORDER))
    return query.where(schema.models.c.experiment == experiment) if experiment else query


def parts_held(*columns: Any) -> sa.Select[Any]:
    """A selection from the parts of models whose files are kept."""
    return sa.select(*columns).join_from(schema.model_parts, schema.models).where(schema.models.c.removed_at.is_(None))


def insert_event(connection: sa.Connection, key: RoundKey, name: str, content: Mapping[str, Any], clock: Clock) -> None:
    document = {"event": name} | {
        field: iso(value) if isinstance(value, datetime) else value for field, value in content.items()
    }
    row = {"at": iso(clock.now()), "experiment": key.experiment, "round": key.number, "event": json.dumps(document)}
    connection.execute(ADD_EVENT, row)


def insert_update(connection: sa.Connection, task: Task, key: RoundKey, update: Envelope, clock: Clock) -> None:
    row = {"manifest": task.manifest, "experiment": key.experiment, "round": key.number, "site": task.site}
    values = row | envelope_values(update) | {"received_at": iso(clock.now())}
    if connection.execute(UPDATE, {"of_manifest": task.manifest}).first() is None:
        connection.execute(ADD_UPDATE, values)


def insert_model(connection: sa.Connection, model: ModelRow) -> None:
    row = {"digest": model.digest, "experiment": model.experiment, "round": model.round, "state": model.state}
    values = row | envelope_values(model.statement) | {"created_at": iso(model.created_at)}
    connection.execute(sa.insert(schema.models).values(values))
    parts = decode_model(model.statement.payload).parts
    rows = [
        {"model": model.digest, "name": name, "sha256": file.sha256, "bytes": file.bytes} for name, file in parts.items()
    ]
    connection.execute(sa.insert(schema.model_parts), rows)


def tasks_of(connection: sa.Connection, experiment: str, keys: Sequence[RoundKey]) -> dict[RoundKey, tuple[Task, ...]]:
    """The tasks of the rounds, by round, sorted by site."""
    if not keys:
        return {}
    table = schema.tasks
    query = sa.select(table).order_by(table.c.experiment, table.c.round, table.c.site)
    if experiment:
        numbers = [key.number for key in keys]
        query = query.where(table.c.experiment == experiment, table.c.round.between(min(numbers), max(numbers)))
    elif len(keys) <= 100:
        query = query.where(
            sa.or_(*((table.c.experiment == key.experiment) & (table.c.round == key.number) for key in keys))
        )
    found: dict[RoundKey, tuple[Task, ...]] = {}
    for row in connection.execute(query):
        key = RoundKey(ExperimentId(row.experiment), row.round)
        found[key] = (*found.get(key, ()), to_task(row))
    return found
