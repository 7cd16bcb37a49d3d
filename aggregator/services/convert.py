"""Rows and states to protobuf messages, and what comes with a call to words of ours.

Nothing else in the aggregator knows both; but an offer has a file of its own, `aggregator/services/offers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from aggregator.fleet import Fleet
from aggregator.members import SiteRow
from aggregator.rounds import Round
from aggregator.rows import ExperimentRow, ModelRow
from aggregator.tasks import WITH_SITE, Task, TaskState
from histofed.audit.history import History
from histofed.audit.record import Who
from histofed.base.clock import iso
from histofed.base.ids import Digest, TaskKey
from histofed.pki.signing import Envelope
from histofed.statements import outline
from histofed.transport.server import Caller
from histofed.v1 import admin_pb2, rounds_pb2, types_pb2

_IN_VAIN: Final = frozenset({TaskState.REJECTED, TaskState.DECLINED, TaskState.EXPIRED})
"""Tasks of which nothing comes."""


def text(moment: datetime | None) -> str:
    """RFC 3339, or empty."""
    return "" if moment is None else iso(moment)


def task_state(state: TaskState) -> str:
    """The wire's word for a task's state."""
    return f"TASK_STATE_{state.name}"


def who(by: Caller) -> Who:
    """Whose doing it is, for the journal."""
    return Who(by.identity.uri, by.serial)


def history(now: History) -> rounds_pb2.History:
    """Where the aggregator's history stands, for the wire."""
    return rounds_pb2.History(epoch=now.epoch, records=now.head.sequence, head=now.head.hash)


def seen_history(request: rounds_pb2.HelloRequest) -> History | None:
    """What the site has seen of this aggregator's history; None before its first hello. Raises `BadData`."""
    if not request.HasField("history"):
        return None
    return History.parse(request.history.epoch, request.history.records, request.history.head)


def envelope(signed: Envelope) -> types_pb2.Envelope:
    """A signed document for the wire."""
    return types_pb2.Envelope(
        payload_type=signed.payload_type,
        payload=signed.payload,
        signature=signed.signature,
        certificate=signed.certificate,
    )


def experiment(
    row: ExperimentRow, rounds: int, recipe: str, committed: int, waiting: str, model: Digest | None, open_round: int
) -> admin_pb2.Experiment:
    """An experiment; `waiting` is shown while it waits for something."""
    return admin_pb2.Experiment(
        name=row.name,
        recipe=recipe,
        state=f"EXPERIMENT_STATE_{row.state.upper()}",
        reason=row.reason or waiting,
        rounds=rounds,
        rounds_committed=committed,
        sha256=row.sha256,
        submitted_by=row.submitted_by,
        created_at=text(row.created_at),
        ended_at=text(row.ended_at),
        model_digest=model or "",
        open_round=open_round,
    )


def round_(state: Round, fleet: Fleet | None = None, metrics: Mapping[str, float] | None = None) -> admin_pb2.Round:
    """A round; its tasks are in it when `fleet` is given."""
    return admin_pb2.Round(
        experiment=state.key.experiment,
        round=state.key.number,
        state=f"ROUND_STATE_{state.state.name}",
        reason=state.reason,
        eligible=state.eligible,
        sampled=state.sampled,
        admitted=state.admitted,
        refused=[admin_pb2.Refusal(site=each.site, reason=each.reason) for each in state.tasks if each.state in _IN_VAIN],
        model_digest=state.model or "",
        base_digest=state.base,
        opened_at=text(state.opened_at),
        deadline=text(state.deadline),
        committed_at=text(state.committed_at),
        tasks=[] if fleet is None else [_task(state.task_key(each.site), each, fleet) for each in state.tasks],
        metrics=metrics or {},
        quorum=state.quorum,
        enough=state.enough,
    )


def _task(key: TaskKey, task: Task, fleet: Fleet) -> admin_pb2.Task:
    progress = fleet.progress(key)
    message = admin_pb2.Task(
        site=task.site,
        kind=f"TASK_KIND_{key.kind.upper()}",
        state=task_state(task.state),
        reason=task.reason,
        attempt=task.attempt,
        update_bytes=task.update_bytes,
    )
    # what is reported of any other is an earlier attempt's, or came late
    if progress is not None and task.state in WITH_SITE:
        message.phase, message.done, message.total, message.rate = (
            progress.phase,
            progress.done,
            progress.total,
            progress.rate,
        )
        message.losses.update(progress.losses)
    return message


def site(row: SiteRow, fleet: Fleet) -> admin_pb2.Site:
    """A site. The row knows when its agent came last; that it stayed is known here alone."""
    return admin_pb2.Site(
        name=row.name,
        connected=row.name in fleet.connected,
        enrolled_at=text(row.enrolled_at),
        last_seen_at=text(fleet.seen_at(row.name) or row.last_seen_at),
        version=row.version,
        certificate_expires_at=text(row.certificate_expires_at),
        updates_admitted=row.updates_admitted,
    )


def model(row: ModelRow) -> admin_pb2.Model:
    """A model with its files."""
    statement = outline(row.statement.payload)
    return admin_pb2.Model(
        digest=row.digest,
        experiment=row.experiment,
        round=row.round,
        state=f"MODEL_STATE_{row.state.upper()}",
        parts=[
            admin_pb2.ModelPart(
                name=name,
                blob=types_pb2.Blob(sha256=file.sha256, bytes=file.bytes),
                release=name == statement.release,
            )
            for name, file in sorted(statement.parts.items())
        ],
        created_at=text(row.created_at),
        removed_at=text(row.removed_at),
    )
