"""Bytes per second: never more than was allowed, never less than was possible."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from histofed.base.clock import FakeClock
from histofed.transport import limits
from histofed.transport.pace import BURST_S, SITES, SLOWEST, Bucket, Pace, Paces

STEPS = st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 3)), min_size=1, max_size=40)


@settings(deadline=None)
@given(st.floats(SLOWEST, 1e9), STEPS)
def test_over_any_time_no_more_than_the_rate_a_burst_and_a_piece(rate: float, steps: list[tuple[int, float]]) -> None:
    bucket, now, sent = Bucket(rate), 0.0, list[tuple[float, int]]()
    for size, pause in steps:
        now += pause
        now += bucket.take(size, now)
        sent.append((now, size))
    for first, (begin, _) in enumerate(sent):
        for last in range(first, len(sent)):
            gone = sum(size for _, size in sent[first : last + 1])
            # the last piece goes at once when its turn has come: it is paid for afterwards
            allowed = rate * (sent[last][0] - begin + BURST_S) + sent[last][1]
            assert gone <= allowed * (1 + 1e-9) + 1


@settings(deadline=None)
@given(st.floats(SLOWEST, 1e9), st.lists(st.integers(1, 1 << 20), min_size=2, max_size=40))
def test_who_sends_without_a_pause_gets_the_whole_rate(rate: float, sizes: list[int]) -> None:
    bucket, now = Bucket(rate), 0.0
    for size in sizes:
        now += bucket.take(size, now)
    assert now <= sum(sizes[:-1]) / rate + 1e-6
    assert now >= sum(sizes[:-1]) / rate - BURST_S - 1e-6


async def test_two_transfers_share_one_cap() -> None:
    clock = FakeClock()
    pace = Pace(clock, 1_000_000)
    for _ in range(10):
        await pace.take(500_000)
        await pace.take(500_000)
    assert 9.0 <= clock.monotonic() <= 10.0


async def test_without_a_cap_nobody_waits() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    await pace.take(1 << 40)
    assert (clock.monotonic(), pace.piece, pace.bytes_per_second) == (0.0, limits.CHUNK, 0)


async def test_a_cap_may_change_while_bytes_go() -> None:
    clock = FakeClock()
    pace = Pace(clock, 1_000_000)
    await pace.take(1_000_000)
    pace.set(100_000)
    await pace.take(100_000)
    await pace.take(100_000)
    assert 1.7 <= clock.monotonic() <= 2.1
    pace.set(0)
    await pace.take(1 << 40)
    assert clock.monotonic() <= 2.1


def test_pieces_of_a_slow_link_are_small_and_a_cap_has_a_floor() -> None:
    clock = FakeClock()
    assert Pace(clock, 1).bytes_per_second == SLOWEST
    assert Pace(clock, 1).piece == SLOWEST * BURST_S
    assert Pace(clock, 1_000_000).piece == 250_000
    assert Pace(clock, 10**9).piece == limits.CHUNK


def test_each_site_has_its_own_and_their_number_is_bounded() -> None:
    paces = Paces(FakeClock(), 1000)
    assert paces.of("north") is paces.of("north")
    assert paces.of("north") is not paces.of("south")
    north = paces.of("north")
    paces.set(100_000)
    assert north.bytes_per_second == paces.of("east").bytes_per_second == 100_000
    for number in range(SITES):
        paces.of(f"site-{number}")
    assert paces.of("north") is not north, "forgotten, which only fills its bucket"
