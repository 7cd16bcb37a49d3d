"""Rounds on the wire: what an operator is shown of tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aggregator import rounds
from aggregator.fleet import Changes, Fleet, TaskProgress
from aggregator.services import convert
from aggregator.tasks import TaskState
from histofed.base.clock import FakeClock
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId

NORTH = SiteId("north")


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (TaskState.ACCEPTED, ("download", 3)),
        (TaskState.UPLOADING, ("download", 3)),
        (TaskState.RECEIVED, ("", 0)),
        (TaskState.ADMITTED, ("", 0)),
        (TaskState.DECLINED, ("", 0)),
        (TaskState.REJECTED, ("", 0)),
        (TaskState.EXPIRED, ("", 0)),
    ],
)
def test_a_task_with_which_its_site_is_done_shows_no_progress(state: TaskState, shown: tuple[str, int]) -> None:
    planned = rounds.plan(RoundKey(ExperimentId("demo"), 1), Digest("a" * 64), (NORTH,), (NORTH,), 1, 1, 60)
    fleet = Fleet(FakeClock(), Changes())
    fleet.report(planned.task_key(NORTH), TaskProgress("download", 3, 10))

    (task,) = convert.round_(replace(planned, tasks=(replace(planned.tasks[0], state=state),)), fleet=fleet).tasks

    assert (task.phase, task.done) == shown
