"""Which epoch of the aggregator's this site works in, and what becomes of its finished updates when another one begins.

An aggregator that was restored from a backup begins a new epoch: it has forgotten what came after the backup. How far its
history went is remembered over a restart, so that one which was put back by hand is noticed at its next hello. What is done
to an update is journalled before. `agent/sessions.py` compares the histories and enters an epoch; it and the work on a task
note what messages tell.
"""

from __future__ import annotations

import logging

from agent.desk import Desk
from agent.handover import HandOver
from histofed.audit.history import History
from histofed.base.ids import Json

log = logging.getLogger(__name__)


class Epochs:
    """The aggregator's history, as one site has followed it."""

    def __init__(self, desk: Desk, handover: HandOver) -> None:
        self._desk = desk
        self._handover = handover

    def history_seen(self) -> History | None:
        """How far the aggregator's history went when this site last heard of it."""
        return self._desk.state.history(self._desk.link.credentials.ca_sha256)

    def note_history(self) -> None:
        """Remember what the link heard last."""
        if self._desk.link.heard is not None:
            self._desk.state.note_history(self._desk.link.credentials.ca_sha256, self._desk.link.heard)

    def enter(self, seen: History, now: History) -> None:
        """The aggregator was restored from a backup. Nothing is in hand now; updates that wait are withheld.

        An update goes back beside the training that made it: if the restored aggregator offers the very same assignment
        again, it is handed over without another training; otherwise the experiment's next task clears it away. Repeatable.
        """
        desk = self._desk
        subject: dict[str, Json] = {"epoch_from": seen.epoch, "epoch": now.epoch, "records": now.head.sequence}
        words = "the aggregator was restored from a backup; what it forgot is done again or cleared away"
        desk.journal.append("aggregator.restored", subject=subject, reason=words)
        log.warning("%s (it was in %s, it is in %s)", words, seen, now)
        # verdicts too are forgotten there, also that of an update which the disk has let go of in part
        for task in {*self._handover.judged, *(entry.task for entry in desk.outbox.entries())}:
            self._handover.withhold(task, words)
