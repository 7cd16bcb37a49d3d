"""Trying again until the aggregator says that the round has closed, with pauses that grow and a line each time."""

from __future__ import annotations

from datetime import timedelta
from random import Random

import pytest

from agent.patience import REST_MOST_S, rest_s, until_told
from histofed.base.clock import FakeClock
from histofed.base.errors import AggregatorUnavailable, BadData, Stale


class Flaky:
    """Fails a number of times."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error or AggregatorUnavailable("nobody listens")

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return "done"


async def test_it_is_tried_until_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    clock, operation = FakeClock(), Flaky(5)
    assert await until_told("accept the task", operation, clock=clock, random=Random(1)) == "done"
    assert operation.calls == 6
    assert len(caplog.records) == 5
    assert "cannot accept the task: nobody listens; next try in" in caplog.records[0].getMessage()


async def test_the_pauses_grow_to_half_a_minute() -> None:
    clock, operation = FakeClock(), Flaky(200)
    await until_told("accept the task", operation, clock=clock, random=Random(1))
    assert 190 * 10 < clock.monotonic() < 200 * 30


async def test_other_errors_leave_at_once() -> None:
    clock, operation = FakeClock(), Flaky(1, BadData("not a task"))
    with pytest.raises(BadData):
        await until_told("accept the task", operation, clock=clock, random=Random(1))
    assert operation.calls == 1


async def test_the_aggregators_word_ends_it() -> None:
    clock, operation = FakeClock(), Flaky(1, Stale("the round closed"))
    with pytest.raises(Stale, match="the round closed"):
        await until_told("accept the task", operation, clock=clock, random=Random(1))


def test_a_task_rests_longer_after_each_attempt_and_leaves_the_round_its_time() -> None:
    hours = timedelta(hours=6)
    assert [rest_s(attempt, hours) for attempt in (1, 2, 3, 4, 20)] == [30, 120, 480, REST_MOST_S, REST_MOST_S]
    assert rest_s(1, timedelta(seconds=80)) == 10
    assert rest_s(1, timedelta(seconds=-5)) == 0
