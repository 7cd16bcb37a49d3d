"""The aggregator's parts together, inside one process: what holds for all of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aggregator import backup, doctor, restore, setup
from aggregator.config import AggregatorConfig, Listen
from aggregator.daemon import AggregatorService
from aggregator.models import ModelForge
from aggregator.probes import READINESS
from aggregator.scheduler import Scheduler
from histofed import weights
from histofed.backup import snapshot
from histofed.base.clock import FakeClock, SystemClock, from_iso
from histofed.base.config import Loaded
from histofed.base.errors import CannotWriteState, NotFound, WentBack
from histofed.cli.client import OperatorClient
from histofed.cli.config import load_operator
from histofed.pki.credentials import Credentials
from tests.support.centre import NORTH, Centre
from tests.support.failing_disk import hide
from tests.support.federation import free_ports


@pytest.fixture
def config(centre: Centre) -> AggregatorConfig:
    """Of a federation that nobody runs yet."""
    grpc_port, enrolment, health, metrics = (f"127.0.0.1:{port}" for port in free_ports(4))
    listen = Listen(grpc=grpc_port, enrolment=enrolment, health=health, metrics=metrics)
    found = AggregatorConfig(federation="test", state_dir=centre.state, listen=listen)
    setup.create(found, centre.clock, "admin", centre.folder / "operator")
    return found


@asynccontextmanager
async def running(config: AggregatorConfig, centre: Centre) -> AsyncIterator[AggregatorService]:
    """From a start to a stop."""
    loaded = Loaded(config, {})
    built = AggregatorService(loaded, lambda: loaded, centre.clock)
    await built.start()
    yield built
    await built.stop()


def operating(centre: Centre) -> AbstractAsyncContextManager[OperatorClient]:
    """The first operator's connection."""
    return OperatorClient.connect(load_operator(centre.folder / "operator" / "operator.toml"))


async def test_what_a_killed_backup_left_goes_at_the_next_start(config: AggregatorConfig, centre: Centre) -> None:
    left = centre.state / snapshot.ROOM
    left.mkdir()
    (left / "state.db").touch()
    async with running(config, centre):
        assert not left.exists()


async def test_a_key_that_a_killed_process_was_writing_goes_at_the_next_start(
    config: AggregatorConfig, centre: Centre
) -> None:
    left = centre.state / "identity" / ".aggregator.pem.0123abcd.tmp"
    left.write_text("a private key")
    async with running(config, centre):
        assert not left.exists()


async def test_a_site_that_is_connected_when_the_aggregator_stops_was_there_then(
    config: AggregatorConfig, centre: Centre
) -> None:
    """It may never come back; its last hello may be weeks old."""
    began = centre.clock.now()
    async with running(config, centre) as built:
        row = ("north", *["2020-01-01T00:00:00.000000Z"] * 2, "0.1.0")
        centre.sql("INSERT INTO sites (name, enrolled_at, last_seen_at, version) VALUES (?, ?, ?, ?)", *row)
        built._fleet.connect(NORTH, "0" * 32)
    ((seen,),) = centre.sql("SELECT last_seen_at FROM sites")
    assert from_iso(str(seen)) >= began


BROUGHT = 'name = "brought"\nrecipe = "mean"\nrounds = 1\n[config]\ndimension = 3\nsteps = 1\n'


@pytest.mark.parametrize("crash", [False, True])
async def test_first_weights_go_when_their_model_is_committed(
    config: AggregatorConfig, centre: Centre, monkeypatch: pytest.MonkeyPatch, crash: bool
) -> None:
    """Also after a crash between the two, at the next start; those of an experiment that is still to come stay."""
    weights.save(centre.folder / "drawn", {"mean.value": np.ones(3, dtype=np.float32)})
    given = setup.give_first(config, "brought", centre.folder / "drawn")
    setup.give_first(config, "to-come", centre.folder / "drawn")
    with monkeypatch.context() as patched:
        if crash:
            patched.setattr(ModelForge, "forget_first", lambda _: None)
        async with running(config, centre), operating(centre) as operator:
            await operator.submit(BROUGHT)
            async for sight in operator.watch("brought"):
                if sight.experiment.state == "running":
                    break
            (model,) = await operator.models("brought")
    assert given in {part.sha256 for part in model.parts}
    if crash:
        async with running(config, centre):
            pass
    assert [path.name for path in setup.first_weights(centre.state).iterdir()] == ["to-come.safetensors"]


@pytest.mark.parametrize("crash", [False, True])
async def test_first_weights_go_when_their_experiment_fails(
    config: AggregatorConfig, centre: Centre, monkeypatch: pytest.MonkeyPatch, crash: bool
) -> None:
    """Its name is never used again; no backup needs to hold them."""
    weights.save(centre.folder / "drawn", {"mean.value": np.ones(4, dtype=np.float32)})
    setup.give_first(config, "brought", centre.folder / "drawn")
    setup.give_first(config, "to-come", centre.folder / "drawn")
    with monkeypatch.context() as patched:
        if crash:
            patched.setattr(ModelForge, "forget_first", lambda _: None)
        async with running(config, centre), operating(centre) as operator:
            await operator.submit(BROUGHT)
            states = [sight.experiment.state async for sight in operator.watch("brought")]
    assert states[-1] == "failed"
    if crash:
        async with running(config, centre):
            pass
    assert [path.name for path in setup.first_weights(centre.state).iterdir()] == ["to-come.safetensors"]


@pytest.mark.parametrize("unseen", [False, True])
async def test_first_weights_go_when_their_experiment_is_cancelled(
    config: AggregatorConfig, centre: Centre, monkeypatch: pytest.MonkeyPatch, unseen: bool
) -> None:
    """Where their folder cannot be listed just then, with the next start."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(ModelForge, "first", never)
    weights.save(centre.folder / "drawn", {"mean.value": np.ones(3, dtype=np.float32)})
    setup.give_first(config, "brought", centre.folder / "drawn")
    async with running(config, centre), operating(centre) as operator:
        await operator.submit(BROUGHT)
        with monkeypatch.context() as machine:
            if unseen:
                hide(machine, setup.first_weights(centre.state))
            await operator.cancel("brought", "")
        left = list(setup.first_weights(centre.state).iterdir())
    assert bool(left) == unseen
    async with running(config, centre):
        assert list(setup.first_weights(centre.state).iterdir()) == []


async def test_its_own_certificate_is_renewed_while_it_serves(centre: Centre, config: AggregatorConfig) -> None:
    now = SystemClock().now()
    clock = FakeClock(now - timedelta(days=200))
    setup.next_certificate(config, setup.load_authority(config, clock)).save(setup.own_certificate(config))
    clock.jump(100 * 86400)

    def shown() -> x509.Certificate:
        host, _, port = config.listen.grpc.rpartition(":")
        return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port)), timeout=5).encode())

    loaded, drain = Loaded(config, {}), asyncio.Event()
    service = AggregatorService(loaded, lambda: loaded, clock)
    await service.start()
    try:
        first = await asyncio.to_thread(shown)
        assert first.not_valid_after_utc < now + timedelta(days=200), "it is not half over"
        clock.jump(100 * 86400)
        serving = asyncio.create_task(service.serve(drain))
        async with asyncio.timeout(30):
            while (found := await asyncio.to_thread(shown)).serial_number == first.serial_number:
                assert not serving.done()
        drain.set()
        await serving
    finally:
        await service.stop()
    assert found.not_valid_after_utc > now + timedelta(days=300)
    assert Credentials.load(setup.own_certificate(config)).certificate == found


@pytest.mark.parametrize("lost", ["gone", "empty", "without tables"])
async def test_a_database_that_was_lost_is_not_begun_anew(
    config: AggregatorConfig, centre: Centre, tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a new one every site would be a stranger, and every model file one that nobody wants."""
    async with running(config, centre):
        pass
    setup.write_operator(centre.folder / "bea", "bea", config, setup.load_authority(config, centre.clock), centre.clock)
    model = centre.state / "blobs" / ("a" * 64)
    model.write_bytes(b"of the database that is lost")
    database = centre.state / "state.db"
    database.unlink()
    if lost == "empty":
        database.touch()
    elif lost == "without tables":
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    (told,) = (each for each in doctor.checks(Loaded(config, {}), centre.clock) if each.name == "database")
    with pytest.raises(NotFound, match=r"and a daemon ran here: restore a backup$") as sentence:
        told.examine()
    again = AggregatorService(Loaded(config, {}), lambda: Loaded(config, {}), centre.clock)
    with pytest.raises(WentBack) as refused:
        await again.start()
    await again.stop()
    assert str(refused.value).startswith(str(sentence.value))
    with pytest.raises(WentBack, match="and a daemon ran here"):
        backup.back_up(config, tmp_path / "backup", centre.clock)
    with pytest.raises(WentBack, match="and a daemon ran here"):
        restore.in_place(config, centre.clock)
    assert model.exists()
    assert database.exists() == (lost != "gone")
    shutil.rmtree(centre.state / "journal")  # lost with it: the model's file is enough
    with pytest.raises(WentBack, match="and a daemon ran here"):
        setup.refuse_lost_database(centre.state)
    assert setup.has_run(centre.state)
    hide(monkeypatch, model.parent)
    with pytest.raises(CannotWriteState, match="Too many open files"):
        setup.refuse_lost_database(centre.state)


async def test_a_database_that_is_older_than_its_journal_is_not_gone_on_from(
    config: AggregatorConfig, centre: Centre, tmp_path: Path
) -> None:
    """No site could tell, for its last word of us is in the journal; and no row wants the files of newer models."""
    async with running(config, centre):
        pass
    older = tmp_path / "older.db"
    snapshot.copy_database(centre.state / "state.db", older)
    async with running(config, centre), operating(centre) as operator:
        await operator.submit(BROUGHT)
        async for sight in operator.watch("brought"):
            if sight.experiment.state == "running":
                break
    async with running(config, centre):
        models = centre.files()
    assert models
    for path in centre.state.glob("state.db*"):
        path.unlink()
    shutil.copy(older, centre.state / "state.db")
    again = AggregatorService(Loaded(config, {}), lambda: Loaded(config, {}), centre.clock)
    with pytest.raises(WentBack, match="older than the audit journal"):
        await again.start()
    await again.stop()
    assert centre.files() == models
    restore.in_place(config, centre.clock)
    async with running(config, centre):
        pass


async def serves(config: AggregatorConfig) -> bool:
    """What the kubelet's readiness probe hears."""
    async with grpc.aio.insecure_channel(config.listen.health) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=READINESS))
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_who_cannot_write_the_journal_is_still_reached_and_says_why(
    config: AggregatorConfig, centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that is not ready gets no calls, `histofed status` neither, and there is no other pod."""

    def refuse(_: Scheduler) -> None:
        raise CannotWriteState("cannot write: No space left on device")

    monkeypatch.setattr(Scheduler, "tick", refuse)
    drain = asyncio.Event()
    async with running(config, centre) as service, operating(centre) as operator:
        serving = asyncio.create_task(service.serve(drain))
        while not (found := await operator.status()).conditions:
            pass
        assert found.conditions == ("journal: cannot write: No space left on device",)
        await service._pulse.beat()
        assert await serves(config)
        drain.set()
        await serving
