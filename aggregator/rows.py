"""Rows of the database and the frozen dataclasses they stand for, both ways. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from aggregator.rounds import Round, RoundState
from aggregator.tasks import Task, TaskState
from histofed.base.clock import from_iso, iso
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId
from histofed.pki.signing import Envelope
from histofed.statements import MODEL_TYPE


@dataclass(frozen=True)
class ExperimentRow:
    """An experiment and where it is."""

    name: ExperimentId
    toml: str
    sha256: Digest
    state: str
    reason: str
    submitted_by: str
    created_at: datetime
    ended_at: datetime | None
    forgiven: int = 0
    """Rounds up to this number do not count against `round.abandoned_limit`."""


@dataclass(frozen=True)
class ModelRow:
    """A global model; its statement says the rest."""

    digest: Digest
    experiment: ExperimentId
    round: int
    state: str
    statement: Envelope
    created_at: datetime
    removed_at: datetime | None = None
    """When retention removed its files."""


def moment(text: str | None) -> datetime | None:
    return None if text is None else from_iso(text)


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment)


def envelope_values(envelope: Envelope) -> dict[str, bytes]:
    return {"payload": envelope.payload, "signature": envelope.signature, "certificate": envelope.certificate}


def round_values(state: Round) -> dict[str, Any]:
    return {
        "experiment": state.key.experiment,
        "number": state.key.number,
        "kind": state.kind,
        "base": state.base,
        "eligible": json.dumps(state.eligible),
        "quorum": state.quorum,
        "attempts": state.attempts,
        "deadline_s": state.deadline_s,
        "enough": state.enough,
        **round_progress(state),
    }


def round_progress(state: Round) -> dict[str, Any]:
    """What a transition may change; the plan is written once, and its list of eligible sites is as long as the fleet."""
    return {
        "state": state.state,
        "reason": state.reason,
        "model": state.model,
        "opened_at": _written(state.opened_at),
        "deadline": _written(state.deadline),
        "committed_at": _written(state.committed_at),
    }


def task_values(key: RoundKey, task: Task) -> dict[str, Any]:
    values = asdict(task) | {"experiment": key.experiment, "round": key.number}
    del values["announced"]  # counted in memory alone
    return values


def to_round(row: Any, tasks: tuple[Task, ...]) -> Round:
    return Round(
        key=RoundKey(ExperimentId(row.experiment), row.number),
        base=Digest(row.base),
        eligible=tuple(SiteId(name) for name in json.loads(row.eligible)),
        tasks=tasks,
        quorum=row.quorum,
        attempts=row.attempts,
        deadline_s=row.deadline_s,
        enough=row.enough or len(tasks),
        kind=row.kind,
        state=RoundState(row.state),
        reason=row.reason,
        opened_at=moment(row.opened_at),
        deadline=moment(row.deadline),
        committed_at=moment(row.committed_at),
        model=None if row.model is None else Digest(row.model),
    )


def to_task(row: Any) -> Task:
    return Task(
        site=SiteId(row.site),
        state=TaskState(row.state),
        attempt=row.attempt,
        reason=row.reason,
        manifest=None if row.manifest is None else Digest(row.manifest),
        weights=None if row.weights is None else Digest(row.weights),
        update_bytes=row.update_bytes,
    )


def to_experiment(row: Any) -> ExperimentRow:
    return ExperimentRow(
        ExperimentId(row.name),
        row.toml,
        Digest(row.sha256),
        row.state,
        row.reason,
        row.submitted_by,
        from_iso(row.created_at),
        moment(row.ended_at),
        row.forgiven,
    )


def to_model(row: Any) -> ModelRow:
    statement = Envelope(MODEL_TYPE, row.payload, row.signature, row.certificate)
    return ModelRow(
        Digest(row.digest),
        ExperimentId(row.experiment),
        row.round,
        row.state,
        statement,
        from_iso(row.created_at),
        moment(row.removed_at),
    )
