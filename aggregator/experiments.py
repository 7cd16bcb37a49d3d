"""Carries out what is ordered of experiments, as `aggregator/lifecycle.py` decides: journal, then persist, then act.

Operators submit, pause, resume and cancel (`aggregator/services/admin.py`); the scheduler finishes an experiment, or lets it
rest. A new experiment has its first model made in the background, and runs from then on. What happens to its rounds is the
engine's: a cancelled experiment's open round is closed by `Engine.abandon_ended`, at once or by the scheduler's next turn.

After a restart `recover` makes the first models that are missing; one that is made twice is the same, byte for byte.
"""

from __future__ import annotations

import logging
from functools import partial

from aggregator import lifecycle
from aggregator.engine import Engine
from aggregator.lifecycle import ExperimentState, Order
from histofed.audit.record import SYSTEM, Who
from histofed.base.errors import CannotWriteState, HistofedError, Stale, WorkerLost
from histofed.base.experiment import Experiment
from histofed.base.failpoints import failpoint
from histofed.base.ids import ExperimentId, Json
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)


class Experiments:
    """The experiments of this federation; each call moves one. Keeps nothing of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store

    def recover(self) -> None:
        """Take up the first models that were being made when the last process ended, or clear away after them."""
        self._engine.forge.forget_first()
        for name in sorted(row.name for row in self._store.experiments(only_open=True)):
            if self._store.latest_model(name) is None:
                self._initialise(self._engine.experiment(name))

    def submit(self, experiment: Experiment, who: Who) -> None:
        """A new experiment. Raises `AlreadyThere`."""
        self._store.check_name_is_free(experiment.name)
        self._engine.audit("experiment.submitted", who, {"experiment": experiment.name, "sha256": experiment.sha256})
        self._store.add_experiment(experiment.name, experiment.toml, experiment.sha256, who.name)
        self._initialise(experiment)

    def steer(self, name: str, order: Order, who: Who, operator: str, reason: str) -> None:
        """An operator pauses, resumes or cancels an experiment; one that was followed before changes the reason at most.

        Raises `NotFound`, and `Stale` when the experiment has ended.
        """
        row = self._store.experiment(name)
        has_model = self._store.latest_model(row.name) is not None
        state = lifecycle.steer(row.name, ExperimentState(row.state), order, has_model=has_model)
        resumed = order is Order.RESUME
        told = "" if resumed else lifecycle.words(operator, reason)
        if state == row.state and (resumed or not reason or told == row.reason):
            return
        self._journal_order(order, who, row.name, row.state, state, reason)
        self._store.set_experiment(row.name, state, told, forgive=resumed)
        failpoint("aggregator.experiment_steered")
        log.info("experiment steered", extra=fields(experiment=row.name, state=state, reason=reason))
        if order is Order.CANCEL:
            self._engine.background.drop(_job(row.name))
            self._engine.forge.forget_first()
        self._engine.abandon_ended()
        self._engine.wake()

    def rest(self, name: ExperimentId, reason: str) -> None:
        """Rounds keep failing: pause the experiment until an operator resumes it, or cancels it. Nothing of it is lost."""
        self._journal_order(Order.PAUSE, SYSTEM, name, ExperimentState.RUNNING, ExperimentState.PAUSED, reason)
        self._store.set_experiment(name, ExperimentState.PAUSED, reason)
        failpoint("aggregator.experiment_steered")
        log.warning("experiment paused", extra=fields(event="experiment.paused", experiment=name, reason=reason))
        self._engine.changes.notify()

    def end(self, name: ExperimentId, state: str, reason: str) -> None:
        """The experiment is finished or has failed."""
        self._engine.audit(f"experiment.{state}", SYSTEM, {"experiment": name}, reason=reason)
        self._store.set_experiment(name, state, reason)
        self._engine.forge.forget_first()
        log.info("experiment ended", extra=fields(event="experiment.ended", experiment=name, state=state, reason=reason))
        self._engine.changes.notify()

    def _journal_order(self, order: Order, who: Who, name: ExperimentId, before: str, after: str, reason: str) -> None:
        subject: dict[str, Json] = {"experiment": name, "from": before, "state": after}
        self._engine.audit(lifecycle.ACTIONS[order], who, subject, reason=reason)

    def _initialise(self, experiment: Experiment) -> None:
        self._engine.background.start(_job(experiment.name), partial(self._make_first, experiment))

    async def _make_first(self, experiment: Experiment) -> None:
        try:
            first = partial(self._engine.forge.first, experiment)
            model = await self._engine.background.patiently(_job(experiment.name), first)
        except (CannotWriteState, WorkerLost):
            raise
        except HistofedError as error:
            self.end(experiment.name, "failed", f"the first model cannot be made: {error}")
            return
        if self._store.experiment(experiment.name).state not in lifecycle.OPEN:
            raise Stale(f"experiment {experiment.name} was cancelled before its first model was made")
        self._engine.audit("model.created", SYSTEM, {"experiment": experiment.name, "round": 0, "model": model.digest})
        self._store.add_first_model(model)
        failpoint("aggregator.model_committed")
        self._engine.forge.forget_first()
        self._engine.wake()


def _job(experiment: ExperimentId) -> str:
    """The name of the work on its first model; `Engine.makes_models` knows it by its beginning."""
    return f"initialise {experiment}"
