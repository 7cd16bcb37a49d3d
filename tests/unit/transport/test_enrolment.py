"""A site joins and renews, against real servers with both ports."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from histofed.base.errors import NotAuthorised
from histofed.base.ids import sha256
from histofed.pki import tokens
from histofed.pki.authority import Authority
from histofed.pki.keys import der_of
from histofed.pki.tokens import JoinLine
from histofed.transport import tls
from histofed.transport.channel import open_connection
from histofed.transport.enrolment import enrol, renew
from histofed.transport.server import bind, caller, enrolment_gate, fleet_gate, make_server
from histofed.v1 import enrollment_pb2, enrollment_pb2_grpc
from tests.support.pki import Federation, fixed


@dataclass
class Enrollment(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """Issues to whoever has the token; may answer with things of another federation."""

    authority: Authority
    answer_ca: bytes
    token: str = field(default_factory=tokens.make)

    async def Enroll(self, request: enrollment_pb2.EnrollRequest, context: Any) -> enrollment_pb2.EnrollResponse:
        if request.token != self.token:
            raise NotAuthorised("the token is not known, was used or has expired: ask the operator for a new join line")
        issued = self.authority.issue(self.authority.site("north"), request.csr_pem)
        return enrollment_pb2.EnrollResponse(
            certificate_pem=issued.certificate_pem,
            ca_pem=self.answer_ca,
            identity=str(issued.identity),
            aggregator="aggregator.example.org:8443",
        )

    async def Renew(self, request: enrollment_pb2.RenewRequest, context: Any) -> enrollment_pb2.RenewResponse:
        who = caller(context).identity if self.answer_ca == self.authority.certificate_pem else self.authority.site("other")
        issued = self.authority.issue(who, request.csr_pem)
        return enrollment_pb2.RenewResponse(certificate_pem=issued.certificate_pem, ca_pem=self.authority.certificate_pem)


@contextlib.asynccontextmanager
async def ports(federation: Federation, servicer: Enrollment) -> AsyncIterator[tuple[int, int]]:
    """The mTLS port and the enrolment port."""
    members = make_server(fleet_gate(federation.name, denied=lambda serial: False, clock=federation.clock))
    strangers = make_server(enrolment_gate(clock=federation.clock))
    for server in (members, strangers):
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(servicer, server)
    credentials = federation.aggregator()
    found = (
        bind(members, "127.0.0.1:0", tls.server_credentials(fixed(credentials))),
        bind(strangers, "127.0.0.1:0", tls.enrolment_credentials(fixed(credentials))),
    )
    for server in (members, strangers):
        await server.start()
    try:
        yield found
    finally:
        for server in (members, strangers):
            await server.stop(None)


async def test_a_join_line_becomes_an_identity_and_then_a_newer_one() -> None:
    federation = Federation()
    servicer = Enrollment(federation.authority, federation.authority.certificate_pem)
    async with ports(federation, servicer) as (members, strangers):
        answer = await enrol(JoinLine("localhost", strangers, servicer.token, federation.authority.sha256))
        joined = answer.credentials
        assert answer.aggregator == "aggregator.example.org:8443"
        assert joined.identity == federation.authority.site("north")
        async with open_connection(f"localhost:{members}", joined) as connection:
            renewed = await renew(connection, joined)
    assert renewed.identity == joined.identity
    assert renewed.serial != joined.serial
    assert renewed.key_pem != joined.key_pem


async def test_a_wrong_token_is_refused_in_words() -> None:
    federation = Federation()
    servicer = Enrollment(federation.authority, federation.authority.certificate_pem)
    async with ports(federation, servicer) as (_, strangers):
        with pytest.raises(NotAuthorised, match="ask the operator for a new join line"):
            await enrol(JoinLine("localhost", strangers, tokens.make(), federation.authority.sha256))


async def test_the_token_is_not_sent_to_another_federation() -> None:
    federation = Federation()
    servicer = Enrollment(federation.authority, federation.authority.certificate_pem)
    async with ports(federation, servicer) as (_, strangers):
        with pytest.raises(NotAuthorised, match="not of the federation in the join line"):
            await enrol(JoinLine("localhost", strangers, servicer.token, Federation().authority.sha256))


async def test_an_answer_with_another_ca_is_refused() -> None:
    federation, other = Federation(), Federation()
    servicer = Enrollment(federation.authority, other.authority.certificate_pem)
    async with ports(federation, servicer) as (members, strangers):
        with pytest.raises(NotAuthorised, match="another CA than the join line names"):
            await enrol(JoinLine("localhost", strangers, servicer.token, federation.authority.sha256))
        site = federation.site("north")
        async with open_connection(f"localhost:{members}", site) as connection:
            with pytest.raises(NotAuthorised, match=r"renewed .*/site/north as .*/site/other"):
                await renew(connection, site)


async def test_a_server_with_the_right_ca_but_the_wrong_name_gets_no_token() -> None:
    federation = Federation()
    assert sha256(der_of(federation.authority.certificate)) == federation.authority.sha256
    servicer = Enrollment(federation.authority, federation.authority.certificate_pem)
    strangers = make_server(enrolment_gate(clock=federation.clock))
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(servicer, strangers)
    shown = tls.enrolment_credentials(fixed(federation.aggregator(hosts=("elsewhere.example.org",))))
    port = bind(strangers, "127.0.0.1:0", shown)
    await strangers.start()
    with pytest.raises(NotAuthorised, match="for another name than localhost"):
        await enrol(JoinLine("localhost", port, servicer.token, federation.authority.sha256))
    await strangers.stop(None)
