"""What the arithmetic of a round is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aggregator import events
from aggregator.aggregate import AggregateJob, AggregateResult
from aggregator.engine import Engine
from aggregator.models import SHARED, ModelForge
from histofed import weights
from histofed.base.clock import FakeClock
from histofed.base.errors import BadData, HistofedError
from histofed.base.experiment import parse_experiment
from histofed.base.ids import RoundKey
from histofed.transport.store import BlobStore
from tests.support.engine_bench import EXPERIMENT, KEY, NORTH, Bench, deliver, opened, settle
from tests.support.failing_disk import fail_from
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


def forge_of(engine: Engine, folder: Path) -> tuple[ModelForge, Path]:
    """What makes the engine's models, and the newest one's shared tensors."""
    blobs = BlobStore(folder / "blobs")
    forge = ModelForge(
        store=engine.store,
        blobs=blobs,
        workers=Workers(),  # type: ignore[arg-type]  # says what it was asked
        current=fixed(Federation().aggregator()),
        scratch=folder,
        clock=FakeClock(),
    )
    base = blobs.path(engine.store.part(engine.store.model(EXPERIMENT.name).digest, SHARED).sha256)
    weights.save(base, {"mean.value": np.zeros(3, np.float32)})
    return forge, base


async def test_a_schedule_counts_the_rounds_that_were_committed(bench: Bench, tmp_path: Path) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
        forge, _ = forge_of(engine, tmp_path)
        base = engine.store.model(EXPERIMENT.name).digest
        for key in (RoundKey(EXPERIMENT.name, number) for number in (2, 3, 4)):
            engine.plan(EXPERIMENT, key.number, base, (NORTH,), (NORTH,))
            with pytest.raises(Asked) as asked:
                await forge.next(WITH_CONFIG, engine.store.round(key))
            assert asked.value.job.round == 2, "one round is committed, whatever was abandoned since"
            engine.dispatch(key, events.Abandoned("nobody came"))


async def test_a_base_that_cannot_be_read_is_trouble_of_ours_and_no_end_of_the_daemon(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        forge, base = forge_of(engine, tmp_path)
        fail_from(monkeypatch, base, 20)
        for words in ("Input/output error", "No such file or directory"):
            with pytest.raises(HistofedError, match=f"the base model cannot be read: {words}; repair the disk") as caught:
                await forge.next(WITH_CONFIG, engine.store.round(KEY))
            assert not isinstance(caught.value, BadData)
            base.unlink(missing_ok=True)
