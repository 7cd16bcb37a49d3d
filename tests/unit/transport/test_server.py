"""A port that somebody else holds is one sentence of ours; and more calls than a server works on at once are refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import grpc.aio
import pytest

from histofed.base.errors import AlreadyThere, TryLater
from histofed.transport import limits
from histofed.transport.channel import open_connection
from histofed.transport.server import bind_plain
from histofed.v1 import rounds_pb2, rounds_pb2_grpc, transfer_pb2, transfer_pb2_grpc
from tests.support.pki import Federation
from tests.support.wire import serving

HELLO = rounds_pb2.HelloRequest(version="0.1.0")


async def test_a_port_in_use_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(AlreadyThere, match=f"cannot listen on {address}: another process does; `ss -ltnp`"):
            bind_plain(grpc.aio.server(), address)
    assert capfd.readouterr().err == ""


async def test_a_port_that_is_free_is_bound() -> None:
    assert bind_plain(grpc.aio.server(), "127.0.0.1:0") > 0
    assert bind_plain(grpc.aio.server(), "localhost:0") > 0


async def test_more_calls_than_a_server_works_on_are_refused_in_words_until_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several sites, none of which has too many of its own; nobody waits in silence."""
    monkeypatch.setattr(limits, "CONCURRENT_RPCS", 2)
    (tmp_path / "model").write_bytes(bytes(32 << 20))
    federation = Federation()
    north, east, south = (federation.site(name) for name in ("north", "east", "south"))
    async with (
        serving(tmp_path / "blobs", federation) as wire,
        open_connection(wire.address, north) as one,
        open_connection(wire.address, east) as two,
        open_connection(wire.address, south) as three,
        asyncio.timeout(60),
    ):
        sha256 = wire.store.import_file(tmp_path / "model")
        wire.permissions.released.add(sha256)
        downloads = []
        for connection in (one, two):
            stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
            downloads.append(stub.Download(transfer_pb2.DownloadRequest(sha256=sha256)))
            await downloads[-1].read()  # and no more, so that the call goes on
        hello = rounds_pb2_grpc.FleetServiceStub(three.channel).Hello
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await hello(HELLO, timeout=30)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(TryLater, match="has too many calls to work on: try again in a moment"):
            await three.call(hello, HELLO)
        downloads.pop().cancel()
        while True:  # as soon as the server has noticed that
            with contextlib.suppress(TryLater):
                await three.call(hello, HELLO)
                break
