"""Bounded, jittered, and only for what may succeed later."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.clock import FakeClock
from histofed.base.errors import AggregatorUnavailable, BadData, Cancelled, DeadlineExceeded, HistofedError, TryLater
from histofed.transport.backoff import Backoff, may_retry, retry


@given(st.floats(0.01, 5), st.floats(5, 60), st.integers(0, 40), st.integers())
def test_delays_stay_under_the_bound_and_end(first: float, most: float, attempts: int, seed: int) -> None:
    delays = list(Backoff(first, most, attempts).delays(Random(seed)))
    assert len(delays) == attempts
    assert all(0 <= delay <= min(most, first * 2**number) for number, delay in enumerate(delays))


def test_each_delay_is_drawn_evenly_from_nothing_to_its_bound() -> None:
    """Sites that lost the aggregator in the same moment come back one by one."""
    sites = [list(Backoff(1.0, 4.0, 4).delays(Random(seed))) for seed in range(2000)]
    for number, bound in enumerate((1.0, 2.0, 4.0, 4.0)):
        eighths = Counter(int(delays[number] / bound * 8) for delays in sites)
        assert sorted(eighths) == list(range(8))
        assert all(200 <= count <= 300 for count in eighths.values())


def test_an_idle_agent_never_gives_up() -> None:
    assert len(list(islice(Backoff(attempts=None).delays(Random(0)), 2000))) == 2000


def failing(times: int, error: HistofedError) -> Callable[[], object]:
    left = [times]

    async def operation() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "done"

    return operation


async def run(operation: Callable[[], object], clock: FakeClock) -> object:
    return await retry(
        operation,  # type: ignore[arg-type]  # both are coroutine functions
        what="the greeting",
        backoff=Backoff(attempts=3),
        clock=clock,
        random=Random(1),
    )


async def test_tries_again_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    with caplog.at_level(logging.WARNING):
        assert await run(failing(3, AggregatorUnavailable("nobody listens")), clock) == "done"
    assert clock.monotonic() > 0
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["the greeting failed"] * 3
    assert "nobody listens" in caplog.text


async def test_gives_up_with_the_last_error() -> None:
    with pytest.raises(AggregatorUnavailable):
        await run(failing(4, AggregatorUnavailable("x")), FakeClock())


@pytest.mark.parametrize("error", [BadData("x"), Cancelled("x")])
async def test_does_not_repeat_what_cannot_succeed(error: HistofedError) -> None:
    clock = FakeClock()
    with pytest.raises(type(error)):
        await run(failing(1, error), clock)
    assert clock.monotonic() == 0


def test_what_may_be_retried() -> None:
    assert may_retry(AggregatorUnavailable("")) and may_retry(TryLater("")) and may_retry(DeadlineExceeded(""))
    assert not may_retry(Cancelled("")) and not may_retry(BadData(""))
