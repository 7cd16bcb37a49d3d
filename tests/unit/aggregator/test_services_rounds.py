"""A site's stream of work, as the servicer writes it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from aggregator.experiments import Experiments
from aggregator.fleet import QUEUE_LIMIT
from aggregator.members import Members
from aggregator.rows import ModelRow
from aggregator.services.rounds import FleetServicer
from histofed.base.clock import FakeClock
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.ids import sha256
from histofed.telemetry.tracing import Tracing
from histofed.v1 import rounds_pb2
from tests.support.calls import Call
from tests.support.engine_bench import ADMIN, NORTH, Bench, StandInForge, settle
from tests.support.pki import Federation

FEDERATION = Federation("test")
EXPERIMENTS = [parse_experiment(f'name = "e{number}"\nrecipe = "mean"\nrounds = 1\n') for number in range(QUEUE_LIMIT + 6)]


class Forge(StandInForge):
    """Every experiment has a first model of its own."""

    async def first(self, experiment: Experiment) -> ModelRow:
        return replace(self._model(0), digest=sha256(experiment.name.encode()), experiment=experiment.name)


async def test_a_site_hears_of_all_its_tasks_when_it_connects_however_many(tmp_path: Path) -> None:
    clock = FakeClock()
    bench = Bench(tmp_path, clock, Forge(clock))
    async with bench.engine() as engine:
        for experiment in EXPERIMENTS:
            Experiments(engine).submit(experiment, ADMIN)
        await settle(engine)
        for experiment in EXPERIMENTS:
            engine.plan(experiment, 1, sha256(experiment.name.encode()), (NORTH,), (NORTH,))
        servicer = FleetServicer(
            engine=engine,
            members=Members(engine.store._database, clock),
            fleet=engine.fleet,
            changes=engine.changes,
            blobs=bench.blobs,
            credentials=FEDERATION.aggregator(),
            tracing=Tracing.off(),
            chronicle=bench.chronicle(engine),
            clock=clock,
        )
        north = Call(FEDERATION.site(NORTH))
        stream: Any = servicer.WaitForWork(rounds_pb2.WaitForWorkRequest(instance="one"), cast("Any", north))
        async with contextlib.aclosing(stream):
            offered = [(await anext(stream)).offer.task for _ in EXPERIMENTS]
    assert sorted(offered) == sorted(f"{experiment.name}/1/train/north" for experiment in EXPERIMENTS)
