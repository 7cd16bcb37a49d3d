"""A task's offer, as a site reads it: made when it is sent, so that it says what is true then.

It names every file that the site may fetch for the task, the base and the steps to it; `aggregator/services/permissions.py`
lets a site read these and no others. `aggregator/services/rounds.py` sends it.
"""

from __future__ import annotations

from aggregator.engine import Engine
from aggregator.history import Chronicle
from aggregator.models import SHARED
from aggregator.rounds import RoundState
from aggregator.services import convert
from aggregator.steps import StepTold, steps_to
from aggregator.tasks import WITH_SITE
from histofed.base.clock import iso
from histofed.base.encoding import STEPS
from histofed.base.ids import Digest, ExperimentId, TaskKey
from histofed.telemetry.context import round_parent
from histofed.v1 import rounds_pb2, types_pb2


def task_offer(engine: Engine, chronicle: Chronicle, task: TaskKey) -> rounds_pb2.TaskOffer | None:
    """The offer as it stands now; None when it is not wanted any more."""
    state = engine.round_of(task)
    mine = state.task(task.site)
    if state.state is not RoundState.OPEN or mine.state not in WITH_SITE:
        return None
    assert state.deadline is not None, "an open round has a deadline"
    experiment = engine.experiment(task.round.experiment)
    base = engine.store.part(state.base, SHARED)
    backed_up = chronicle.backed_up(task.round.experiment)

    def settled_round(until: int | None) -> int | None:
        return None if until is None else engine.store.settled_round(task.round.experiment, task.site, until)

    return rounds_pb2.TaskOffer(
        task=str(task),
        kind=f"TASK_KIND_{task.kind.upper()}",
        attempt=mine.attempt,
        experiment_toml=experiment.toml,
        experiment_sha256=experiment.sha256,
        base=types_pb2.Blob(sha256=base.sha256, bytes=base.bytes),
        steps=[
            rounds_pb2.Step(from_sha256=step.begin, blob=types_pb2.Blob(sha256=step.file.sha256, bytes=step.file.bytes))
            for step in offered_steps(engine, task.round.experiment, state.base)
        ],
        settled_round=engine.store.settled_round(task.round.experiment, task.site),
        backup_round=settled_round(backed_up.newest),
        complete_backup_round=settled_round(backed_up.complete),
        rounds_committed=engine.store.rounds_committed(task.round.experiment),
        history=convert.history(chronicle.now()),
        deadline=iso(state.deadline),
        traceparent=round_parent(task.round.experiment, task.round.number).traceparent,
    )


def offered_steps(engine: Engine, experiment: ExperimentId, model: Digest) -> tuple[StepTold, ...]:
    """The ways to the model, where the experiment's models are told as steps."""
    encoding = engine.experiment(experiment).file.aggregation.encoding
    return steps_to(engine.store, model) if encoding in STEPS else ()
