"""When rounds begin, and with whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator import rounds
from aggregator.rounds import Round, RoundState
from aggregator.scheduler import Finish, Plan, Rest, Wait, next_move
from aggregator.tasks import TaskState
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.ids import Digest, RoundKey, SiteId

SITES = frozenset(map(SiteId, ("east", "north", "south", "west")))


def experiment(**sampling: object) -> Experiment:
    table = "\n".join(f"{key} = {value}" for key, value in sampling.items()).replace("'", '"')
    return parse_experiment(
        f'name = "demo"\nrecipe = "mean"\nrounds = 3\n[round]\nabandoned_limit = 2\n[sampling]\n{table}\n'
    )


def past(number: int, state: RoundState, declined: tuple[str, ...] = ()) -> Round:
    key = RoundKey(experiment().name, number)
    round_ = rounds.plan(key, Digest("a" * 64), tuple(SITES), tuple(SITES), 1, 1, 60)
    tasks = tuple(replace(task, state=TaskState.DECLINED) if task.site in declined else task for task in round_.tasks)
    return replace(round_, state=state, tasks=tasks, reason="nobody came")


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 2), (0.5, 2), (0.51, 3), (0.75, 3), (1.0, 4)])
def test_the_sample_is_the_fraction_rounded_up_and_never_below_the_minimum(fraction: float, count: int) -> None:
    move = next_move(experiment(fraction=fraction), 0, (), SITES)
    assert isinstance(move, Plan)
    assert (len(move.sample), move.eligible, move.number) == (count, tuple(sorted(SITES)), 1)


@pytest.mark.parametrize(
    ("fraction", "oversample", "sampled", "enough"), [(0.5, 1.0, 2, 2), (0.5, 1.5, 3, 2), (0.5, 1.1, 3, 2), (1.0, 2.0, 4, 4)]
)
def test_over_sampling_asks_more_sites_than_the_round_waits_for(
    fraction: float, oversample: float, sampled: int, enough: int
) -> None:
    move = next_move(experiment(fraction=fraction, oversample=oversample), 0, (), SITES)
    assert isinstance(move, Plan)
    assert (len(move.sample), move.enough) == (sampled, enough)


def test_the_sample_depends_on_experiment_round_and_eligible_sites_alone() -> None:
    again = [next_move(experiment(fraction=0.5), 1, (past(1, RoundState.COMMITTED),), frozenset(SITES)) for _ in range(3)]
    assert again[0] == again[1] == again[2]


def test_over_many_rounds_every_site_takes_its_turn() -> None:
    turns: dict[SiteId, int] = dict.fromkeys(SITES, 0)
    for number in range(200):
        move = next_move(experiment(fraction=0.5), 0, (past(number + 1, RoundState.COMMITTED),), SITES)
        assert isinstance(move, Plan)
        for site in move.sample:
            turns[site] += 1
    assert all(70 < count < 130 for count in turns.values()), turns


def test_too_few_sites_are_waited_for_in_words() -> None:
    assert next_move(experiment(minimum=3), 0, (), frozenset({SiteId("east")})) == Wait(
        "waiting for sites: 1 of 3 needed are present"
    )


def test_a_named_site_that_nobody_has_seen_is_told() -> None:
    assert next_move(experiment(sites=["nroth", "west"]), 0, (), SITES) == Wait(
        "waiting for sites: 1 of 2 needed are present; of those that the file names, nroth not"
    )
    many = [f"site-{number}" for number in range(8)]
    move = next_move(experiment(sites=many), 0, (), SITES)
    assert isinstance(move, Wait)
    assert move.reason.endswith("site-0, site-1, site-2, site-3, site-4 and 3 more not")


def test_only_the_named_sites_are_eligible() -> None:
    move = next_move(experiment(sites=["east", "west"]), 0, (), SITES)
    assert isinstance(move, Plan)
    assert move.eligible == ("east", "west")


def test_a_site_that_declined_sits_out_one_round_where_others_are_enough() -> None:
    declined = past(1, RoundState.COMMITTED, declined=("north",))
    move = next_move(experiment(minimum=2), 1, (declined,), SITES)
    assert isinstance(move, Plan)
    assert move.eligible == ("east", "south", "west")
    move = next_move(experiment(minimum=4), 1, (declined,), SITES)
    assert isinstance(move, Plan)
    assert move.eligible == tuple(sorted(SITES))


def test_numbers_go_on_after_an_abandoned_round() -> None:
    move = next_move(experiment(), 0, (past(1, RoundState.ABANDONED),), SITES)
    assert isinstance(move, Plan)
    assert move.number == 2


def test_an_experiment_whose_rounds_keep_failing_rests_with_the_reason() -> None:
    recent = (past(1, RoundState.ABANDONED), past(2, RoundState.ABANDONED))
    assert next_move(experiment(), 0, recent, SITES) == Rest("2 rounds in a row were abandoned; the last: nobody came")


def test_failures_before_a_resume_do_not_count() -> None:
    recent = (past(1, RoundState.ABANDONED), past(2, RoundState.ABANDONED))
    assert isinstance(next_move(experiment(), 0, recent, SITES, forgiven=1), Plan)
    assert isinstance(next_move(experiment(), 0, recent, SITES, forgiven=0), Rest)


def test_an_experiment_ends_when_its_rounds_are_committed() -> None:
    assert next_move(experiment(), 3, (), frozenset()) == Finish()


@given(st.sets(st.sampled_from(sorted(SITES)), min_size=2), st.floats(0.01, 1.0), st.integers(1, 50))
def test_a_sample_is_always_a_part_of_the_eligible(present: set[SiteId], fraction: float, number: int) -> None:
    move = next_move(experiment(fraction=fraction), 0, (past(number, RoundState.COMMITTED),), frozenset(present))
    assert isinstance(move, Plan)
    assert set(move.sample) <= set(move.eligible) == present
    assert len(move.sample) == len(set(move.sample)) >= 2
