"""What comes on the stream of work: offers of tasks, withdrawals of them, and beats between, read from the wire and checked.

An offer counts only with the experiment whose digest it names, and of a kind that this version can do. A message that cannot
be understood is said in the log and passed over: another one may follow that can. No clock, disk or network; `agent/link.py`
reads the messages, `agent/sessions.py` hears them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from histofed.base.clock import from_iso
from histofed.base.errors import BadData
from histofed.base.ids import Digest, TaskKey, digest, sha256
from histofed.telemetry.context import TraceContext
from histofed.v1 import rounds_pb2 as wire
from histofed.v1 import types_pb2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A file that turns one model into the next."""

    begin: Digest
    """The shared tensors that it begins from."""
    file: Digest
    bytes: int


@dataclass(frozen=True)
class Offer:
    """A task for this site."""

    task: TaskKey
    attempt: int
    experiment_toml: str
    experiment_sha256: Digest
    base: Digest
    base_bytes: int
    steps: tuple[Step, ...]
    """To the base from models before it, newest first; each begins where the one behind it ends."""
    settled_round: int
    """The latest round that was committed with this site's update in it; 0 for none."""
    backup_rounds: tuple[int, ...]
    """The same in the aggregator's newest backup, and in the one before it as long as that is still being written; those
    that hold the experiment."""
    rounds_committed: int
    """Of the experiment, so far: what follows a schedule counts by it."""
    deadline: datetime
    trace: TraceContext | None


@dataclass(frozen=True)
class Withdrawal:
    """A task that is not wanted any more."""

    task: TaskKey
    reason: str


@dataclass(frozen=True)
class Beat:
    """The connection lives."""


Message: TypeAlias = Offer | Withdrawal | Beat


def message(response: wire.WaitForWorkResponse) -> Message:
    """What came on the stream, checked; what cannot be understood is told and treated as a beat."""
    try:
        match response.WhichOneof("message"):
            case "offer":
                return _offer(response.offer)
            case "withdrawal":
                return Withdrawal(TaskKey.parse(response.withdrawal.task), response.withdrawal.reason)
    except BadData as error:
        log.error("the aggregator sent something that this agent does not understand: %s", error)
    return Beat()


def _offer(offer: wire.TaskOffer) -> Offer:
    task = TaskKey.parse(offer.task)
    if offer.kind != types_pb2.TASK_KIND_TRAIN or task.kind != "train":
        raise BadData(f"task {task} is of a kind that this version cannot do")
    if sha256(offer.experiment_toml.encode()) != offer.experiment_sha256:
        raise BadData(f"the experiment in the offer of {task} is not the one whose digest it names")
    return Offer(
        task=task,
        attempt=offer.attempt,
        experiment_toml=offer.experiment_toml,
        experiment_sha256=digest(offer.experiment_sha256),
        base=digest(offer.base.sha256),
        base_bytes=offer.base.bytes,
        steps=tuple(Step(digest(one.from_sha256), digest(one.blob.sha256), one.blob.bytes) for one in offer.steps),
        settled_round=offer.settled_round,
        backup_rounds=_backup_rounds(offer),
        rounds_committed=offer.rounds_committed if offer.HasField("rounds_committed") else task.round.number - 1,
        deadline=moment(offer.deadline),
        trace=TraceContext.parse(offer.traceparent) if offer.traceparent else None,
    )


def _backup_rounds(offer: wire.TaskOffer) -> tuple[int, ...]:
    newest = (offer.backup_round,) if offer.HasField("backup_round") else ()
    return (*newest, offer.complete_backup_round) if offer.HasField("complete_backup_round") else newest


def moment(text: str) -> datetime:
    """A moment as the aggregator writes it. Raises `BadData`."""
    try:
        return from_iso(text)
    except ValueError as error:
        raise BadData(f"{text[:40]!r} is not a moment in UTC") from error
