"""A port that somebody else holds: one sentence of ours, and no line of gRPC's beside it."""

from __future__ import annotations

import socket

import grpc.aio
import pytest

from histofed.base.errors import AlreadyThere
from histofed.transport.server import bind_plain


async def test_a_port_in_use_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(AlreadyThere, match=f"cannot listen on {address}: another process does; `ss -ltnp`"):
            bind_plain(grpc.aio.server(), address)
    assert capfd.readouterr().err == ""


async def test_a_port_that_is_free_is_bound() -> None:
    assert bind_plain(grpc.aio.server(), "127.0.0.1:0") > 0
    assert bind_plain(grpc.aio.server(), "localhost:0") > 0
