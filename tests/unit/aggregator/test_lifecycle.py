"""Every order in every state, and what an operator reads when it cannot be followed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.lifecycle import OPEN, ExperimentState, Order, steer, words
from histofed.base.errors import Stale

DRAFT, RUNNING, PAUSED, FINISHED, FAILED, CANCELLED = ExperimentState


@pytest.mark.parametrize(
    ("state", "order", "has_model", "after"),
    [
        (DRAFT, Order.PAUSE, False, PAUSED),
        (RUNNING, Order.PAUSE, True, PAUSED),
        (PAUSED, Order.PAUSE, True, PAUSED),
        (PAUSED, Order.RESUME, True, RUNNING),
        (PAUSED, Order.RESUME, False, DRAFT),
        (RUNNING, Order.RESUME, True, RUNNING),
        (DRAFT, Order.RESUME, False, DRAFT),
        (DRAFT, Order.CANCEL, False, CANCELLED),
        (RUNNING, Order.CANCEL, True, CANCELLED),
        (PAUSED, Order.CANCEL, True, CANCELLED),
        (CANCELLED, Order.CANCEL, True, CANCELLED),
    ],
)
def test_an_order_leads_where_it_should(
    state: ExperimentState, order: Order, has_model: bool, after: ExperimentState
) -> None:
    assert steer("demo", state, order, has_model=has_model) is after


@pytest.mark.parametrize("state", [FINISHED, FAILED, CANCELLED])
@pytest.mark.parametrize("order", list(Order))
def test_an_ended_experiment_is_refused_in_words(state: ExperimentState, order: Order) -> None:
    if (state, order) == (CANCELLED, Order.CANCEL):
        return
    with pytest.raises(Stale, match=rf"demo is {state}, so it cannot be \w+ed any more.*under another name"):
        steer("demo", state, order, has_model=True)


@given(st.sampled_from(sorted(OPEN)), st.lists(st.sampled_from(list(Order))), st.booleans())
def test_any_orders_in_any_sequence_keep_the_promises(state: ExperimentState, orders: list[Order], has_model: bool) -> None:
    for order in orders:
        try:
            after = steer("demo", state, order, has_model=has_model)
        except Stale:
            assert state not in OPEN
            continue
        assert steer("demo", after, order, has_model=has_model) is after, "every order may come twice"
        assert state in OPEN or after is state, "an ended experiment never moves"
        state = after


def test_the_words_name_who_and_why() -> None:
    assert words("ada", "the GPUs are needed") == "by ada: the GPUs are needed"
    assert words("ada", "") == "by ada"
