"""What of the past is still here: model files, events, signed manifests; read and removed for `aggregator/retention.py`.

The tables are those of `aggregator/store.py`, which reads what the federation goes on from. Rows of experiments, rounds and
models stay for ever; what goes are the details of old rounds, and the claim that a model's files are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from aggregator import queries, schema
from aggregator.database import Database
from histofed.base.clock import Clock, from_iso, iso
from histofed.base.ids import Digest, ExperimentId


@dataclass(frozen=True)
class Held:
    """A model whose files are here."""

    digest: Digest
    experiment: ExperimentId
    round: int
    released: bool
    created_at: datetime
    parts: tuple[tuple[Digest, int], ...]
    """SHA-256 and bytes of its files; models may share some."""


class Past:
    """What may be forgotten of `rounds`, `updates`, `models` and `events`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def models_held(self) -> tuple[Held, ...]:
        """Every model whose files were not removed."""
        parts = schema.model_parts.c
        query = queries.parts_held(schema.models, parts.sha256, parts.bytes).order_by(schema.models.c.digest, parts.name)
        files: dict[str, list[tuple[Digest, int]]] = {}
        rows: dict[str, Any] = {}
        with self._database.reading() as connection:
            for row in connection.execute(query):
                rows[row.digest] = row
                files.setdefault(row.digest, []).append((Digest(row.sha256), row.bytes))
        return tuple(
            Held(
                Digest(row.digest),
                ExperimentId(row.experiment),
                row.round,
                row.state == "released",
                from_iso(row.created_at),
                tuple(files[row.digest]),
            )
            for row in rows.values()
        )

    def parts_held(self) -> frozenset[Digest]:
        """SHA-256 of every file that some model needs."""
        with self._database.reading() as connection:
            return frozenset(map(Digest, connection.execute(queries.parts_held(schema.model_parts.c.sha256)).scalars()))

    def detailed_rounds_before(self, newest: int, most: int) -> dict[ExperimentId, tuple[int, bool]]:
        """Experiments with details (events) of rounds before their `newest` ones.

        By name: the last round, at most `most` after the first one, whose details may go, and whether there are more.
        """
        name, details, rounds = schema.experiments.c.name, schema.events.c, schema.rounds.c
        # one step down an index each, however many rounds there were
        oldest = sa.select(sa.func.min(details.round)).where(details.experiment == name).scalar_subquery()
        last = sa.select(sa.func.max(rounds.number)).where(rounds.experiment == name).scalar_subquery()
        query = sa.select(name, oldest.label("first"), (last - newest).label("old")).where(oldest <= last - newest)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return {ExperimentId(row.name): (min(row.old, row.first + most - 1), row.first + most - 1 < row.old) for row in rows}

    def forget(self, models: Sequence[Digest], through: Mapping[ExperimentId, int]) -> None:
        """These models' files are to go; so do events and manifests of rounds up to the given ones. One transaction."""
        with self._database.writing() as connection:
            table = schema.models
            connection.execute(sa.update(table).where(table.c.digest.in_(models)).values(removed_at=iso(self._clock.now())))
            for name, number in through.items():
                for details in (schema.events, schema.updates):
                    connection.execute(sa.delete(details).where(details.c.experiment == name, details.c.round <= number))
