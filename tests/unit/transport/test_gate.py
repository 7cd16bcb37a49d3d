"""What the gate lets through, in which order it refuses, and how errors come out of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from histofed.base.clock import FakeClock, SystemClock
from histofed.base.errors import (
    BadData,
    CannotWriteState,
    HistofedError,
    NotAuthorised,
    NotEnrolled,
    TryLater,
    all_errors,
)
from histofed.transport import limits
from histofed.transport.channel import Connection, open_connection
from histofed.transport.gate import caller
from histofed.transport.rate import Rate
from histofed.v1 import admin_pb2, admin_pb2_grpc, rounds_pb2, rounds_pb2_grpc, transfer_pb2, transfer_pb2_grpc
from tests.support.pki import Federation
from tests.support.wire import serving

FEDERATION = Federation()
SITE = FEDERATION.site()
HELLO = rounds_pb2.HelloRequest(version="0.1.0")
PLENTY = Rate(per_second=1e6, burst=1e6)
"""Calls may be tried again without a pause."""


async def test_the_handler_learns_who_calls_from_the_certificate(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        answer = await connection.call(rounds_pb2_grpc.FleetServiceStub(connection.channel).Hello, HELLO)
    assert answer.identity == "spiffe://test.example/site/north-clinic"


async def test_an_operator_is_let_in_too(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, FEDERATION.operator()) as connection:
        stub = admin_pb2_grpc.OperatorServiceStub(connection.channel)
        assert (await connection.call(stub.GetStatus, admin_pb2.GetStatusRequest())).version == "0.1.0"


@pytest.mark.parametrize("cls", [cls for cls in all_errors() if not issubclass(cls, CannotWriteState)])
async def test_every_error_arrives_as_itself(tmp_path: Path, cls: type[HistofedError]) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        wire.fleet.fail = cls("what happened … and what to do")
        with pytest.raises(HistofedError, match="what happened … and what to do") as caught:
            await connection.call(rounds_pb2_grpc.FleetServiceStub(connection.channel).Hello, HELLO)
    assert type(caught.value) is cls


async def test_a_full_disk_arrives_without_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full = CannotWriteState("cannot write /var/lib/histofed/journal")
    full.__cause__ = OSError(errno.ENOSPC, "full")
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        wire.fleet.fail = full
        with pytest.raises(CannotWriteState, match="No space left on device; nothing was acknowledged") as caught:
            await connection.call(rounds_pb2_grpc.FleetServiceStub(connection.channel).Hello, HELLO)
    assert "/var" not in str(caught.value)
    assert "/var/lib/histofed/journal" in caplog.text


async def test_an_unexpected_error_stays_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        wire.fleet.fail = KeyError("secret of the house")
        with pytest.raises(HistofedError, match=r"internal error, see the aggregator's log \(id [0-9a-f]{8}\)") as caught:
            await connection.call(rounds_pb2_grpc.FleetServiceStub(connection.channel).Hello, HELLO)
    assert "secret" not in str(caught.value)
    number = str(caught.value).split("id ")[1][:8]
    # gRPC's poller may tell of an earlier test's loop at any time
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR and each.name.startswith("histofed")]
    assert number in record.getMessage()
    assert record.exc_info is not None


async def test_a_unary_call_needs_a_deadline(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rounds_pb2_grpc.FleetServiceStub(connection.channel).Hello(HELLO)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the call of FleetService/Hello has no deadline: every unary call needs one"


async def test_calls_are_counted_per_member(tmp_path: Path) -> None:
    clock = FakeClock(SystemClock().now())
    async with (
        serving(tmp_path, FEDERATION, clock=clock, limit=Rate(per_second=1, burst=2)) as wire,
        open_connection(wire.address, SITE) as north,
        open_connection(wire.address, FEDERATION.site("south")) as south,
    ):
        for _ in range(2):
            await north.call(rounds_pb2_grpc.FleetServiceStub(north.channel).Hello, HELLO)
        with pytest.raises(TryLater, match="too many calls"):
            await north.call(rounds_pb2_grpc.FleetServiceStub(north.channel).Hello, HELLO)
        await south.call(rounds_pb2_grpc.FleetServiceStub(south.channel).Hello, HELLO)


async def hello_at_last(connection: Connection) -> None:
    """As soon as the server has noticed that a call was left."""
    stub = rounds_pb2_grpc.FleetServiceStub(connection.channel)
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(TryLater):
                await connection.call(stub.Hello, HELLO)
                return


async def test_a_member_that_lets_its_calls_hang_leaves_the_others_theirs(tmp_path: Path) -> None:
    """Downloads of which nobody reads more than the beginning, over two connections."""
    (tmp_path / "model").write_bytes(bytes(32 << 20))
    async with (
        serving(tmp_path / "blobs", FEDERATION, limit=PLENTY, open_calls=2) as wire,
        open_connection(wire.address, SITE) as one,
        open_connection(wire.address, SITE) as two,
        open_connection(wire.address, FEDERATION.site("south")) as south,
    ):
        sha256 = wire.store.import_file(tmp_path / "model")
        wire.permissions.released.add(sha256)
        downloads = []
        for connection in (one, two):
            stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
            downloads.append(stub.Download(transfer_pb2.DownloadRequest(sha256=sha256)))
            await downloads[-1].read()
        with pytest.raises(TryLater, match="site/north-clinic has 2 calls open, as many as are allowed: end some of them"):
            await two.call(rounds_pb2_grpc.FleetServiceStub(two.channel).Hello, HELLO)
        await south.call(rounds_pb2_grpc.FleetServiceStub(south.channel).Hello, HELLO)
        downloads.pop().cancel()
        await hello_at_last(one)


def slowly(connection: Connection, method: str = "FleetService/Hello") -> Any:
    """The method, called with its request as a stream: on the wire that is the same, and it may be late."""
    return connection.channel.stream_unary(f"/histofed.v1.{method}", None, None)


async def never() -> AsyncIterator[bytes]:
    """A request that does not come."""
    await asyncio.Event().wait()
    yield b""


@pytest.mark.parametrize("method", ["FleetService/Hello", "FleetService/WaitForWork", "BlobService/Download"])
async def test_calls_whose_request_does_not_come_count_too(tmp_path: Path, method: str) -> None:
    async with (
        serving(tmp_path, FEDERATION, open_calls=2) as wire,
        open_connection(wire.address, SITE) as north,
        open_connection(wire.address, FEDERATION.site("south")) as south,
    ):
        opened = [slowly(north, method)(never(), timeout=60) for _ in range(3)]
        async with asyncio.timeout(30):
            (refused,), _ = await asyncio.wait(
                [asyncio.ensure_future(call.details()) for call in opened], return_when=asyncio.FIRST_COMPLETED
            )
        assert refused.result().startswith("spiffe://test.example/site/north-clinic has 2 calls open")
        await south.call(rounds_pb2_grpc.FleetServiceStub(south.channel).Hello, HELLO)


async def test_a_call_whose_request_does_not_come_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_S", 0.01)
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(TryLater, match=r"request did not come for 0\.01 seconds; call again"):
            await connection.call(slowly(connection), never())


async def test_a_call_without_its_request_is_refused(tmp_path: Path) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield

    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(BadData, match="ended without its request"):
            await connection.call(slowly(connection), nothing())


async def test_a_revoked_certificate_is_refused_at_the_next_call(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        hello = rounds_pb2_grpc.FleetServiceStub(connection.channel).Hello
        await connection.call(hello, HELLO)
        wire.denied.add(SITE.serial)
        with pytest.raises(NotAuthorised, match=r"was revoked.* ask the operator who did; enrol again with a new join line"):
            await connection.call(hello, HELLO)


async def test_a_request_that_comes_after_its_callers_certificate_was_revoked_is_refused(tmp_path: Path) -> None:
    """Or a renewal that a thief keeps open would outlive the revocation."""
    revoked = asyncio.Event()

    async def late() -> AsyncIterator[bytes]:
        await revoked.wait()
        yield HELLO.SerializeToString()

    async with (
        serving(tmp_path, FEDERATION, open_calls=1) as wire,
        open_connection(wire.address, SITE) as connection,
    ):
        opened = [asyncio.ensure_future(slowly(connection)(late(), timeout=30).details()) for _ in range(2)]
        (refused,), (admitted,) = await asyncio.wait(opened, return_when=asyncio.FIRST_COMPLETED)
        assert "has 1 calls open" in refused.result()
        wire.denied.add(SITE.serial)
        revoked.set()
        assert "was revoked" in await admitted


async def test_a_revoked_certificate_ends_an_open_stream(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        stub = rounds_pb2_grpc.FleetServiceStub(connection.channel)
        work = connection.stream(stub.WaitForWork, rounds_pb2.WaitForWorkRequest())
        wire.fleet.beat.put_nowait(True)
        assert (await anext(work)).HasField("beat")
        wire.denied.add(SITE.serial)
        wire.fleet.beat.put_nowait(True)
        with pytest.raises(NotAuthorised, match="revoked"):
            await anext(work)


async def test_a_certificate_that_expires_ends_an_open_stream(tmp_path: Path) -> None:
    clock = FakeClock(SystemClock().now())
    async with serving(tmp_path, FEDERATION, clock=clock) as wire, open_connection(wire.address, SITE) as connection:
        stub = rounds_pb2_grpc.FleetServiceStub(connection.channel)
        work = connection.stream(stub.WaitForWork, rounds_pb2.WaitForWorkRequest())
        wire.fleet.beat.put_nowait(True)
        await anext(work)
        clock.advance(8 * 86400)
        wire.fleet.beat.put_nowait(True)
        with pytest.raises(NotEnrolled, match="has expired"):
            await anext(work)


async def test_a_handler_behind_no_tls_knows_nobody() -> None:
    class Plain:
        def auth_context(self) -> dict[str, list[bytes]]:
            return {}

    with pytest.raises(NotEnrolled, match="shows no certificate"):
        caller(Plain())
