"""What the arithmetic of a round is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator import events
from aggregator.aggregate import AggregateJob, Kept
from aggregator.engine import Engine
from aggregator.jobs import Job, kind_of
from aggregator.models import ModelForge
from aggregator.rounds import Round
from aggregator.worker import perform
from histofed import weights
from histofed.base.clock import FakeClock
from histofed.base.encoding import Encoding
from histofed.base.errors import BadData, HistofedError
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.hashing import sha256_file
from histofed.base.ids import RoundKey
from histofed.encodings.file import Form, encode_file
from histofed.statements import File
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
    """Averages nothing, and does every other job here and now."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def run(self, job: Job) -> Any:
        if isinstance(job, AggregateJob):
            raise Asked(job)
        await asyncio.sleep(0)  # as a child process, it lets the others go on
        found = perform(job)
        self.done.append(kind_of(job))
        return found


def with_files(bench: Bench, folder: Path) -> Path:
    """From here on the bench's models have these shared tensors."""
    blobs, path = BlobStore(folder / "blobs"), folder / "shared"
    written = weights.save(path, {"mean.value": np.arange(3, dtype=np.float32)})
    blobs.adopt(path, written.sha256)
    bench.forge.shared = File(**asdict(written))
    return blobs.path(written.sha256)


def forge_of(engine: Engine, folder: Path, workers: Workers) -> ModelForge:
    """The real one, over the engine's models."""
    return ModelForge(
        store=engine.store,
        blobs=BlobStore(folder / "blobs"),
        workers=workers,  # type: ignore[arg-type]  # has no processes
        current=fixed(Federation().aggregator()),
        scratch=folder,
        clock=FakeClock(),
    )


async def test_a_schedule_counts_the_rounds_that_were_committed(bench: Bench, tmp_path: Path) -> None:
    with_files(bench, tmp_path)
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
        forge = forge_of(engine, tmp_path, Workers())
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
    base = with_files(bench, tmp_path)
    async with bench.engine() as engine:
        await opened(engine)
        forge = forge_of(engine, tmp_path, Workers())
        fail_from(monkeypatch, base, 20)
        for words in ("Input/output error", "No such file or directory"):
            with pytest.raises(HistofedError, match=f"the base model cannot be read: {words}; repair the disk") as caught:
                await forge.next(WITH_CONFIG, engine.store.round(KEY))
            assert not isinstance(caught.value, BadData)
            base.unlink(missing_ok=True)


@pytest.mark.parametrize(("limit", "encoding"), [(3999, "float32"), (4000, "float32"), (1024, "bfloat16-delta")])
async def test_a_limit_that_no_update_could_keep_is_told_before_a_site_trains(
    bench: Bench, tmp_path: Path, limit: int, encoding: str
) -> None:
    """1000 floats are 4000 bytes, plain; encoded, nobody knows."""
    rules = f'[aggregation]\nmax_update_bytes = {limit}\nencoding = "{encoding}"\n'
    experiment = parse_experiment(f"{EXPERIMENT.toml}[config]\ndimension = 1000\nsteps = 1\n{rules}")
    async with bench.engine() as engine:
        forge = forge_of(engine, tmp_path, Workers())
        if limit == 3999:
            with pytest.raises(
                BadData, match=r"more than 4000 bytes, the experiment's limit is 3999: raise aggregation\.max"
            ):
                await forge.first(experiment)
        else:
            assert (await forge.first(experiment)).round == 0


# -- a base that changed on the disk -----------------------------------------------------------------------------------


def in_encoding(encoding: str) -> Experiment:
    return parse_experiment(f'{WITH_CONFIG.toml}[aggregation]\nencoding = "{encoding}"\n')


@asynccontextmanager
async def received_update(bench: Bench, folder: Path, base: Path, encoding: Encoding) -> AsyncIterator[tuple[Engine, Round]]:
    """North's update is here, and is a step of one from the base in each value."""
    plain, update = folder / "plain", BlobStore(folder / "blobs").path("e" * 64)
    weights.save(plain, {"mean.value": weights.read(base)["mean.value"] + np.float32(1)})
    if encoding == "float32":
        plain.rename(update)
    else:
        encode_file(plain, base, Form(encoding, sha256_file(base)), 1e9, update)
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
        yield engine, engine.store.round(KEY)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("encoding", ["float32", "float32-delta", "bfloat16-delta"])
async def test_a_byte_of_the_base_that_changed_is_found_before_an_update_is_judged_by_it(
    bench: Bench, tmp_path: Path, encoding: Encoding
) -> None:
    base, workers = with_files(bench, tmp_path), Workers()
    async with received_update(bench, tmp_path, base, encoding) as (engine, state):
        forge = forge_of(engine, tmp_path, workers)
        flip_last_byte(base)
        with pytest.raises(HistofedError, match="has changed on the disk: repair the disk and restore a backup") as caught:
            await forge.inspect(in_encoding(encoding), state, NORTH)
        assert not isinstance(caught.value, BadData), "no site's fault"
        assert workers.done == []
        flip_last_byte(base)
        assert await forge.inspect(in_encoding(encoding), state, NORTH) == pytest.approx(3**0.5)


async def test_a_base_is_hashed_once_a_round_and_again_in_the_next_life(bench: Bench, tmp_path: Path) -> None:
    base, workers = with_files(bench, tmp_path), Workers()
    async with received_update(bench, tmp_path, base, "float32") as (engine, state):
        forge = forge_of(engine, tmp_path, workers)
        looks = [forge.inspect(WITH_CONFIG, state, NORTH) for _ in range(3)]
        await asyncio.gather(*looks)
        assert workers.done == ["check", "inspect", "inspect", "inspect"]
        following = replace(state, key=RoundKey(EXPERIMENT.name, 2))
        for _ in range(2):
            await forge.inspect(WITH_CONFIG, following, NORTH)
        assert workers.done[4:] == ["check", "inspect", "inspect"]
        await forge_of(engine, tmp_path, workers).inspect(WITH_CONFIG, following, NORTH)
        assert workers.done[7:] == ["check", "inspect"]


@pytest.mark.parametrize(
    ("rules", "hashed"),
    [
        ("", False),
        ('encoding = "bfloat16"', True),
        ('encoding = "float32-delta"', True),
        ('strategy = "flower:FedAvg"', True),
    ],
)
async def test_a_model_is_built_on_a_base_that_was_hashed(bench: Bench, tmp_path: Path, rules: str, hashed: bool) -> None:
    base = with_files(bench, tmp_path)
    async with bench.engine() as engine:
        await opened(engine)
        with pytest.raises(Asked) as asked:
            await forge_of(engine, tmp_path, Workers()).next(
                parse_experiment(f"{WITH_CONFIG.toml}[aggregation]\n{rules}\n"), engine.store.round(KEY)
            )
        assert asked.value.job.kept == ((Kept(base, sha256_file(base)),) if hashed else ())
