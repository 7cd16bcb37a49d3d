"""Seeds draw schedules: the same one always, every kind of fault, never one that the rig could not play."""

from __future__ import annotations

from collections import Counter

import pytest

from histofed.base.experiment import parse_experiment
from tests.faults.runs import schedule
from tests.faults.runs.schedule import AGGREGATOR, Cut, Kill, draw, timeline

MANY = [draw(seed) for seed in range(1, 301)]


def test_a_seed_is_the_same_run_always_and_another_seed_another_one() -> None:
    assert draw(7) == draw(7)
    assert len({repr(each.faults) for each in MANY}) == len(MANY)


def test_two_hundred_seeds_meet_every_kind_of_fault() -> None:
    drawn = Counter(type(fault).__name__ for each in MANY[:200] for _, fault in each.faults)
    kinds = {"Kill", "KillTrainer", "Freeze", "Cut", "Weather", "DiskCall", "DiskFull", "ClockJump", "Rollback"}
    assert drawn.keys() == kinds
    assert min(drawn.values()) >= 20
    killed = {
        daemon for each in MANY[:200] for _, fault in each.faults if isinstance(fault, Kill) for daemon in fault.daemons
    }
    assert killed == {AGGREGATOR, *schedule.SITES}
    ways = {fault.ways for each in MANY[:200] for _, fault in each.faults if isinstance(fault, Cut)}
    assert ways == {("up", "down"), ("up",), ("down",)}


def test_links_and_clocks_are_as_bad_as_they_are_said_to_be() -> None:
    weather = [fault for each in MANY for _, fault in each.faults if isinstance(fault, schedule.Weather)]
    assert {fault.bits_per_s for fault in weather} == {0.0, 1e6, 3e6, 10e6}
    assert all(fault.loss <= 0.05 and fault.delay_s <= 0.25 for fault in weather)
    jumps = [fault.by_s for each in MANY for _, fault in each.faults if isinstance(fault, schedule.ClockJump)]
    assert min(jumps) < -schedule.HOUR_S < schedule.HOUR_S < max(jumps)
    assert max(map(abs, jumps)) <= 6 * schedule.HOUR_S


@pytest.mark.parametrize("each", MANY[:40], ids=lambda each: each.name)
def test_every_schedule_is_an_experiment_that_can_be_submitted(each: schedule.Schedule) -> None:
    file = parse_experiment(each.toml).file
    assert file.round.quorum == each.quorum in {len(each.sites), len(each.sites) - 1}
    named = {name for _, fault in each.faults for name in getattr(fault, "daemons", (getattr(fault, "site", AGGREGATOR),))}
    assert named <= {AGGREGATOR, *each.sites}
    assert [at_s for at_s, _ in each.faults] == sorted(at_s for at_s, _ in each.faults)


def test_what_lasts_ends() -> None:
    kill, cut = Kill(("north",), 1.0), Cut("north", ("up",), 2.0)
    jump, lasting = schedule.ClockJump("north", 60.0, 0.5), schedule.ClockJump("north", 60.0, None)
    line = timeline([(1.0, cut), (2.0, jump), (2.2, kill), (4.0, lasting)])
    assert [(action.at_s, action.fault, action.begins) for action in line] == [
        (1.0, cut, True),
        (2.0, jump, True),
        (2.2, kill, True),
        (2.5, jump, False),
        (3.0, cut, False),
        (4.0, lasting, True),
    ]
