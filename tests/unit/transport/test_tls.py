"""TLS 1.3, proven by trying 1.2."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from histofed.base.errors import AggregatorUnavailable, ConfigError
from histofed.pki.credentials import Credentials
from histofed.transport import tls
from tests.support.pki import Federation
from tests.support.wire import serving

FEDERATION = Federation()


async def test_our_server_refuses_tls_1_2(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire:
        await tls.prove_tls13_only("127.0.0.1", wire.port)


async def test_a_server_that_accepts_tls_1_2_does_not_go_on(tmp_path: Path) -> None:
    FEDERATION.aggregator().save(tmp_path / "identity.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "identity.pem")

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} accepts TLS 1.2.*import histofed before grpc"):
            await tls.prove_tls13_only("127.0.0.1", port)


async def test_the_proof_needs_a_server(unused_tcp_port: int) -> None:
    with pytest.raises(AggregatorUnavailable, match="nothing answers"):
        await tls.prove_tls13_only("127.0.0.1", unused_tcp_port)


async def test_the_standard_library_reaches_our_server_with_the_same_trust(tmp_path: Path) -> None:
    site: Credentials = FEDERATION.site()

    def first_byte(port: int) -> tuple[str | None, bytes]:
        context = tls.client_context(site.ca_pem, site)
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return secure.version(), secure.recv(1)

    async with serving(tmp_path, FEDERATION) as wire:
        version, greeting = await asyncio.to_thread(first_byte, wire.port)
    assert version == "TLSv1.3"
    assert greeting
