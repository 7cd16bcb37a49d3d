"""Token buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.clock import FakeClock
from histofed.base.errors import TryLater
from histofed.transport import rate
from histofed.transport.rate import Rate, RateLimiter


@given(st.lists(st.floats(0, 5), max_size=60))
def test_never_more_than_burst_plus_rate(pauses: list[float]) -> None:
    clock = FakeClock()
    limiter, granted = RateLimiter(Rate(per_second=2, burst=3), clock), 0
    for pause in pauses:
        clock.advance(pause)
        try:
            limiter.take("north")
            granted += 1
        except TryLater:
            pass
    assert granted <= 3 + 2 * clock.monotonic() + 1e-6


def test_refuses_in_words_and_recovers() -> None:
    clock = FakeClock()
    limiter = RateLimiter(Rate(per_second=2, burst=3), clock)
    for _ in range(3):
        limiter.take("north")
    with pytest.raises(TryLater, match=r"too many calls .2 a second are allowed.: wait a moment"):
        limiter.take("north")
    limiter.take("south")
    clock.advance(0.5)
    limiter.take("north")


def test_remembers_a_bounded_number_of_callers() -> None:
    limiter = RateLimiter(Rate(per_second=1, burst=1), FakeClock())
    for number in range(rate.BUCKETS + 10):
        limiter.take(f"10.0.0.{number}")
    assert len(limiter._buckets) == rate.BUCKETS
    limiter.take("10.0.0.0")
    with pytest.raises(TryLater):
        limiter.take(f"10.0.0.{rate.BUCKETS + 9}")
