"""When a site was there last, as the next process finds it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from aggregator.attendance import EVERY_S, Attendance
from aggregator.database import Database
from aggregator.fleet import Changes, Fleet
from aggregator.members import Members
from histofed.base.clock import FakeClock
from histofed.base.errors import CannotWriteState
from histofed.base.ids import SiteId

EAST, NORTH, SOUTH = map(SiteId, ("east", "north", "south"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database(tmp_path / "state.db")
    yield found
    found.close()


@pytest.fixture
def members(database: Database, clock: FakeClock) -> Members:
    """Of three sites that said hello long ago."""
    found = Members(database, clock)
    for site in (EAST, NORTH, SOUTH):
        found.create_token(site, site, clock.now() + timedelta(minutes=30))
        found.enrol(site, site, f"spiffe://test/site/{site}", site, clock.now() + timedelta(days=7))
        found.site_seen(site, "0.1.0", "instance")
    clock.advance(86400)
    return found


def seen(members: Members) -> dict[SiteId, datetime | None]:
    return {row.name: row.last_seen_at for row in members.sites()}


def test_of_sites_that_stay_it_is_written_every_few_minutes_at_once(
    members: Members, database: Database, clock: FakeClock
) -> None:
    fleet = Fleet(clock, Changes())
    fleet.expect((EAST, NORTH, SOUTH))
    attendance, before = Attendance(fleet, members, clock), seen(members)
    fleet.connect(NORTH, "north")
    gone = fleet.connect(SOUTH, "south")
    clock.advance(EVERY_S - 60)
    fleet.disconnect(gone)
    left = clock.now()
    attendance.turn()
    assert seen(members) == before, "it is not time"
    clock.advance(60)
    writes = database.writes
    for _ in range(3):
        attendance.turn()
    assert seen(members) == {EAST: before[EAST], NORTH: clock.now(), SOUTH: left}, "one that did not come was not seen"
    assert database.writes == writes + 1


def test_where_no_site_came_nothing_is_written(members: Members, database: Database, clock: FakeClock) -> None:
    fleet = Fleet(clock, Changes())
    fleet.expect((NORTH,))
    attendance, writes = Attendance(fleet, members, clock), database.writes
    clock.advance(EVERY_S)
    attendance.turn()
    attendance.close()
    assert database.writes == writes


def test_at_the_end_it_is_written_once_more_if_the_disk_lets_it(
    members: Members, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(clock, Changes())
    attendance, before = Attendance(fleet, members, clock), seen(members)
    fleet.connect(NORTH, "north")

    def full(*_: object) -> None:
        raise CannotWriteState("the disk is full")

    with monkeypatch.context() as disk:
        disk.setattr(Members, "sites_stayed", full)
        attendance.close()
    assert seen(members) == before
    attendance.close()
    assert seen(members) == {**before, NORTH: clock.now()}
