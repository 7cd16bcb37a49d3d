"""Attacks on identity: certificates that are wrong, expired, foreign, absent, or somebody else's."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from histofed.base.clock import FakeClock, SystemClock
from histofed.base.errors import AggregatorUnavailable, HistofedError, NotAuthorised, NotEnrolled
from histofed.pki.credentials import Credentials
from histofed.pki.keys import new_key
from histofed.transport import limits, tls
from histofed.transport.channel import Connection, open_connection
from histofed.transport.server import bind, enrolment_gate, make_server
from histofed.v1 import admin_pb2, admin_pb2_grpc, rounds_pb2, rounds_pb2_grpc
from tests.support.pki import Federation, fixed
from tests.support.wire import Fleet, Wire, serving

FEDERATION = Federation()
HELLO = rounds_pb2.HelloRequest(version="0.1.0")


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    async with serving(tmp_path, FEDERATION) as running:
        yield running


async def hello(connection: Connection) -> str:
    answer = await connection.call(rounds_pb2_grpc.FleetServiceStub(connection.channel).Hello, HELLO)
    return str(answer.identity)


async def refusal(wire: Wire, credentials: Credentials) -> HistofedError:
    async with open_connection(wire.address, credentials) as connection:
        with pytest.raises(HistofedError) as caught:
            await hello(connection)
    return caught.value


def posing(genuine: Credentials, thief: Credentials) -> Credentials:
    """The thief's key and certificate, with the genuine federation's CA to accept the server."""
    return Credentials(thief.key, thief.certificate, genuine.ca)


async def test_the_genuine_site_gets_in(wire: Wire) -> None:
    async with open_connection(wire.address, FEDERATION.site("north")) as connection:
        assert await hello(connection) == "spiffe://test.example/site/north"


async def test_a_certificate_of_another_ca_with_the_same_names(wire: Wire) -> None:
    error = await refusal(wire, posing(FEDERATION.site("north"), Federation().site("north")))
    assert type(error) is NotEnrolled
    assert "does not accept our certificate: it is of another federation" in str(error)


async def test_a_certificate_that_its_holder_signed(wire: Wire) -> None:
    genuine, key = FEDERATION.site("north"), new_key()
    forged = (
        x509.CertificateBuilder()
        .subject_name(genuine.certificate.subject)
        .issuer_name(genuine.ca.subject)
        .public_key(key.public_key())
        .serial_number(genuine.certificate.serial_number)
        .not_valid_before(genuine.not_before)
        .not_valid_after(genuine.not_after)
    )
    for extension in genuine.certificate.extensions:
        forged = forged.add_extension(extension.value, extension.critical)
    error = await refusal(wire, Credentials(key, forged.sign(key, hashes.SHA256()), genuine.ca))
    assert type(error) is NotEnrolled


async def test_a_certificate_that_a_site_signed_for_an_operator(wire: Wire) -> None:
    """A site has a certificate of the CA; it must not work as a CA itself."""
    site, key = FEDERATION.site("north"), new_key()
    now = SystemClock().now()
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(site.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://test.example/operator/eve")]),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(site.key, hashes.SHA256())
    )
    chain = forged.public_bytes(serialization.Encoding.PEM) + site.certificate_pem
    credentials = grpc.ssl_channel_credentials(site.ca_pem, Credentials(key, forged, site.ca).key_pem, chain)
    async with grpc.aio.secure_channel(wire.address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await admin_pb2_grpc.OperatorServiceStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_expired_certificate_and_a_clock_that_was_set_back(wire: Wire) -> None:
    past = FakeClock(SystemClock().now() - timedelta(days=30))
    expired = FEDERATION.at(past).site("north")
    async with open_connection(wire.address, expired, clock=past) as connection:
        with pytest.raises(NotEnrolled, match=r"does not accept our certificate.*expired by the aggregator's clock"):
            await hello(connection)
    error = await refusal(wire, expired)
    assert type(error) is NotEnrolled
    assert "enrol again with a new join line, or set the clock" in str(error)


async def test_no_certificate(wire: Wire) -> None:
    channel_credentials = tls.joining_credentials(FEDERATION.authority.certificate_pem)
    ca_pem = FEDERATION.authority.certificate_pem
    async with Connection(wire.address, channel_credentials, ca_pem, None, SystemClock()) as connection:
        with pytest.raises(NotEnrolled, match=r"wants a certificate"):
            await hello(connection)


async def test_plaintext(wire: Wire) -> None:
    async with grpc.aio.insecure_channel(wire.address, options=limits.channel_options()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rounds_pb2_grpc.FleetServiceStub(channel).Hello(HELLO, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_1_2_with_a_genuine_certificate(wire: Wire) -> None:
    site = FEDERATION.site("north")

    def handshake() -> None:
        context = tls.client_context(site.ca_pem, site)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", wire.port), 5) as plain,
            context.wrap_socket(plain, server_hostname="localhost"),
        ):
            pass

    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.to_thread(handshake)


async def test_a_site_calls_an_operators_method(wire: Wire) -> None:
    async with open_connection(wire.address, FEDERATION.site("north")) as connection:
        stub = admin_pb2_grpc.OperatorServiceStub(connection.channel)
        with pytest.raises(
            NotAuthorised, match=r"site/north may not call OperatorService/GetStatus.*operator's certificate"
        ):
            await connection.call(stub.GetStatus, admin_pb2.GetStatusRequest())


async def test_an_operator_poses_as_a_site(wire: Wire) -> None:
    error = await refusal(wire, FEDERATION.operator("north"))
    assert type(error) is NotAuthorised
    assert "operator/north may not call FleetService/Hello: it needs a site's certificate" in str(error)


async def test_the_aggregators_own_certificate_is_no_key_to_everything(wire: Wire) -> None:
    error = await refusal(wire, FEDERATION.aggregator())
    assert type(error) is NotAuthorised


async def test_a_site_serves_as_the_aggregator(tmp_path: Path) -> None:
    """A malicious site on the network has a certificate of the CA; agents must not take it for the aggregator."""
    shown = tls.server_credentials(fixed(FEDERATION.site("evil")))
    async with serving(tmp_path, FEDERATION, credentials=shown) as wire:
        error = await refusal(wire, FEDERATION.site("north"))
    assert type(error) is NotAuthorised
    assert "is not the aggregator of this federation" in str(error)


async def test_a_server_that_cuts_everybody_off_is_no_refusal() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(slam, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_connection(f"localhost:{port}", FEDERATION.site("north")) as connection:
            with pytest.raises(AggregatorUnavailable, match="closed the connection in the middle of the TLS handshake"):
                await hello(connection)


async def test_the_enrolment_port_is_no_way_around_certificates() -> None:
    server = make_server(enrolment_gate(clock=SystemClock()))
    rounds_pb2_grpc.add_FleetServiceServicer_to_server(Fleet(), server)
    port = bind(server, "127.0.0.1:0", tls.enrolment_credentials(fixed(FEDERATION.aggregator())))
    await server.start()
    async with open_connection(f"localhost:{port}", FEDERATION.site("north")) as connection:
        with pytest.raises(NotAuthorised, match="cannot be called on the enrolment port"):
            await hello(connection)
    await server.stop(None)
