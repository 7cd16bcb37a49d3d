"""Why a call did not come about, told so that somebody can do something about it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from histofed.base.clock import FakeClock, SystemClock
from histofed.base.errors import (
    AggregatorUnavailable,
    DeadlineExceeded,
    HistofedError,
    NotAuthorised,
    NotEnrolled,
    TooLarge,
    VersionMismatch,
)
from histofed.pki.credentials import Credentials
from histofed.transport import tls
from histofed.transport.channel import Connection, open_connection, open_joining_connection
from histofed.transport.diagnose import split
from histofed.v1 import enrollment_pb2, enrollment_pb2_grpc, rounds_pb2, rounds_pb2_grpc
from tests.support.pki import Federation, fixed
from tests.support.wire import CuttingProxy, serving

FEDERATION = Federation()
SITE = FEDERATION.site()
HELLO = rounds_pb2.HelloRequest(version="0.1.0")


async def greet(connection: Connection, timeout_s: float = 20) -> object:
    return await connection.call(rounds_pb2_grpc.FleetServiceStub(connection.channel).Hello, HELLO, timeout_s=timeout_s)


async def failure(address: str, credentials: Credentials = SITE) -> HistofedError:
    async with open_connection(address, credentials) as connection:
        with pytest.raises(HistofedError) as caught:
            await greet(connection)
    return caught.value


async def test_nobody_listens(unused_tcp_port: int) -> None:
    error = await failure(f"localhost:{unused_tcp_port}")
    assert type(error) is AggregatorUnavailable
    assert str(error) == (f"nobody listens at localhost:{unused_tcp_port}: the aggregator may be down, or the port is wrong")


async def test_a_call_after_a_long_absence_finds_the_aggregator_at_once(tmp_path: Path, unused_tcp_port: int) -> None:
    """gRPC's own pauses between connections grow too; a call within one fails with what went wrong before. Eight seconds."""
    async with open_connection(f"localhost:{unused_tcp_port}", SITE) as connection:
        for _ in range(4):
            with pytest.raises(AggregatorUnavailable):
                await greet(connection)
            await asyncio.sleep(1.5)
        async with serving(tmp_path, FEDERATION, port=unused_tcp_port):
            await asyncio.sleep(1.3)
            await greet(connection)


async def test_a_name_that_does_not_exist() -> None:
    error = await failure("aggregator.invalid:8443")
    assert type(error) is AggregatorUnavailable
    assert "the name aggregator.invalid of the aggregator cannot be resolved" in str(error)


async def test_our_own_certificate_is_over(tmp_path: Path) -> None:
    federation = Federation(clock=FakeClock(SystemClock().now() - timedelta(days=30)))
    async with serving(tmp_path, FEDERATION) as wire:
        error = await failure(wire.address, federation.site())
    assert type(error) is NotEnrolled
    assert "the certificate of spiffe://test.example/site/north-clinic is valid from" in str(error)
    assert "enrol again with a new join line, or set the clock" in str(error)


async def test_an_operator_cannot_enrol_and_reads_what_the_aggregator_s_host_has_to_run(tmp_path: Path) -> None:
    past = FakeClock(SystemClock().now() - timedelta(days=100))
    expired = FEDERATION.at(past).operator("ada")
    remedy = "have `histofed-aggregator operator ada --out DIR` run on the aggregator's host"
    async with serving(tmp_path, FEDERATION) as wire:
        error = await failure(wire.address, expired)
        async with open_connection(wire.address, expired, clock=past) as connection:
            with pytest.raises(NotEnrolled, match=r"does not accept our certificate.*") as refused:
                await greet(connection)
    assert type(error) is NotEnrolled
    for sentence in (str(error), str(refused.value)):
        assert remedy in sentence
        assert "enrol" not in sentence


async def test_the_server_s_certificate_begins_after_this_machine_s_time(tmp_path: Path) -> None:
    federation = Federation(clock=FakeClock(SystemClock().now() + timedelta(days=30)))
    old = Credentials(SITE.key, SITE.certificate, federation.authority.certificate)
    async with serving(tmp_path, federation) as wire:
        error = await failure(wire.address, old)
    assert "is not valid at this machine's time" in str(error)
    assert "set the clock" in str(error)


async def test_the_server_s_certificate_has_ended(tmp_path: Path) -> None:
    federation = FEDERATION.at(FakeClock(SystemClock().now() - timedelta(days=400)))
    async with serving(tmp_path, FEDERATION, credentials=tls.server_credentials(fixed(federation.aggregator()))) as wire:
        for member in (SITE, FEDERATION.operator()):
            error = await failure(wire.address, member)
            assert type(error) is NotAuthorised
            assert "set the clock (timedatectl); if it is right, the aggregator's own certificate has ended" in str(error)
            assert "have it restarted, which renews it" in str(error)


async def test_a_clock_that_fell_back_by_hours_does_not_shut_a_site_out(tmp_path: Path) -> None:
    federation = Federation(clock=FakeClock(SystemClock().now() + timedelta(hours=20)))
    async with serving(tmp_path, federation) as wire, open_connection(wire.address, federation.site()) as connection:
        await greet(connection)


async def test_the_server_is_of_another_federation(tmp_path: Path) -> None:
    async with serving(tmp_path, Federation()) as wire:
        error = await failure(wire.address)
    assert type(error) is NotAuthorised
    assert "is not the aggregator of this federation" in str(error)
    assert wire.address in str(error)


async def test_the_server_has_another_name(tmp_path: Path) -> None:
    shown = tls.server_credentials(fixed(FEDERATION.aggregator(hosts=("elsewhere.example.org",))))
    async with serving(tmp_path, FEDERATION, credentials=shown) as wire:
        error = await failure(wire.address)
        by_number = await failure(f"127.0.0.1:{wire.port}")
    assert type(error) is NotAuthorised is type(by_number)
    assert "for another name than localhost" in str(error)
    assert "for another name than 127.0.0.1" in str(by_number)
    assert "added to public_hosts in aggregator.toml and the aggregator restarted" in str(error)


async def test_the_server_does_not_know_our_ca(tmp_path: Path) -> None:
    """Same aggregator certificate, another CA for clients: as after a federation was set up anew under an old name."""
    stranger = Federation().site()
    mixed = Credentials(stranger.key, stranger.certificate, FEDERATION.authority.certificate)
    async with serving(tmp_path, FEDERATION) as wire:
        error = await failure(wire.address, mixed)
    assert type(error) is NotEnrolled
    assert f"the aggregator at {wire.address} does not accept our certificate" in str(error)


async def test_the_port_speaks_no_tls() -> None:
    async def greet_in_clear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(greet_in_clear, "127.0.0.1", 0) as server:
        error = await failure(f"localhost:{server.sockets[0].getsockname()[1]}")
    assert type(error) is AggregatorUnavailable
    assert "does not speak TLS 1.3" in str(error)


async def test_a_connection_that_was_cut_but_works_again(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, FEDERATION) as wire,
        CuttingProxy(wire.port, [3000]) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        stub = rounds_pb2_grpc.FleetServiceStub(connection.channel)
        work = connection.stream(stub.WaitForWork, rounds_pb2.WaitForWorkRequest(instance="x" * 4000))
        with pytest.raises(AggregatorUnavailable, match="was lost and the aggregator answers again now"):
            await anext(work)


async def test_a_server_that_is_silent(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, FEDERATION) as wire,
        CuttingProxy(wire.port, [0], freeze=True) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        with pytest.raises(DeadlineExceeded, match=f"localhost:{proxy.port} did not answer in the time allowed"):
            await greet(connection, timeout_s=0.3)


async def test_a_call_the_aggregator_does_not_know(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(connection.channel)
        with pytest.raises(VersionMismatch, match=r"check the port, .* upgrade the aggregator first"):
            await connection.call(stub.Renew, enrollment_pb2.RenewRequest())


async def test_a_join_line_with_the_port_of_members(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, FEDERATION) as wire,
        open_joining_connection(wire.address, FEDERATION.authority.certificate_pem) as connection,
    ):
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(connection.channel)
        with pytest.raises(NotEnrolled, match=r"wants a certificate, .*: check the port"):
            await connection.call(stub.Enroll, enrollment_pb2.EnrollRequest())


async def test_a_message_that_is_too_large(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        huge = rounds_pb2.HelloRequest(version="x" * (5 << 20))
        with pytest.raises(TooLarge, match="4194304 bytes, which is all the wire takes"):
            await connection.call(rounds_pb2_grpc.FleetServiceStub(connection.channel).Hello, huge)


async def test_leaving_a_stream_ends_it(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        stub = rounds_pb2_grpc.FleetServiceStub(connection.channel)
        work = connection.stream(stub.WaitForWork, rounds_pb2.WaitForWorkRequest())
        wire.fleet.beat.put_nowait(True)
        await anext(work)
        await work.aclose()


async def test_a_stream_that_ends_by_itself(tmp_path: Path) -> None:
    async with serving(tmp_path, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        stub = rounds_pb2_grpc.FleetServiceStub(connection.channel)
        for more in (True, True, False):
            wire.fleet.beat.put_nowait(more)
        assert len([each async for each in connection.stream(stub.WaitForWork, rounds_pb2.WaitForWorkRequest())]) == 2


@pytest.mark.parametrize(
    ("address", "pair"), [("agg:8443", ("agg", 8443)), ("[::1]:1", ("::1", 1)), ("10.0.0.1:2", ("10.0.0.1", 2))]
)
def test_split(address: str, pair: tuple[str, int]) -> None:
    assert split(address) == pair
