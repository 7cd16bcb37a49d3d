"""An experiment's life as a pure function: where an operator's order leads, or why it cannot be followed.

    draft -> running <-> paused -> finished | failed | cancelled

The aggregator itself pauses an experiment whose rounds keep failing, and fails one whose first model cannot be made.

Invariants, held by `tests/unit/aggregator/test_lifecycle.py`: an ended experiment never moves again; an order that was
followed before changes nothing (every order may come twice); a pause forgets neither the first model that is still being
made nor the rounds that are committed. `aggregator/experiments.py` journals and persists the new state before it acts.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from histofed.base.errors import Stale


class ExperimentState(StrEnum):
    """Where an experiment is."""

    DRAFT = "draft"
    """Its first model is being made."""
    RUNNING = "running"
    PAUSED = "paused"
    """No new round begins; an open round goes on to its end."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN: Final = frozenset({ExperimentState.DRAFT, ExperimentState.RUNNING, ExperimentState.PAUSED})
"""Something may still happen to it."""


class Order(StrEnum):
    """What an operator may want of an experiment."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


ACTIONS: Final = {
    Order.PAUSE: "experiment.paused",
    Order.RESUME: "experiment.resumed",
    Order.CANCEL: "experiment.cancelled",
}
"""An order's word in the audit journal."""


def steer(name: str, state: ExperimentState, order: Order, *, has_model: bool) -> ExperimentState:
    """The state that the order leads to; the same one when it was followed before.

    `has_model`: the first model was made, so a resumed experiment can run. Raises `Stale` when the experiment has ended.
    """
    match order, state:
        case Order.CANCEL, ExperimentState.CANCELLED:
            return state
        case _ if state not in OPEN:
            raise Stale(
                f"experiment {name} is {state}, so it cannot be {_DONE[order]} any more; "
                "to train on, submit it under another name"
            )
        case Order.PAUSE, _:
            return ExperimentState.PAUSED
        case Order.RESUME, ExperimentState.PAUSED:
            return ExperimentState.RUNNING if has_model else ExperimentState.DRAFT
        case Order.RESUME, _:
            return state
        case _:
            return ExperimentState.CANCELLED


def words(operator: str, reason: str) -> str:
    """What a list shows behind the state: who gave the order, and why."""
    return f"by {operator}: {reason}" if reason else f"by {operator}"


_DONE: Final = {Order.PAUSE: "paused", Order.RESUME: "resumed", Order.CANCEL: "cancelled"}
