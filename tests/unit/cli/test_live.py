from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from histofed.cli.live import draw
from histofed.cli.moments import Course, Moment, interrupted, observe
from tests.support.operator_views import committed_round, experiment, open_round, sight, task


def drawn(course: Course, now: float = 0.0) -> str:
    console = Console(file=io.StringIO(), width=125, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(draw(course, now))
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def test_a_round_at_work() -> None:
    tasks = (
        task("east", "admitted", "", 0, 0),
        task("north", "accepted", "train", 40, 100),
        task("south", "uploading", "upload", 7_000_000, 14_100_000),
        replace(task("west", "declined", "", 0, 0), reason="consent: steps 100 is above 50"),
    )
    course = observe(Course(), Moment(sight(open_round(2, replace(tasks[1], done=20)))), now=0.0)
    course = observe(course, Moment(sight(open_round(2, *tasks)), (committed_round(1, "north", "west"),)), now=10.0)

    assert drawn(course, now=10.0) == SCREEN.strip("\n")


SCREEN = """
demo  gan  running  1 of 3 rounds committed  model abababababab

Round 2  open  4 of 4 sites sampled
east   admitted  ━━━━━━━━━━━━━━━━━━━━━━  14.1 MB
north  train     ━━━━━━━━╸               step 40/100        d 1.250  g 0.750  31.5 images/s  30 s left
south  upload    ━━━━━━━━━━╸             7.0 MB of 14.1 MB                    2.0 MB/s
west   declined                                                                              consent: steps 100 is above 50

ROUND  STATE      ADMITTED  SITES        TOOK        MEANS
1      committed  2/2       north, west  1 min 05 s  d 1.100  g 0.900
"""


def test_before_the_first_message() -> None:
    assert drawn(Course()) == "Waiting for the aggregator ..."
    assert drawn(interrupted(Course(), "cannot reach it")) == "cannot reach it"


def test_between_rounds_and_at_the_end() -> None:
    between = drawn(Course(Moment(sight(committed_round(1, "north")))))
    assert "Between rounds ..." in between

    end = drawn(Course(Moment(sight(committed_round(3, "north"), "finished", 3))))
    assert "finished  3 of 3 rounds committed" in end
    assert "Between rounds" not in end


def test_why_it_failed_is_on_the_screen() -> None:
    failed = replace(sight(None), experiment=experiment("failed", 0, "3 rounds in a row were abandoned"))

    assert "3 rounds in a row were abandoned" in drawn(Course(Moment(failed)))


WORDS_OF_A_SITE = (
    "no GPU [/x]",
    "set [data] root in agent.toml",
    "[link=file:///etc/passwd]click[/link]",
    "[bold red]all is well",
    ":warning: no tiles",
)


@pytest.mark.parametrize("reason", WORDS_OF_A_SITE)
def test_a_reason_is_shown_as_it_was_written(reason: str) -> None:
    declined = open_round(2, replace(task("east", "declined", "", 0, 0), reason=reason))
    abandoned = replace(open_round(1), state="abandoned", reason=reason)
    failed = replace(sight(declined), experiment=experiment("running", 1, reason))

    screen = drawn(interrupted(Course(Moment(failed, (abandoned,))), reason))

    assert screen.count(reason) == 4, "of the task, the round, the experiment and the connection"


def test_a_reason_does_not_talk_to_the_terminal() -> None:
    declined = open_round(2, replace(task("east", "declined", "", 0, 0), reason="\x1b]0;all is well\x07"))

    screen = drawn(Course(Moment(sight(declined))))

    assert r"\x1b]0;all is well\x07" in screen
    assert screen.replace("\n", "").isprintable()


def test_only_the_newest_past_rounds_are_shown() -> None:
    past = tuple(committed_round(number, "north") for number in range(1, 31))

    lines = drawn(Course(Moment(sight(past[-1], "finished", 3), past))).splitlines()

    numbers = [line.split()[0] for line in lines if "committed" in line and line.split()[0].isdecimal()]
    assert numbers == [str(number) for number in range(23, 31)]
