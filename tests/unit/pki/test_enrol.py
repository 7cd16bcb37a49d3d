"""The CA is taken from whoever answers, and kept only if the join line names it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from histofed.base.errors import AggregatorUnavailable, NotAuthorised
from histofed.base.ids import sha256
from histofed.pki.credentials import Credentials
from histofed.pki.enrol import fetch_ca
from histofed.pki.keys import der_of
from histofed.transport import tls
from histofed.transport.server import bind, enrolment_gate, make_server
from tests.support.pki import Federation, fixed

FEDERATION = Federation()


@contextlib.asynccontextmanager
async def enrolment_port(shown: Credentials) -> AsyncIterator[int]:
    server = make_server(enrolment_gate(clock=FEDERATION.clock))
    port = bind(server, "127.0.0.1:0", tls.enrolment_credentials(fixed(shown)))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_keeps_the_ca_that_the_line_names() -> None:
    async with enrolment_port(FEDERATION.aggregator()) as port:
        found = await asyncio.to_thread(fetch_ca, "127.0.0.1", port, FEDERATION.authority.sha256, 5.0)
    assert found == FEDERATION.authority.certificate_pem


async def test_refuses_every_other_ca() -> None:
    words = r"not of the federation in the join line.*ask the operator for a new line"
    async with enrolment_port(FEDERATION.aggregator()) as port:
        with pytest.raises(NotAuthorised, match=words):
            await asyncio.to_thread(fetch_ca, "127.0.0.1", port, Federation().authority.sha256, 5.0)


async def test_refuses_a_line_that_names_the_servers_own_certificate() -> None:
    aggregator = FEDERATION.aggregator()
    async with enrolment_port(aggregator) as port:
        with pytest.raises(NotAuthorised, match="not the CA of a federation"):
            await asyncio.to_thread(fetch_ca, "127.0.0.1", port, sha256(der_of(aggregator.certificate)), 5.0)


def test_says_so_when_nobody_listens(unused_tcp_port: int) -> None:
    with pytest.raises(AggregatorUnavailable, match=r"no TLS server answers at 127\.0\.0\.1"):
        fetch_ca("127.0.0.1", unused_tcp_port, FEDERATION.authority.sha256, 5.0)


async def test_says_so_when_the_server_speaks_no_tls() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(AggregatorUnavailable, match="no TLS server answers"):
            await asyncio.to_thread(fetch_ca, "127.0.0.1", port, FEDERATION.authority.sha256, 5.0)
