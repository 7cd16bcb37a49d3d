"""One site's task as a pure state machine: `(task, event) -> (task, effects)`. No time, no disk, no network in here.

    offered -> accepted -> uploading -> received -> admitted | rejected,  or declined | expired

An attempt that fails is offered again, as often as the round allows. An event that already happened changes nothing and has
no effects; one that comes too late, too early or of another attempt raises `Stale`. When a task expires is decided by its
round, `aggregator/rounds.py`, which is the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeAlias

from aggregator.events import Accepted, Admitted, Announced, Declined, Effect, Failed, Inspect, Offer, Received, Rejected
from histofed.base.errors import Stale
from histofed.base.ids import Digest, SiteId, TaskKey

TaskEvent: TypeAlias = Accepted | Declined | Failed | Announced | Received | Admitted | Rejected
"""What a site, or the check of its update, does to its task."""

ANNOUNCEMENTS: Final = 4
"""Updates that one attempt may announce: a site that came back from a backup trains again, with another result."""


class TaskState(StrEnum):
    """Where one site's task is."""

    OFFERED = "offered"
    ACCEPTED = "accepted"
    UPLOADING = "uploading"
    RECEIVED = "received"
    ADMITTED = "admitted"
    REJECTED = "rejected"
    DECLINED = "declined"
    EXPIRED = "expired"


WITH_SITE = frozenset({TaskState.OFFERED, TaskState.ACCEPTED, TaskState.UPLOADING})
"""The site still has something to do."""
LIVE = WITH_SITE | {TaskState.RECEIVED}
"""Not settled yet."""


@dataclass(frozen=True)
class Task:
    """One site's part in a round."""

    site: SiteId
    state: TaskState = TaskState.OFFERED
    attempt: int = 1
    reason: str = ""
    manifest: Digest | None = None
    """SHA-256 of the signed manifest, once received."""
    weights: Digest | None = None
    """SHA-256 of the update's file, once announced."""
    update_bytes: int = 0
    announced: int = field(default=0, compare=False)
    """Updates that the attempt announced since this process began; it is in no row, because a restart may forget it."""


def step_task(key: TaskKey, task: Task, event: TaskEvent, attempts: int) -> tuple[Task, tuple[Effect, ...]]:
    """The task after the event, and what is to be done. Raises `Stale` for an event that cannot happen any more."""
    match event, task.state:
        case Accepted(attempt=attempt), TaskState.OFFERED if attempt == task.attempt:
            return replace(task, state=TaskState.ACCEPTED), ()
        case Accepted(attempt=attempt), (TaskState.ACCEPTED | TaskState.UPLOADING | TaskState.RECEIVED) if (
            attempt == task.attempt
        ):
            return task, ()
        case Declined(reason=reason, attempt=attempt), _ if task.state in WITH_SITE and attempt == task.attempt:
            return replace(task, state=TaskState.DECLINED, reason=reason), ()
        case Declined(), TaskState.DECLINED:
            return task, ()
        case Failed(attempt=attempt), _ if attempt < task.attempt or task.state is TaskState.DECLINED:
            return task, ()
        case Failed(reason=reason, retryable=retryable), _ if task.state in WITH_SITE and event.attempt == task.attempt:
            return _failed(task, reason, retryable and task.attempt < attempts)
        case Announced(), (TaskState.ACCEPTED | TaskState.UPLOADING):
            return _announced(key, task, event), ()
        case Received(attempt=attempt), (TaskState.ACCEPTED | TaskState.UPLOADING) if attempt == task.attempt:
            received = replace(
                task,
                state=TaskState.RECEIVED,
                manifest=event.manifest,
                weights=event.weights,
                update_bytes=event.update_bytes,
            )
            return received, (Inspect(task.site),)
        case Received(manifest=manifest), (TaskState.RECEIVED | TaskState.ADMITTED | TaskState.REJECTED) if (
            manifest == task.manifest
        ):
            return task, ()
        case Admitted(), TaskState.RECEIVED:
            return replace(task, state=TaskState.ADMITTED), ()
        case Admitted(), TaskState.ADMITTED:
            return task, ()
        case Rejected(reason=reason), (TaskState.ACCEPTED | TaskState.UPLOADING | TaskState.RECEIVED):
            return replace(task, state=TaskState.REJECTED, reason=reason), ()
        case Rejected(), TaskState.REJECTED:
            return task, ()
        case _:
            raise Stale(
                f"task {key} is {task.state} (attempt {task.attempt}"
                f"{', ' + task.reason if task.reason else ''}); {type(event).__name__.lower()} comes too late or too early"
            )


def _announced(key: TaskKey, task: Task, event: Announced) -> Task:
    announced = replace(task, state=TaskState.UPLOADING, weights=event.weights, update_bytes=event.update_bytes)
    if announced == task:
        return task
    if task.announced >= ANNOUNCEMENTS:
        raise Stale(
            f"task {key} announced {ANNOUNCEMENTS} different updates in attempt {task.attempt}, which is the limit: "
            "send the last of them, or wait for the next round"
        )
    return replace(announced, announced=task.announced + 1)


def _failed(task: Task, reason: str, again: bool) -> tuple[Task, tuple[Effect, ...]]:
    if again:
        return Task(task.site, TaskState.OFFERED, task.attempt + 1, reason), (Offer(task.site),)
    words = reason if task.attempt == 1 else f"{reason} (attempt {task.attempt}, the last)"
    return replace(task, state=TaskState.DECLINED, reason=words), ()
