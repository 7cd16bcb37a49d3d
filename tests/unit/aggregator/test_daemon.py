"""The aggregator's parts together, inside one process: what holds for all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aggregator import setup
from aggregator.config import AggregatorConfig, Listen
from aggregator.daemon import AggregatorService
from aggregator.probes import READINESS
from aggregator.scheduler import Scheduler
from histofed.backup import snapshot
from histofed.base.config import Loaded
from histofed.base.errors import CannotWriteState
from histofed.cli.client import OperatorClient
from histofed.cli.config import load_operator
from tests.support.centre import Centre
from tests.support.federation import free_ports


@pytest.fixture
def config(centre: Centre) -> AggregatorConfig:
    """Of a federation that nobody runs yet."""
    grpc_port, enrolment, health, metrics = (f"127.0.0.1:{port}" for port in free_ports(4))
    listen = Listen(grpc=grpc_port, enrolment=enrolment, health=health, metrics=metrics)
    found = AggregatorConfig(federation="test", state_dir=centre.state, listen=listen)
    setup.create(found, centre.clock, "admin", centre.folder / "operator")
    return found


@pytest.fixture
async def service(config: AggregatorConfig, centre: Centre) -> AsyncIterator[AggregatorService]:
    loaded = Loaded(config, {})
    built = AggregatorService(loaded, lambda: loaded, centre.clock)
    await built.start()
    yield built
    await built.stop()


async def test_what_a_killed_backup_left_goes_at_the_next_start(config: AggregatorConfig, centre: Centre) -> None:
    left = centre.state / snapshot.ROOM
    left.mkdir()
    (left / "state.db").touch()
    built = AggregatorService(Loaded(config, {}), lambda: Loaded(config, {}), centre.clock)
    await built.start()
    await built.stop()
    assert not left.exists()


async def serves(config: AggregatorConfig) -> bool:
    """What the kubelet's readiness probe hears."""
    async with grpc.aio.insecure_channel(config.listen.health) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=READINESS))
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_who_cannot_write_the_journal_is_still_reached_and_says_why(
    service: AggregatorService, config: AggregatorConfig, centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that is not ready gets no calls, `histofed status` neither, and there is no other pod."""

    def refuse(_: Scheduler) -> None:
        raise CannotWriteState("cannot write: No space left on device")

    monkeypatch.setattr(Scheduler, "tick", refuse)
    drain = asyncio.Event()
    serving = asyncio.create_task(service.serve(drain))
    async with OperatorClient.connect(load_operator(centre.folder / "operator" / "operator.toml")) as operator:
        while not (found := await operator.status()).conditions:
            pass
    assert found.conditions == ("journal: cannot write: No space left on device",)
    await service._pulse.beat()
    assert await serves(config)
    drain.set()
    await serving
