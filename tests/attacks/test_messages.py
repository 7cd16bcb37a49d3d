"""Attacks with messages: compressed, huge, endless, without a deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from histofed.pki.credentials import Credentials
from histofed.transport import tls
from histofed.v1 import rounds_pb2, rounds_pb2_grpc
from tests.support.pki import Federation
from tests.support.wire import Wire, serving

FEDERATION = Federation()
SITE: Credentials = FEDERATION.site("north")


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    async with serving(tmp_path, FEDERATION) as running:
        yield running


async def refused(wire: Wire, request: rounds_pb2.HelloRequest, **options: object) -> tuple[grpc.StatusCode, str]:
    """What a client without any of our limits is told."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.secure_channel(wire.address, tls.channel_credentials(SITE), options=unlimited) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rounds_pb2_grpc.FleetServiceStub(channel).Hello(request, **options)
        return caught.value.code(), caught.value.details() or ""


async def test_a_gzip_bomb_is_not_unpacked(wire: Wire) -> None:
    bomb = rounds_pb2.HelloRequest(version="0" * (64 << 20))
    code, details = await refused(wire, bomb, timeout=20, compression=grpc.Compression.Gzip)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert details == "Compression algorithm 'gzip' is disabled."


async def test_a_small_compressed_message_is_refused_too(wire: Wire) -> None:
    small = rounds_pb2.HelloRequest(version="0" * 4096)
    for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        code, _ = await refused(wire, small, timeout=20, compression=algorithm)
        assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_above_the_limit_is_not_read(wire: Wire) -> None:
    code, details = await refused(wire, rounds_pb2.HelloRequest(version="0" * (4 << 20)), timeout=20)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details


async def test_a_call_without_a_deadline_is_refused(wire: Wire) -> None:
    code, details = await refused(wire, rounds_pb2.HelloRequest(version="0.1.0"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "has no deadline" in details


async def test_metadata_without_end_is_refused(wire: Wire) -> None:
    stuffed = tuple((f"x-{number}", "y" * 1000) for number in range(64))
    code, details = await refused(wire, rounds_pb2.HelloRequest(version="0.1.0"), timeout=20, metadata=stuffed)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "metadata size exceeds" in details


async def test_identity_in_metadata_is_nobodys(wire: Wire) -> None:
    claims = (
        ("x-site", "south"),
        ("authorization", "Bearer operator"),
        ("peer-spiffe-id", "spiffe://test.example/operator/ada"),
    )
    async with grpc.aio.secure_channel(wire.address, tls.channel_credentials(SITE)) as channel:
        stub = rounds_pb2_grpc.FleetServiceStub(channel)
        answer = await stub.Hello(rounds_pb2.HelloRequest(version="0.1.0"), timeout=20, metadata=claims)
    assert answer.identity == "spiffe://test.example/site/north"


async def test_a_method_that_does_not_exist(wire: Wire) -> None:
    async with grpc.aio.secure_channel(wire.address, tls.channel_credentials(SITE)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/histofed.v1.OperatorService/DeleteEverything", None, None)(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
