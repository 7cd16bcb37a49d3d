"""The site's half of enrolment and renewal. The key is made here and never leaves; the caller stores the result.

`enrol` pins the CA by the join line before the token is sent; `renew` speaks over the mTLS connection, so that the old
certificate is the proof.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from histofed.base.errors import NotAuthorised
from histofed.base.ids import sha256
from histofed.base.proxy import ENVIRONMENT, ProxySetting, find
from histofed.pki.credentials import Credentials
from histofed.pki.enrol import fetch_ca
from histofed.pki.keys import certificate_from_pem, der_of, new_key, signing_request
from histofed.pki.tokens import JoinLine
from histofed.transport.channel import Connection, open_joining_connection
from histofed.v1 import enrollment_pb2, enrollment_pb2_grpc

ENROL_S: Final = 30.0


@dataclass(frozen=True)
class Joined:
    """What a join line became."""

    credentials: Credentials
    aggregator: str
    """HOST:PORT of the mTLS port."""


async def enrol(line: JoinLine, *, timeout_s: float = ENROL_S, proxy: ProxySetting = ENVIRONMENT) -> Joined:
    """Trade a join line for credentials.

    Raises `AggregatorUnavailable`, `NotAuthorised` (another CA than the line's, or a token that is used, expired or
    unknown) or `BadData`.
    """
    ca_pem = await asyncio.to_thread(fetch_ca, line.host, line.port, line.ca_sha256, timeout_s, find(proxy, line.host))
    key = new_key()
    request = enrollment_pb2.EnrollRequest(token=line.token, csr_pem=signing_request(key))
    async with open_joining_connection(line.address, ca_pem, proxy=proxy) as connection:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(connection.channel)
        answer = await connection.call(stub.Enroll, request, timeout_s=timeout_s)
    if sha256(der_of(certificate_from_pem(answer.ca_pem, "CA certificate"))) != line.ca_sha256:
        raise NotAuthorised("the aggregator answered with another CA than the join line names: ask for a new line")
    return Joined(Credentials.make(key, answer.certificate_pem, answer.ca_pem), answer.aggregator)


async def renew(connection: Connection, credentials: Credentials) -> Credentials:
    """A new key and a newer certificate for the same identity, over that identity's connection.

    Raises what the call raises, and `NotAuthorised` when the answer is for somebody else or under another CA.
    """
    key = new_key()
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(connection.channel)
    answer = await connection.call(stub.Renew, enrollment_pb2.RenewRequest(csr_pem=signing_request(key)))
    renewed = Credentials.make(key, answer.certificate_pem, answer.ca_pem)
    if renewed.identity != credentials.identity or renewed.ca != credentials.ca:
        raise NotAuthorised(f"the aggregator renewed {credentials.identity} as {renewed.identity} or under another CA")
    return renewed
