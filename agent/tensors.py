"""The tensors that this site keeps from one task to the next: an experiment's private ones and the bases it trained from.

Private ones advance with the rounds that the aggregator has committed, and go back with an aggregator that was restored; all
of them go when the experiment has ended, and with them what was begun on its tasks. Going back and forgetting private ones
are journalled first. `agent/work.py` settles before each task, `agent/sessions.py` asks at each hello what has ended.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from typing import Final

from agent.desk import Desk
from agent.offers import Offer
from agent.rooms import Rooms
from histofed.base.ids import ExperimentId, Json, RoundKey

log = logging.getLogger(__name__)

AT_ONCE: Final = 1000
"""Experiments that an aggregator lets one hello ask about."""


class KeptTensors:
    """Private tensors, bases and unfinished work of one site, over all experiments."""

    def __init__(self, desk: Desk, rooms: Rooms) -> None:
        self._desk = desk
        self._rooms = rooms
        self._asked = ""
        """The last experiment that the aggregator was asked about."""

    def next_to_ask(self) -> tuple[ExperimentId, ...]:
        """Experiments of which something is here, `AT_ONCE` at most; of more, those behind the ones of the call before."""
        keepers = (self._desk.private, self._desk.bases, self._rooms)
        here = sorted({experiment for keeper in keepers for experiment in keeper.experiments()})
        if len(here) <= AT_ONCE:
            return tuple(here)
        behind = bisect_right(here, self._asked)
        asked = (here[behind:] + here[:behind])[:AT_ONCE]
        self._asked = asked[-1]
        return tuple(asked)

    def forget(self, ended: frozenset[str]) -> None:
        """Remove what is kept of experiments that have ended; of the task in hand when that is over."""
        desk, held = self._desk, self._desk.state.task_in_hand()
        over = ended if held is None else ended - {held.task.round.experiment}
        for experiment in desk.private.experiments():
            if experiment in over:
                desk.journal.append("private.forgotten", subject={"experiment": experiment}, reason="it has ended")
                desk.private.forget(experiment)
        for keeper in (desk.bases, self._rooms):
            for experiment in keeper.experiments():
                if experiment in over:
                    keeper.forget(experiment)

    def settle(self, offer: Offer) -> int:
        """Advance the private tensors with the aggregator, or go back with it; going back is journalled."""
        desk, experiment = self._desk, offer.task.round.experiment
        was = desk.state.private_round(experiment)
        if offer.settled_round < was:
            found = desk.private.has(RoundKey(experiment, offer.settled_round))
            reason = "the aggregator was restored to an earlier round" + (
                "" if found or not offer.settled_round else "; the tensors of that round are not here, training starts anew"
            )
            subject: dict[str, Json] = {"experiment": experiment, "from_round": was, "round": offer.settled_round}
            desk.journal.append("private.went_back", subject=subject, reason=reason, trace=offer.trace)
            log.warning(
                "private tensors of %s go back from round %d to %d: %s", experiment, was, offer.settled_round, reason
            )
        return desk.private.settle(offer.task.round, offer.settled_round, offer.backup_rounds)
