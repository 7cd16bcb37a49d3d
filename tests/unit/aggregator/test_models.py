"""What the arithmetic of a round is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aggregator import events
from aggregator.aggregate import AggregateJob, AggregateResult
from aggregator.models import SHARED, ModelForge
from histofed import weights
from histofed.base.clock import FakeClock
from histofed.base.experiment import parse_experiment
from histofed.base.ids import RoundKey
from histofed.transport.store import BlobStore
from tests.support.engine_bench import EXPERIMENT, NORTH, Bench, deliver, opened, settle
from tests.support.pki import Federation, fixed

WITH_CONFIG = parse_experiment(f"{EXPERIMENT.toml}[config]\ndimension = 3\nsteps = 1\n")


class Asked(Exception):
    """What a child process would have been given."""

    def __init__(self, job: AggregateJob) -> None:
        self.job = job


class Workers:
    """Does no job."""

    async def run(self, job: AggregateJob) -> AggregateResult:
        raise Asked(job)


async def test_a_schedule_counts_the_rounds_that_were_committed(bench: Bench, tmp_path: Path) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
        blobs = BlobStore(tmp_path / "blobs")
        forge = ModelForge(
            store=engine.store,
            blobs=blobs,
            workers=Workers(),  # type: ignore[arg-type]  # says what it was asked
            current=fixed(Federation().aggregator()),
            scratch=tmp_path,
            clock=FakeClock(),
        )
        base = engine.store.model(EXPERIMENT.name).digest
        weights.save(blobs.path(engine.store.part(base, SHARED).sha256), {"mean.value": np.zeros(3, np.float32)})
        for key in (RoundKey(EXPERIMENT.name, number) for number in (2, 3, 4)):
            engine.plan(EXPERIMENT, key.number, base, (NORTH,), (NORTH,))
            with pytest.raises(Asked) as asked:
                await forge.next(WITH_CONFIG, engine.store.round(key))
            assert asked.value.job.round == 2, "one round is committed, whatever was abandoned since"
            engine.dispatch(key, events.Abandoned("nobody came"))
