"""What probes hear, and that nobody keeps it from them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aggregator import probes
from aggregator.probes import LIVENESS, READINESS, Probes
from histofed.base.clock import FakeClock
from histofed.base.health import Health
from tests.support.federation import free_ports

FEW = 16
"""Calls at once, of which there are no more here."""


@pytest.fixture
async def address(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(probes, "CALLS", FEW)
    (port,) = free_ports(1)
    opened = Probes(Health(FakeClock(), required=()))
    await opened.open(f"127.0.0.1:{port}")
    yield f"127.0.0.1:{port}"
    await opened.close()


async def check(address: str, service: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("service", ["", "startup", LIVENESS, READINESS])
async def test_every_probe_of_the_manifests_is_answered(address: str, service: str) -> None:
    assert await check(address, service)


async def test_what_is_no_probe_is_not_found(address: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(address, "another")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_those_who_would_watch_leave_the_probes_their_places(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = [stub.Watch(health_pb2.HealthCheckRequest(service=LIVENESS), timeout=10) for _ in range(FEW)]
        for call in watching:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()  # it is there
        assert await check(address, LIVENESS)
        assert [await call.code() for call in watching] == [grpc.StatusCode.UNIMPLEMENTED] * FEW


async def test_those_who_call_and_ask_nothing_leave_them_too(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "ASK_S", 0.05)
    async with grpc.aio.insecure_channel(address) as channel:
        mute = channel.stream_unary("/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes)
        calls = [mute(None, timeout=10) for _ in range(FEW)]
        assert [await call.code() for call in calls] == [grpc.StatusCode.ABORTED] * FEW
        assert await check(address, LIVENESS)
