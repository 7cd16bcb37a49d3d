"""One site's task: attempts, and what is heard twice, late or never. Its way through a round is in `test_rounds.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aggregator import events
from aggregator.tasks import ANNOUNCEMENTS, Task, TaskEvent, TaskState, step_task
from histofed.base.errors import Stale
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId, TaskKey, sha256

A = SiteId("a")
KEY = TaskKey(RoundKey(ExperimentId("demo"), 3), "train", A)
ATTEMPTS = 2


def run(*happened: TaskEvent) -> Task:
    task = Task(A)
    for event in happened:
        task, _ = step_task(KEY, task, event, ATTEMPTS)
    return task


def test_a_failed_task_is_offered_again_and_then_declined() -> None:
    task = run(events.Accepted(A, 1))
    task, effects = step_task(KEY, task, events.Failed(A, 1, "killed", retryable=True), ATTEMPTS)
    assert (task.state, task.attempt, effects) == (TaskState.OFFERED, 2, (events.Offer(A),))
    again = step_task(KEY, task, events.Failed(A, 1, "killed", retryable=True), ATTEMPTS)
    assert again == (task, ()), "the same failure, told again"
    for event in (events.Accepted(A, 2), events.Failed(A, 2, "killed", retryable=True)):
        task, _ = step_task(KEY, task, event, ATTEMPTS)
    assert (task.state, task.reason) == (TaskState.DECLINED, "killed (attempt 2, the last)")


def test_a_failure_that_cannot_be_helped_is_final_at_once() -> None:
    task = run(events.Accepted(A, 1), events.Failed(A, 1, "one patient only", retryable=False))
    assert task.state is TaskState.DECLINED


def test_a_site_may_decline_until_its_update_is_received() -> None:
    """It lost the update that it announced, and its consent allows the work no more: nobody is to wait for it."""
    accepted, announced = events.Accepted(A, 1), events.Announced(A, sha256(b"update"), 10)
    declined = events.Declined(A, 1, "not allowed here")
    for before in ((), (accepted,), (accepted, announced)):
        assert run(*before, declined) == run(*before, declined, declined)
        assert run(*before, declined).state is TaskState.DECLINED
    received = events.Received(A, 1, Digest("c" * 64), sha256(b"update"), 10)
    with pytest.raises(Stale, match="task demo/3/train/a is received"):
        run(accepted, announced, received, declined)


def test_an_update_of_an_earlier_attempt_is_refused() -> None:
    task = run(events.Accepted(A, 1), events.Failed(A, 1, "killed", retryable=True), events.Accepted(A, 2))
    with pytest.raises(Stale):
        step_task(KEY, task, events.Received(A, 1, Digest("c" * 64), Digest("d" * 64), 10), ATTEMPTS)


def test_a_failure_of_an_attempt_that_was_never_offered_is_refused() -> None:
    task = run(events.Accepted(A, 1))
    with pytest.raises(Stale, match=r"attempt 1\); failed comes too late or too early"):
        step_task(KEY, task, events.Failed(A, 2, "killed", retryable=True), ATTEMPTS)


@pytest.mark.parametrize(
    "update", [lambda number: (sha256(bytes([number])), 10), lambda number: (sha256(b"the same"), number)]
)
def test_an_attempt_announces_a_few_updates_only(update: Callable[[int], tuple[Digest, int]]) -> None:
    announced = [events.Announced(A, *update(number)) for number in range(ANNOUNCEMENTS + 1)]
    told_twice = [event for event in announced[:ANNOUNCEMENTS] for _ in range(2)]
    task = run(events.Accepted(A, 1), *told_twice)
    with pytest.raises(Stale, match=f"{ANNOUNCEMENTS} different updates in attempt 1, which is the limit"):
        step_task(KEY, task, announced[-1], ATTEMPTS)
    assert step_task(KEY, task, announced[-2], ATTEMPTS) == (task, ())
    again = run(events.Accepted(A, 1), *told_twice, events.Failed(A, 1, "killed", True), events.Accepted(A, 2))
    assert step_task(KEY, again, announced[-1], ATTEMPTS)[0].state is TaskState.UPLOADING
