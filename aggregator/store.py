"""What the aggregator has to finish and what it made: experiments, rounds with their tasks and updates, models.

A round's new state and the event that led to it are written together, so that the rows are always a state of the machine
in `aggregator/rounds.py`. Recovery reads only experiments and rounds that are not ended: ten thousand past rounds cost
nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from aggregator import queries, schema
from aggregator.database import Database
from aggregator.events import Event
from aggregator.rounds import Round, RoundState
from aggregator.rows import (
    ExperimentRow,
    ModelRow,
    round_progress,
    round_values,
    task_values,
    to_experiment,
    to_model,
    to_round,
)
from histofed.base.clock import Clock, iso
from histofed.base.errors import AlreadyThere, NotFound
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId
from histofed.pki.signing import Envelope
from histofed.statements import UPDATE_TYPE, File, Outline, outline

T = TypeVar("T")

FEWEST_DIGITS: Final = 4
"""Of a model's digest, to name it."""
OUTLINES: Final = 256
"""Of models that are remembered, of which nothing ever changes: every offer asks for those of the last rounds."""


class Store:
    """The tables `experiments`, `rounds`, `tasks`, `updates`, `models` and `events`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._memory: dict[Hashable, Any] = {}
        self._remembers = database.writes
        self._outline = functools.lru_cache(OUTLINES)(lambda model: outline(self.model(model).statement.payload))

    def _remembered(self, key: Hashable, read: Callable[[], T]) -> T:
        """What `read` gives, once as long as nothing is written: the scheduler asks each second, and little happens."""
        if self._remembers != self._database.writes:
            self._memory.clear()
            self._remembers = self._database.writes
        if key not in self._memory:
            self._memory[key] = read()
        found: T = self._memory[key]
        return found

    # --- experiments -------------------------------------------------------------------------------------------------

    def add_experiment(self, name: ExperimentId, toml: str, sha256: Digest, submitted_by: str) -> None:
        """A new experiment, as a draft; its name was checked."""
        row = {
            "name": name,
            "toml": toml,
            "sha256": sha256,
            "state": "draft",
            "submitted_by": submitted_by,
            "created_at": iso(self._clock.now()),
        }
        with self._database.writing() as connection:
            connection.execute(sa.insert(schema.experiments).values(row))

    def check_name_is_free(self, name: ExperimentId) -> None:
        """Raises `AlreadyThere` when there ever was an experiment of this name."""
        query = sa.select(schema.experiments.c.name).where(schema.experiments.c.name == name)
        with self._database.reading() as connection:
            if connection.execute(query).first() is not None:
                raise AlreadyThere(f"experiment {name} exists already; names are never used twice, choose another")

    def set_experiment(self, name: ExperimentId, state: str, reason: str = "", *, forgive: bool = False) -> None:
        """The experiment moves on; an ended one only changes its reason. `forgive`: no past round counts as a failure."""
        values: dict[str, Any] = {"state": state, "reason": reason}
        if forgive:
            numbers = sa.select(sa.func.coalesce(sa.func.max(schema.rounds.c.number), 0))
            values["forgiven"] = numbers.where(schema.rounds.c.experiment == name).scalar_subquery()
        table = schema.experiments
        if state not in queries.OPEN_STATES:
            values["ended_at"] = sa.func.coalesce(table.c.ended_at, iso(self._clock.now()))
        may = table.c.state.in_((*queries.OPEN_STATES, state))
        with self._database.writing() as connection:
            connection.execute(sa.update(table).where(table.c.name == name, may).values(values))

    def experiments(self, *, only_open: bool = False) -> tuple[ExperimentRow, ...]:
        """Experiments, newest first."""
        return self._remembered(("experiments", only_open), lambda: self._experiments(only_open))

    def _experiments(self, only_open: bool) -> tuple[ExperimentRow, ...]:
        with self._database.reading() as connection:
            rows = connection.execute(queries.OPEN_EXPERIMENTS if only_open else queries.EXPERIMENTS)
            return tuple(to_experiment(row) for row in rows)

    def experiment(self, name: str) -> ExperimentRow:
        """One experiment. Raises `NotFound`."""
        return self._remembered(("experiment", name), lambda: self._experiment(name))

    def _experiment(self, name: str) -> ExperimentRow:
        with self._database.reading() as connection:
            row = connection.execute(queries.EXPERIMENT, {"of_name": name}).first()
        if row is None:
            raise NotFound(f"there is no experiment {name!r}; `histofed experiments list` shows them")
        return to_experiment(row)

    def ended_experiments(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of `names` that have ended; a name that nobody knows here has not."""
        if not names:
            return ()
        with self._database.reading() as connection:
            return tuple(connection.execute(queries.ENDED_EXPERIMENTS, {"of_names": list(names)}).scalars())

    # --- rounds ------------------------------------------------------------------------------------------------------

    def add_round(self, state: Round) -> None:
        """A planned round: its eligible set and its sample are on disk from now on."""
        with self._database.writing() as connection:
            connection.execute(sa.insert(schema.rounds).values(round_values(state)))
            connection.execute(sa.insert(schema.tasks), [task_values(state.key, task) for task in state.tasks])
            queries.insert_event(connection, state.key, "Planned", {}, self._clock)

    def save_round(
        self, before: Round, after: Round, event: Event, update: Envelope | None = None, model: ModelRow | None = None
    ) -> None:
        """A transition: the rows that changed, the event, and the update or model that came with it, together."""
        key = after.key
        of_round = {"of_experiment": key.experiment, "of_round": key.number}
        changed = [new for old, new in zip(before.tasks, after.tasks, strict=True) if new != old]
        with self._database.writing() as connection:
            connection.execute(queries.SAVE_ROUND, round_progress(after) | of_round)
            for task in changed:
                connection.execute(queries.SAVE_TASK, task_values(key, task) | of_round | {"of_site": task.site})
            if update is not None:
                queries.insert_update(connection, changed[0], key, update, self._clock)
            if model is not None:
                queries.insert_model(connection, model)
            queries.insert_event(connection, key, type(event).__name__, asdict(event), self._clock)

    def set_round_metrics(self, key: RoundKey, metrics: Mapping[str, float]) -> None:
        """Averaged metrics of a round, for people; not part of the model."""
        with self._database.writing() as connection:
            connection.execute(
                sa.update(schema.rounds)
                .where(schema.rounds.c.experiment == key.experiment, schema.rounds.c.number == key.number)
                .values(metrics=json.dumps(dict(metrics), sort_keys=True))
            )

    def rounds(self, experiment: str = "", *, only_open: bool = False, last: int | None = None) -> tuple[Round, ...]:
        """Rounds of one or all experiments, oldest first; `last` keeps the newest ones only."""
        if last is None:
            return self._rounds(experiment, only_open=only_open)
        return self._remembered(
            ("rounds", experiment, only_open, last), lambda: self._rounds(experiment, only_open=only_open, last=last)
        )

    def _rounds(self, experiment: str, *, only_open: bool, last: int | None = None) -> tuple[Round, ...]:
        query = sa.select(schema.rounds, schema.experiments.c.created_at).join(schema.experiments)
        if experiment:
            query = query.where(schema.rounds.c.experiment == experiment)
        if only_open:
            query = query.where(schema.rounds.c.state.not_in((RoundState.COMMITTED, RoundState.ABANDONED)))
        order = (schema.experiments.c.created_at, schema.rounds.c.experiment, schema.rounds.c.number)
        query = query.order_by(*(column.desc() for column in order)).limit(last) if last else query.order_by(*order)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            keys = [RoundKey(ExperimentId(row.experiment), row.number) for row in rows]
            tasks = queries.tasks_of(connection, experiment, keys)
        found = [to_round(row, tasks.get(key, ())) for row, key in zip(rows, keys, strict=True)]
        return tuple(reversed(found)) if last else tuple(found)

    def round(self, key: RoundKey) -> Round:
        """One round. Raises `NotFound`."""
        with self._database.reading() as connection:
            row = connection.execute(queries.ROUND, {"of_experiment": key.experiment, "of_round": key.number}).first()
            if row is None:
                raise NotFound(f"there is no round {key}; `histofed rounds list` shows them")
            return to_round(row, queries.tasks_of(connection, key.experiment, [key]).get(key, ()))

    def page_of_rounds(
        self, experiment: str, after: RoundKey | None, most: int
    ) -> tuple[tuple[Round, Mapping[str, float]], ...]:
        """At most so many rounds of one or all experiments with their averaged metrics, oldest first, behind `after`.

        Raises `NotFound` when the experiment of `after` is unknown.
        """
        columns = (schema.experiments.c.created_at, schema.rounds.c.experiment, schema.rounds.c.number)
        query = sa.select(schema.rounds).join(schema.experiments).order_by(*columns).limit(most)
        if experiment:
            query = query.where(schema.rounds.c.experiment == experiment)
        if after is not None:
            begin = self.experiment(after.experiment).created_at
            query = query.where(
                sa.tuple_(*columns) > sa.tuple_(*map(sa.literal, (iso(begin), str(after.experiment), after.number)))
            )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            keys = [RoundKey(ExperimentId(row.experiment), row.number) for row in rows]
            tasks = queries.tasks_of(connection, experiment, keys)
        return tuple(
            (to_round(row, tasks.get(key, ())), json.loads(row.metrics)) for row, key in zip(rows, keys, strict=True)
        )

    def round_metrics(self, key: RoundKey) -> Mapping[str, float]:
        """The averaged metrics of a round; empty before its commit."""
        query = sa.select(schema.rounds.c.metrics).where(
            schema.rounds.c.experiment == key.experiment, schema.rounds.c.number == key.number
        )
        with self._database.reading() as connection:
            metrics: Mapping[str, float] = json.loads(connection.execute(query).scalar_one())
        return metrics

    def rounds_committed(self, experiment: str) -> int:
        """How many rounds of the experiment are committed."""
        return self._remembered(("committed", experiment), lambda: self._committed(experiment))

    def _committed(self, experiment: str) -> int:
        with self._database.reading() as connection:
            return int(connection.execute(queries.COMMITTED, {"of_experiment": experiment}).scalar_one())

    def settled_round(self, experiment: ExperimentId, site: SiteId, through: int | None = None) -> int:
        """The newest committed round, up to `through`, with the site's update in it; 0 when there is none."""
        wanted = {"of_experiment": experiment, "of_site": site, "through": queries.NEWEST if through is None else through}
        with self._database.reading() as connection:
            found = connection.execute(queries.SETTLED_ROUND, wanted).scalar()
        return found or 0

    def update(self, manifest: Digest) -> Envelope:
        """The signed manifest of an update. Raises `NotFound`."""
        with self._database.reading() as connection:
            row = connection.execute(queries.UPDATE, {"of_manifest": manifest}).first()
        if row is None:
            raise NotFound(f"no update with manifest {manifest}")
        return Envelope(UPDATE_TYPE, row.payload, row.signature, row.certificate)

    # --- models ------------------------------------------------------------------------------------------------------

    def add_first_model(self, model: ModelRow) -> None:
        """The model that an experiment starts from; with it the experiment begins to run. Idempotent."""
        with self._database.writing() as connection:
            if (
                connection.execute(sa.select(schema.models.c.digest).where(schema.models.c.digest == model.digest)).first()
                is None
            ):
                queries.insert_model(connection, model)
            connection.execute(
                sa.update(schema.experiments)
                .where(schema.experiments.c.name == model.experiment, schema.experiments.c.state == "draft")
                .values(state="running", reason="")
            )

    def models(self, experiment: str = "", *, last: int | None = None) -> tuple[ModelRow, ...]:
        """Models of one or all experiments, oldest first; `last` keeps the newest ones only."""
        query = queries.models(experiment, newest_first=True).limit(last)
        with self._database.reading() as connection:
            return tuple(map(to_model, reversed(connection.execute(query).all())))

    def page_of_models(self, experiment: str, after: str, most: int) -> tuple[ModelRow, ...]:
        """At most so many models of one or all experiments, oldest first, behind the one with digest `after`, if given.

        Raises `NotFound` when `after` is unknown.
        """
        query = queries.models(experiment).limit(most)
        if after:
            begin = self.model(after)
            place = (iso(begin.created_at), begin.round, begin.digest)
            query = query.where(sa.tuple_(*queries.MODELS_ORDER) > sa.tuple_(*map(sa.literal, place)))
        with self._database.reading() as connection:
            return tuple(map(to_model, connection.execute(query)))

    def model(self, name: str) -> ModelRow:
        """The newest model of an experiment, else one by digest or by an unambiguous beginning of it (`FEWEST_DIGITS`).

        No name is as long as a digest, and one may be a digest's beginning: it then means the experiment. Raises `NotFound`.
        """
        table = schema.models
        by_experiment = (
            sa.select(table)
            .where(table.c.experiment == name)
            .order_by(table.c.round.desc(), table.c.created_at.desc())
            .limit(1)
        )
        long_enough = len(name) >= FEWEST_DIGITS
        matches = table.c.digest.startswith(name, autoescape=True) if long_enough else sa.false()
        by_digest = sa.select(table).where(matches).limit(2)
        with self._database.reading() as connection:
            rows = connection.execute(by_experiment).all() or connection.execute(by_digest).all()
        if len(rows) != 1:
            problem = "is ambiguous, give more of its digits" if rows else "does not exist"
            raise NotFound(f"model {name!r} {problem}; `histofed models list` shows them")
        return to_model(rows[0])

    def latest_model(self, experiment: ExperimentId) -> ModelRow | None:
        """The experiment's newest model."""
        with self._database.reading() as connection:
            row = connection.execute(queries.LATEST_MODEL, {"of_experiment": experiment}).first()
        return None if row is None else to_model(row)

    def outline(self, model: Digest) -> Outline:
        """What the model's statement says of its files. Raises `NotFound`."""
        return self._outline(model)

    def part(self, model: Digest, name: str) -> File:
        """One file of a model. Raises `NotFound`."""
        with self._database.reading() as connection:
            row = connection.execute(queries.PART, {"of_model": model, "of_name": name}).first()
        if row is None:
            raise NotFound(f"model {model[:12]} has no part {name!r}")
        return File(row.sha256, row.bytes)

    def is_part(self, sha256: Digest) -> bool:
        """The file belongs to some model whose files are kept."""
        with self._database.reading() as connection:
            return connection.execute(queries.HOLDERS, {"of_sha256": sha256}).first() is not None

    def was_base_of(self, site: SiteId, experiment: ExperimentId, sha256: Digest) -> bool:
        """The file is what a task of the site in the experiment starts from, and is kept."""
        parts, rounds, tasks = schema.model_parts.c, schema.rounds, schema.tasks
        query = (
            queries.parts_held(parts.model)
            .join(rounds, rounds.c.base == parts.model)
            .join(tasks)
            .where(parts.name == "shared", parts.sha256 == sha256, tasks.c.site == site, tasks.c.experiment == experiment)
        )
        with self._database.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None
