from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from histofed.cli.moments import Course, Moment, changes, interrupted, observe
from histofed.cli.views import Refusal
from tests.support.operator_views import committed_round, open_round, sight, task


def test_the_story_of_a_round_is_told_once_and_in_order() -> None:
    moments = [
        Moment(sight(None, "draft", 0)),
        Moment(sight(open_round(1, task("north", "offered"), task("west", "offered")), committed=0)),
        Moment(sight(open_round(1, task("north"), task("west", "declined")), committed=0)),
        Moment(sight(open_round(1, task("north", done=80), task("west", "declined")), committed=0)),
        Moment(sight(open_round(1, task("north", "received", ""), task("west", "declined")), committed=0)),
        Moment(sight(committed_round(1, "north"), "finished"), (committed_round(1, "north"),)),
    ]

    told = [line for before, after in zip([None, *moments], moments, strict=False) for line in changes(before, after)]

    assert told == [
        "demo is draft, 0 of 3 rounds committed",
        "demo is running, 0 of 3 rounds committed",
        "round 1: sampled north, west of 4 eligible",
        "round 1: north accepted",
        "round 1: west declined",
        "round 1: north received (14.1 MB)",
        "round 1: north admitted (14.1 MB)",
        "round 1: committed model abababababab, 1 of 1 admitted, in 1 min 05 s, d 1.100  g 0.900",
        "demo is finished, 1 of 3 rounds committed",
    ]


def test_a_round_that_the_stream_skipped_is_told_from_the_list() -> None:
    before = Moment(sight(open_round(1, task("north")), committed=0))
    after = Moment(sight(open_round(2, task("west", "offered"))), (committed_round(1, "north"),))

    told = changes(before, after)

    assert "round 1: committed model abababababab, 1 of 1 admitted, in 1 min 05 s, d 1.100  g 0.900" in told
    assert "round 2: sampled west of 4 eligible" in told


def test_why_a_round_was_abandoned_is_told() -> None:
    before = Moment(sight(open_round(1, task("north"))))
    after = Moment(sight(replace(open_round(1, task("north")), state="abandoned", reason="1 of 2 updates at the deadline")))

    assert changes(before, after) == ("round 1: abandoned: 1 of 2 updates at the deadline",)


def test_nothing_new_tells_nothing() -> None:
    moment = Moment(sight(open_round(1, task("north"))), (committed_round(1, "east"),))

    assert changes(moment, moment) == ()


def test_the_list_wins_over_the_stream_when_it_knows_the_end() -> None:
    moment = Moment(sight(open_round(1, task("north"))), (committed_round(1, "north"),))

    assert moment.rounds()[1].state == "committed"


def test_time_left_follows_the_speed_of_the_phase() -> None:
    course = observe(Course(), Moment(sight(open_round(1, task("north", done=10)))), now=100.0)
    course = observe(course, Moment(sight(open_round(1, task("north", done=30)))), now=110.0)

    # 20 steps in 10 seconds, 70 steps to go
    assert course.paces["north"].seconds_left(task("north", done=30), 110.0) == 35.0


def test_a_new_phase_or_attempt_begins_a_new_pace() -> None:
    course = observe(Course(), Moment(sight(open_round(1, task("north", done=10)))), now=100.0)
    again = replace(task("north", done=0), attempt=2)
    course = observe(course, Moment(sight(open_round(1, again))), now=200.0)

    assert course.paces["north"].at == 200.0
    assert course.paces["north"].seconds_left(again, 201.0) is None


def test_a_lost_connection_keeps_what_was_seen_until_it_is_back() -> None:
    moment = Moment(sight(open_round(1, task("north"))))
    lost = interrupted(observe(Course(), moment, 1.0), "cannot reach the aggregator")

    assert (lost.moment, lost.notice) == (moment, "cannot reach the aggregator")
    assert observe(lost, moment, 2.0).notice == ""


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0.01, 60)), min_size=1, max_size=20))
def test_time_left_is_never_negative(steps: list[tuple[int, float]]) -> None:
    course, now = Course(), 0.0
    for done, passed in steps:
        now += passed
        current = task("north", done=done)
        course = observe(course, Moment(sight(open_round(1, current))), now)
        left = course.paces["north"].seconds_left(current, now)
        assert left is None or left >= 0


def test_refusals_are_part_of_the_committed_round() -> None:
    one = committed_round(1, "north", "west", refused=(Refusal("west", "norm 12.0 is above 10.0"),))

    assert changes(None, Moment(sight(one)))[-1].startswith("round 1: committed model abababababab, 1 of 2 admitted")
