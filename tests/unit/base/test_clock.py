"""Time, and the time of tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.clock import FakeClock, SystemClock, from_iso, iso


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_text_is_read_back(moment: datetime) -> None:
    assert from_iso(iso(moment)) == moment


@given(st.lists(st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)), min_size=2))  # noqa: DTZ001
def test_text_sorts_like_time(moments: list[datetime]) -> None:
    assert [from_iso(text) for text in sorted(map(iso, moments))] == sorted(moments)


def test_text_is_utc() -> None:
    elsewhere = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert iso(elsewhere) == "2026-01-01T00:00:00.000000Z"


@pytest.mark.parametrize("text", ["", "2026-01-01", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000+02:00"])
def test_other_forms_are_not_read(text: str) -> None:
    with pytest.raises(ValueError, match="not a moment in UTC"):
        from_iso(text)


async def test_the_fake_clock_moves_only_when_told() -> None:
    clock = FakeClock()
    start = clock.now()
    await clock.sleep(5)
    assert (clock.now() - start, clock.monotonic()) == (timedelta(seconds=5), 5.0)
    clock.jump(-3600)
    assert (clock.now() - start, clock.monotonic()) == (timedelta(seconds=5 - 3600), 5.0)


async def test_the_system_clock_is_utc_and_goes_on() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.001)
    assert clock.monotonic() > before
    assert clock.now().utcoffset() == timedelta(0)
