"""What a site says of itself, and its stream of work, as the servicer writes it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from aggregator import events, schema
from aggregator.engine import Engine
from aggregator.experiments import Experiments
from aggregator.fleet import QUEUE_LIMIT
from aggregator.members import Members
from aggregator.rounds import RoundState
from aggregator.rows import ModelRow
from aggregator.services.rounds import FleetServicer
from histofed.audit.history import CLAIMED
from histofed.base.clock import FakeClock, iso
from histofed.base.errors import (
    BadData,
    CannotWriteState,
    HistofedError,
    NotFound,
    Stale,
    TryLater,
    VersionMismatch,
    WentBack,
)
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.ids import SiteId, sha256
from histofed.pki.signing import sign
from histofed.statements import UPDATE_TYPE, File, UpdateManifest, encode
from histofed.telemetry.logs import fields_of
from histofed.telemetry.tracing import Tracing
from histofed.v1 import rounds_pb2, types_pb2
from tests.support.calls import Call
from tests.support.engine_bench import ADMIN, KEY, NORTH, SOUTH, Bench, StandInForge, opened, received, settle, submit
from tests.support.pki import Federation

FEDERATION = Federation("test", FakeClock())
EXPERIMENTS = [parse_experiment(f'name = "e{number}"\nrecipe = "mean"\nrounds = 1\n') for number in range(QUEUE_LIMIT + 6)]


class Forge(StandInForge):
    """Every experiment has a first model of its own."""

    async def first(self, experiment: Experiment) -> ModelRow:
        return replace(self._model(0), digest=sha256(experiment.name.encode()), experiment=experiment.name)


TASK = f"{KEY}/train/{NORTH}"
AHEAD = rounds_pb2.History(epoch=2, records=9999, head="a" * 64)
"""What no site can have seen of a state that is in its first epoch, unless that was put back by hand."""
NORTH_CALLS: Any = Call(FEDERATION.site(NORTH))


def servicer_of(bench: Bench, engine: Engine, met: Sequence[SiteId] = (NORTH,)) -> FleetServicer:
    return FleetServicer(
        engine=engine,
        members=members_of(bench, engine),
        fleet=engine.fleet,
        changes=engine.changes,
        blobs=bench.blobs,
        credentials=FEDERATION.aggregator(),
        tracing=Tracing.off(),
        chronicle=bench.chronicle(engine, met),
        clock=bench.clock,
    )


def members_of(bench: Bench, engine: Engine) -> Members:
    return Members(engine.store._database, bench.clock)


def enrol(bench: Bench, engine: Engine) -> None:
    """`north` joins."""
    members, later = members_of(bench, engine), bench.clock.now() + timedelta(days=1)
    members.create_token("token", NORTH, later)
    members.enrol("token", NORTH, FEDERATION.site(NORTH).identity.uri, "1", later)


async def hello(bench: Bench, *, version: str = "0.1.0", instance: str = "0" * 32) -> str:
    """A hello of the enrolled site `north`, and the version that operators see from then on."""
    async with bench.engine() as engine:
        enrol(bench, engine)
        request = rounds_pb2.HelloRequest(version=version, instance=instance)
        await servicer_of(bench, engine).Hello(request, NORTH_CALLS)
        return members_of(bench, engine).sites()[0].version


@pytest.mark.parametrize("version", ["0.1.0", "0.1", "0.0.9rc1", "0.1.0.dev3+g12ab34c", "0.1.0-1_2"])
async def test_an_agent_of_this_release_or_an_older_one_is_welcome(bench: Bench, version: str) -> None:
    assert await hello(bench, version=version) == version


@pytest.mark.parametrize(
    "version",
    [
        "0.1.\x1b]0;owned\x07\x1b[2J",
        "0.1.0\nsouth  connected",
        "0.1.0\n",
        "0.1.0 ",
        "0.1.\u202e0",
        "\u0660.\u0661",
        "0.1." + "x" * 4_000_000,
        "0.00001",
        "0",
        "",
    ],
)
async def test_a_version_that_is_none_is_neither_kept_nor_logged(
    bench: Bench, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(BadData, match=r"is not a version \(MAJOR\.MINOR\.PATCH\)") as refused:
        await hello(bench, version=version)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300
    assert not [record for record in caplog.records if "version" in fields_of(record)]


async def test_a_newer_agent_is_told_what_to_do(bench: Bench) -> None:
    with pytest.raises(VersionMismatch, match=r"histofed 0\.2\.0, newer .* upgrade the aggregator first"):
        await hello(bench, version="0.2.0")


@pytest.mark.parametrize("instance", ["short", "x" * 65, "0000000\x1b[2J", "00000000\n", "0000 0000"])
async def test_an_instance_is_letters_and_digits(bench: Bench, instance: str) -> None:
    with pytest.raises(BadData, match="must be 8 to 64 letters, digits or '-'"):
        await hello(bench, instance=instance)


async def test_a_site_hears_of_all_its_tasks_when_it_connects_however_many(tmp_path: Path) -> None:
    clock = FakeClock()
    bench = Bench(tmp_path, clock, Forge(clock))
    async with bench.engine() as engine:
        for experiment in EXPERIMENTS:
            Experiments(engine).submit(experiment, ADMIN)
        await settle(engine)
        for experiment in EXPERIMENTS:
            engine.plan(experiment, 1, sha256(experiment.name.encode()), (NORTH,), (NORTH,))
        stream: Any = servicer_of(bench, engine).WaitForWork(rounds_pb2.WaitForWorkRequest(instance="one"), NORTH_CALLS)
        async with contextlib.aclosing(stream):
            offered = [(await anext(stream)).offer.task for _ in EXPERIMENTS]
    assert sorted(offered) == sorted(f"{experiment.name}/1/train/north" for experiment in EXPERIMENTS)


async def test_a_site_whose_hello_was_refused_takes_part_in_nothing(bench: Bench) -> None:
    """A restore lost its row, and its certificate is still good: it is neither sampled nor offered anything, nor heard."""
    hello = rounds_pb2.HelloRequest(
        version="0.1.0", instance="0" * 32, history=rounds_pb2.History(epoch=1, records=9999, head="a" * 64)
    )
    async with bench.engine() as engine:
        await opened(engine)
        with engine.store._database.writing() as connection:
            connection.execute(sa.insert(schema.epochs).values(number=2, began_at="2026"))
        servicer = servicer_of(bench, engine, met=())
        for _ in range(2):
            with pytest.raises(NotFound, match="site north is not enrolled here; enrol it with a join token"):
                await servicer.Hello(hello, NORTH_CALLS)
            with pytest.raises(TryLater, match="the agent says it with its next hello"):
                await first_offer(servicer)
            assert engine.fleet.present() == frozenset()
            with pytest.raises(TryLater):
                await servicer.AcceptTask(rounds_pb2.AcceptTaskRequest(task=TASK, attempt=1), NORTH_CALLS)
        assert bench.actions().count(CLAIMED) == 1, "what it saw is evidence of what was lost"
        enrol(bench, engine)
        await servicer.Hello(hello, NORTH_CALLS)
        assert await first_offer(servicer) == TASK


async def test_no_work_is_told_to_a_site_that_this_process_has_not_met(bench: Bench) -> None:
    """As after a restart between a hello and the stream that follows it."""
    async with bench.engine() as engine:
        await opened(engine)
        enrol(bench, engine)
        servicer = servicer_of(bench, engine, met=())
        with pytest.raises(TryLater, match="has not heard yet what site north has seen"):
            await first_offer(servicer)
        assert engine.fleet.connected == frozenset()
        await servicer.Hello(rounds_pb2.HelloRequest(version="0.1.0", instance="0" * 32), NORTH_CALLS)
        assert await first_offer(servicer) == TASK


REFUSED = [
    (rounds_pb2.HelloRequest(version="0.1.0", instance="0" * 32, history=AHEAD), WentBack),
    (rounds_pb2.HelloRequest(version="99.0.0", instance="0" * 32), VersionMismatch),
]


@pytest.mark.parametrize(("asked", "error"), REFUSED)
async def test_a_site_whose_stream_is_open_is_sampled_no_more_when_a_later_hello_is_refused(
    bench: Bench, asked: rounds_pb2.HelloRequest, error: type[HistofedError]
) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        enrol(bench, engine)
        servicer, scheduler = servicer_of(bench, engine), bench.scheduler(engine)
        stream: Any = servicer.WaitForWork(rounds_pb2.WaitForWorkRequest(instance="0" * 32), NORTH_CALLS)
        async with contextlib.aclosing(stream):
            assert (await anext(stream)).offer.task == TASK
            with pytest.raises(error):
                await servicer.Hello(asked, NORTH_CALLS)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        scheduler.tick()
        assert engine.fleet.present() == frozenset()


@pytest.mark.parametrize(("asked", "error"), REFUSED)
async def test_a_site_that_was_there_before_a_start_is_waited_for_until_its_hello_is_refused(
    bench: Bench, asked: rounds_pb2.HelloRequest, error: type[HistofedError]
) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        enrol(bench, engine)
        servicer, scheduler, members = servicer_of(bench, engine, met=()), bench.scheduler(engine), members_of(bench, engine)
        members.site_seen(NORTH, "0.1.0", "0" * 32)
        engine.fleet.expect(members.present())
        scheduler.tick()
        assert engine.fleet.present() == {NORTH}
        with pytest.raises(error):
            await servicer.Hello(asked, NORTH_CALLS)
        scheduler.tick()
        assert engine.fleet.present() == frozenset()
        assert members.present() == (), "nor after the next start"
        await servicer.Hello(rounds_pb2.HelloRequest(version="0.1.0", instance="0" * 32), NORTH_CALLS)
        assert await first_offer(servicer) == TASK
        assert members.present() == (NORTH,)


async def test_a_disk_that_refuses_turns_no_site_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        enrol(bench, engine)
        servicer = servicer_of(bench, engine, met=())
        engine.fleet.expect((NORTH,))

        def full(*_: object) -> None:
            raise CannotWriteState("the disk is full")

        monkeypatch.setattr(Members, "site_seen", full)
        with pytest.raises(CannotWriteState):
            await servicer.Hello(rounds_pb2.HelloRequest(version="0.1.0", instance="0" * 32), NORTH_CALLS)
        bench.scheduler(engine).tick()
        assert engine.fleet.present() == {NORTH}


async def first_offer(servicer: FleetServicer) -> str:
    """The first task on a new stream of `north`."""
    stream: Any = servicer.WaitForWork(rounds_pb2.WaitForWorkRequest(instance="0" * 32), NORTH_CALLS)
    async with contextlib.aclosing(stream):
        return str((await anext(stream)).offer.task)


async def test_an_update_that_cannot_be_weighed_by_its_loss_is_rejected_and_the_round_goes_on(bench: Bench) -> None:
    options = 'options = { client_learning_rate = 1, train_loss_key = "distance" }'
    experiment = parse_experiment(
        f'name = "demo"\nrecipe = "mean"\nrounds = 1\n[aggregation]\nstrategy = "flower:QFedAvg"\n{options}\n'
    )
    async with bench.engine() as engine:
        submit(engine, experiment)
        await settle(engine)
        base = engine.store.latest_model(experiment.name)
        assert base is not None
        engine.plan(experiment, 1, base.digest, (NORTH, SOUTH), (NORTH, SOUTH))
        engine.dispatch(KEY, events.Accepted(NORTH, 1))
        silent = UpdateManifest(
            federation="test",
            experiment="demo",
            experiment_sha256=experiment.sha256,
            round=1,
            kind="train",
            site=NORTH,
            attempt=1,
            base=engine.store.part(base.digest, "shared").sha256,
            encoding="float32",
            weights=File(sha256(b"weights"), 7),
            tiles=1,
            patients=1,
            steps=1,
            metrics={"update_norm": 1.0},
            private_round=0,
            policy_sha256="a" * 64,
            created_at=iso(bench.clock.now()),
        )
        signed = sign(UPDATE_TYPE, encode(silent), NORTH_CALLS.credentials)
        manifest = types_pb2.Envelope(
            payload_type=UPDATE_TYPE, payload=signed.payload, signature=signed.signature, certificate=signed.certificate
        )
        request = rounds_pb2.SubmitUpdateRequest(task=TASK, attempt=1, manifest=manifest)
        answer = await servicer_of(bench, engine).SubmitUpdate(request, NORTH_CALLS)

        assert answer.state == types_pb2.TASK_STATE_REJECTED
        assert "weighs by metric 'distance', and the site reports update_norm" in answer.reason
        assert engine.store.round(KEY).state is RoundState.OPEN


async def test_an_update_whose_round_ended_before_it_was_judged_came_too_late_and_is_not_rejected(bench: Bench) -> None:
    manifest = types_pb2.Envelope(payload_type=UPDATE_TYPE, payload=b"as it was received")
    weights = sha256(b"weights")
    async with bench.engine() as engine:
        await opened(engine)
        for event in (
            events.Accepted(NORTH, 1),
            events.Received(NORTH, 1, sha256(manifest.payload), weights, 1),
            events.Abandoned("the experiment was cancelled"),
        ):
            engine.dispatch(KEY, event)
        request = rounds_pb2.SubmitUpdateRequest(task=TASK, attempt=1, manifest=manifest)
        with pytest.raises(Stale, match=r"is expired \(the experiment was cancelled\); this update comes too late"):
            await servicer_of(bench, engine).SubmitUpdate(request, NORTH_CALLS)


async def test_of_a_task_whose_update_is_received_nothing_more_is_wanted(bench: Bench) -> None:
    """A site whose rules have changed meanwhile asks for the verdict then, and does not journal that it kept the update."""
    request = rounds_pb2.ReportProgressRequest(task=TASK, attempt=1, phase="waiting")
    async with bench.engine() as engine:
        await opened(engine)
        servicer = servicer_of(bench, engine)
        engine.dispatch(KEY, events.Accepted(NORTH, 1))
        assert (await servicer.ReportProgress(request, NORTH_CALLS)).wanted
        event, envelope = received(NORTH)
        engine.dispatch(KEY, event, update=envelope)
        answer = await servicer.ReportProgress(request, NORTH_CALLS)
        assert (answer.wanted, answer.reason) == (False, "the task is received")
