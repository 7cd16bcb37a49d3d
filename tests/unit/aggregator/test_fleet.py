"""Connections, presence, and what an agent that does not read its messages gets."""

from __future__ import annotations

import asyncio

import pytest

from aggregator.fleet import QUEUE_LIMIT, Changes, Closing, Fleet, OfferTask, Replaced, TaskProgress
from histofed.base.clock import FakeClock
from histofed.base.errors import AlreadyThere
from histofed.base.ids import SiteId, TaskKey

NORTH = SiteId("north")
TASK = TaskKey.parse("demo/1/train/north")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def fleet(clock: FakeClock) -> Fleet:
    return Fleet(clock, Changes())


def test_a_second_agent_with_the_same_identity_is_refused_while_the_first_is_there(fleet: Fleet) -> None:
    first = fleet.connect(NORTH, "first")
    with pytest.raises(AlreadyThere, match="another agent is connected as site north"):
        fleet.connect(NORTH, "second")
    fleet.disconnect(first)
    assert fleet.connect(NORTH, "second").instance == "second"


def test_the_same_agent_replaces_its_own_dead_connection(fleet: Fleet) -> None:
    old = fleet.connect(NORTH, "one")
    new = fleet.connect(NORTH, "one")
    assert old.messages.get_nowait() == Replaced()
    fleet.disconnect(old)
    fleet.send(NORTH, OfferTask(TASK))
    assert new.messages.get_nowait() == OfferTask(TASK), "the end of the old connection does not disconnect the new one"


def test_a_site_is_present_for_a_grace_time_after_it_left(fleet: Fleet, clock: FakeClock) -> None:
    fleet.disconnect(fleet.connect(NORTH, "one"))
    clock.advance(119)
    assert list(fleet.given_up(120)) == []
    assert fleet.present() == {NORTH}
    clock.advance(2)
    assert list(fleet.given_up(120)) == [NORTH]
    assert list(fleet.given_up(120)) == []
    assert fleet.present() == frozenset()


def test_when_a_site_was_there_last(fleet: Fleet, clock: FakeClock) -> None:
    assert fleet.seen_at(NORTH) is None, "its row knows better"
    connection = fleet.connect(NORTH, "one")
    clock.advance(3600)
    assert fleet.seen_at(NORTH) == clock.now()
    fleet.disconnect(connection)
    ended = clock.now()
    clock.advance(500)
    assert list(fleet.given_up(120)) == [NORTH]
    assert fleet.seen_at(NORTH) == ended
    fleet.expect((NORTH,))
    assert fleet.seen_at(NORTH) == ended, "being waited for is not being seen"


def test_after_a_restart_known_sites_get_time_to_come_back(fleet: Fleet, clock: FakeClock) -> None:
    fleet.expect((NORTH,))
    assert (fleet.present(), fleet.connected) == (frozenset({NORTH}), frozenset())
    clock.jump(86400)
    assert list(fleet.given_up(120)) == [], "a clock that is set is not time that passed"


def test_a_site_that_is_turned_away_is_given_up_at_once(fleet: Fleet, clock: FakeClock) -> None:
    connection = fleet.connect(NORTH, "one")
    clock.advance(3600)
    fleet.turn_away(NORTH)
    assert fleet.connected == frozenset()
    assert connection.messages.get_nowait() == Closing()
    fleet.disconnect(connection)  # the stream has ended
    assert list(fleet.given_up(120)) == [NORTH]
    assert (fleet.present(), fleet.seen_at(NORTH)) == (frozenset(), clock.now())
    fleet.turn_away(NORTH)
    assert list(fleet.given_up(120)) == [], "each is named once"
    fleet.connect(NORTH, "one")
    assert fleet.present() == {NORTH}


def test_so_is_one_that_was_present_when_the_process_ended(fleet: Fleet) -> None:
    fleet.expect((NORTH,))
    fleet.turn_away(NORTH)
    assert list(fleet.given_up(120)) == [NORTH]
    assert fleet.present() == frozenset()


def test_an_agent_that_does_not_read_is_disconnected_instead_of_filling_memory(fleet: Fleet) -> None:
    connection = fleet.connect(NORTH, "one")
    for _ in range(QUEUE_LIMIT + 1):
        fleet.send(NORTH, OfferTask(TASK))
    assert [connection.messages.get_nowait()] == [Replaced()]
    assert connection.messages.empty()


def test_progress_is_forgotten_with_its_round(fleet: Fleet) -> None:
    fleet.report(TASK, TaskProgress("train", 1, 2))
    assert fleet.progress(TASK) == TaskProgress("train", 1, 2)
    fleet.forget((TASK,))
    assert fleet.progress(TASK) is None


async def test_watchers_wake_at_each_change_and_never_miss_one() -> None:
    changes = Changes()
    waiting = asyncio.create_task(changes.wait(60))
    await asyncio.sleep(0)
    changes.notify()
    await asyncio.wait_for(waiting, 5)
    await changes.wait(0.01)
