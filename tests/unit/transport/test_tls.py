"""TLS 1.3, proven by trying 1.2."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import grpc.aio
import pytest
from cryptography import x509

from histofed.base.errors import AggregatorUnavailable, ConfigError
from histofed.pki.credentials import Credentials
from histofed.transport import tls
from histofed.transport.channel import open_connection
from histofed.v1 import rounds_pb2, rounds_pb2_grpc
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


async def test_a_renewed_certificate_is_shown_to_who_comes_and_cuts_nobody_off(tmp_path: Path) -> None:
    shown = [FEDERATION.aggregator()]
    site = FEDERATION.site()

    def serial_at(port: int) -> int:
        context = tls.client_context(site.ca_pem, site)
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"").serial_number

    credentials = tls.server_credentials(lambda: shown[-1])
    async with (
        serving(tmp_path, FEDERATION, credentials=credentials) as wire,
        open_connection(wire.address, site) as connection,
    ):
        fleet = rounds_pb2_grpc.FleetServiceStub(connection.channel)
        offers = fleet.WaitForWork(rounds_pb2.WaitForWorkRequest())
        wire.fleet.beat.put_nowait(True)
        assert (await offers.read()).HasField("beat")
        for _ in range(2):
            shown.append(FEDERATION.aggregator())
            assert await asyncio.to_thread(serial_at, wire.port) == int(shown[-1].serial, 16)
            wire.fleet.beat.put_nowait(True)
            assert (await offers.read()).HasField("beat"), "the stream of before goes on"
        await tls.prove_tls13_only("127.0.0.1", wire.port)
        wire.fleet.beat.put_nowait(False)
        assert await offers.read() == grpc.aio.EOF  # type: ignore[attr-defined]
