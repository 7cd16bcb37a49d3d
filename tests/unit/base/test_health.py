"""Live, ready and why not."""

from __future__ import annotations

from datetime import UTC, datetime

from histofed.base.clock import FakeClock
from histofed.base.health import Health


def test_nothing_is_ready_before_somebody_said_so() -> None:
    health = Health(FakeClock(), ("journal", "aggregator"))
    assert (health.live, health.ready) == (True, False)
    assert health.words() == "aggregator: not known yet; journal: not known yet"


def test_ready_needs_every_required_condition() -> None:
    health = Health(FakeClock(), ("journal", "aggregator"))
    health.set("journal", True, "can be written")
    assert (health.live, health.ready) == (True, False)
    health.set("aggregator", True, "connected")
    assert (health.live, health.ready) == (True, True)
    assert health.words() == "all is well"
    health.set("aggregator", False, "unreachable since three tries")
    assert (health.live, health.ready) == (True, False)
    assert health.words() == "aggregator: unreachable since three tries"


def test_a_condition_that_is_not_required_is_a_warning() -> None:
    health = Health(FakeClock(), ())
    health.set("disk", False, "4 % free")
    assert health.ready
    assert health.words() == "disk: 4 % free"
    assert not health.conditions()[0].required


def test_a_condition_remembers_since_when() -> None:
    clock = FakeClock()
    health = Health(clock, ("aggregator",))
    clock.advance(60)
    health.set("aggregator", True, "connected")
    clock.advance(60)
    health.set("aggregator", True, "connected, 2 tasks")
    (condition,) = health.conditions()
    assert condition.since == datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    assert condition.words == "connected, 2 tasks"


def test_a_loop_that_does_not_turn_is_not_live_and_not_ready() -> None:
    clock = FakeClock()
    health = Health(clock, (), loop_seconds=30)
    clock.advance(31)
    assert (health.live, health.ready) == (False, False)
    assert health.words() == "the loop has not turned for 31 s"
    health.beat()
    assert (health.live, health.ready) == (True, True)


def test_a_wall_clock_that_jumps_does_not_matter() -> None:
    clock = FakeClock()
    health = Health(clock, ())
    clock.jump(86400)
    assert health.live


def test_watchers_hear_of_changes_only() -> None:
    heard: list[tuple[bool, bool]] = []
    health = Health(FakeClock(), ("journal",))
    health.watch(lambda live, ready: heard.append((live, ready)))
    health.set("journal", True, "can be written")
    health.set("journal", True, "can still be written")
    health.beat()
    health.set("journal", False, "the disk is full")
    assert heard == [(True, False), (True, True), (True, False)]
