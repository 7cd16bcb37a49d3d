"""Trying again until the aggregator says that the round has closed, with pauses that grow; and resting after a failure."""

from __future__ import annotations

import time
from datetime import timedelta
from random import Random

import pytest

from agent.patience import REST_MOST_S, rest_s, until_told
from histofed.base.clock import FakeClock, SystemClock, iso
from histofed.base.errors import AggregatorUnavailable, BadData, CannotWriteState, Stale, TryLater
from histofed.v1 import rounds_pb2
from tests.support.agent_site import AgentSite, task, until
from tests.support.fake_aggregator import FakeAggregator


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


# -- whole tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["AcceptTask", "SubmitUpdate", "may_upload"])
async def test_a_busy_aggregator_is_asked_again(site: AgentSite, aggregator: FakeAggregator, call: str) -> None:
    aggregator.answers[call] = [TryLater("too many calls"), CannotWriteState("its disk is full")]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: site.actions()[-1:] == ["update.verdict"])
    assert site.audit()[-1].outcome == "success"


async def test_only_the_aggregators_word_ends_a_task_whatever_the_clock_here_says(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    """This machine's clock is three hours ahead: by it the round closed before it was offered."""
    aggregator.answers["AcceptTask"] = [TryLater("busy"), TryLater("busy")]
    aggregator.offer(aggregator.make_offer(task(), deadline_s=-3 * 3600))
    site.start()
    await until(lambda: site.actions()[-1:] == ["update.verdict"])
    aggregator.answers["AcceptTask"] = [TryLater("busy"), Stale("the round closed an hour ago")]
    aggregator.offer(aggregator.make_offer(task(2)))
    await until(lambda: site.actions()[-1:] == ["task.dropped"])
    assert site.audit()[-1].reason == "the round closed an hour ago"


async def test_another_attempt_after_a_full_disk_rests_first(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.patience.REST_S", 0.6)
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.before_rename=ENOSPC")
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await aggregator.wait_for("FailTask")
    monkeypatch.delenv("HISTOFED_FAILPOINTS")
    failed = time.monotonic()
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    await aggregator.wait_for("AcceptTask", 2)
    assert time.monotonic() - failed > 0.4
    assert "attempt 2 at task pilot/1/train/north-clinic begins in 1 s" in caplog.text
    await aggregator.wait_for("SubmitUpdate")


async def test_a_task_that_is_withdrawn_while_it_rests_is_over(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.before_rename=ENOSPC")
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await aggregator.wait_for("FailTask")
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    await until(lambda: "rests first" in site.sessions.words)
    aggregator.withdraw(task(), "the round's deadline passed")
    await until(lambda: site.state.task_in_hand() is None and site.sessions.words == "waits for work")
    assert aggregator.called("AcceptTask") == 1


async def test_a_task_rests_by_the_aggregators_clock(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a site whose clock is ahead would use its attempts up within a second."""
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.before_rename=ENOSPC")
    ahead = timedelta(hours=3)
    aggregator.answers["Hello"] = [rounds_pb2.HelloResponse(now=iso(SystemClock().now() - ahead))]
    deadline_s = 600 - ahead.total_seconds()
    aggregator.offer(aggregator.make_offer(task(), deadline_s=deadline_s))
    site.start()
    await aggregator.wait_for("FailTask")
    aggregator.offer(aggregator.make_offer(task(), attempt=2, deadline_s=deadline_s))
    await until(lambda: "rests first" in site.sessions.words)
