"""EnrollmentService: a join token or a certificate becomes a (newer) certificate."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from aggregator.members import Members
from aggregator.services import convert
from histofed.audit.journal import Journal
from histofed.audit.record import Who
from histofed.base.errors import NotAuthorised
from histofed.base.ids import SiteId
from histofed.pki import tokens
from histofed.pki.authority import Authority, Issued
from histofed.telemetry.logs import fields
from histofed.transport.server import caller
from histofed.v1 import enrollment_pb2, enrollment_pb2_grpc

log = logging.getLogger(__name__)


class EnrollmentServicer(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """`Enroll` is reachable on the enrolment port alone, `Renew` on the mTLS port alone (`transport/authz.py`)."""

    def __init__(self, *, members: Members, journal: Journal, authority: Authority, token_key: bytes, address: str) -> None:
        self._members = members
        self._journal = journal
        self._authority = authority
        self._token_key = token_key
        self._address = address

    async def Enroll(
        self, request: enrollment_pb2.EnrollRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> enrollment_pb2.EnrollResponse:
        token = tokens.digest(request.token[:200], self._token_key)
        site = self._members.token_site(token)
        if site is None:
            self._journal.append(
                "site.enrol",
                who=Who("anonymous"),
                subject={"peer": context.peer()},
                outcome="refused",
                reason="token not valid",
            )
            raise NotAuthorised("the join token is unknown, used or expired; ask the operator for a new one")
        issued = self._issue("site.enrol", Who("anonymous"), site, request.csr_pem)
        self._members.enrol(token, site, issued.identity.uri, issued.serial, issued.not_after)
        log.info("site enrolled", extra=fields(event="site.enrolled", site=site, serial=issued.serial))
        return enrollment_pb2.EnrollResponse(
            certificate_pem=issued.certificate_pem,
            ca_pem=self._authority.certificate_pem,
            identity=issued.identity.uri,
            aggregator=self._address,
        )

    async def Renew(
        self, request: enrollment_pb2.RenewRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> enrollment_pb2.RenewResponse:
        who = caller(context)
        issued = self._authority.issue(who.identity, request.csr_pem)
        self._journal.append(
            "certificate.renewed",
            who=convert.who(who),
            subject={"identity": issued.identity.uri, "serial": issued.serial},
        )
        self._members.add_certificate(issued.identity.uri, issued.serial, issued.not_after)
        log.info("certificate renewed", extra=fields(identity=issued.identity.uri, serial=issued.serial))
        return enrollment_pb2.RenewResponse(certificate_pem=issued.certificate_pem, ca_pem=self._authority.certificate_pem)

    def _issue(self, action: str, who: Who, site: SiteId, csr_pem: bytes) -> Issued:
        issued = self._authority.issue(self._authority.site(site), csr_pem)
        self._journal.append(action, who=who, subject={"site": site, "serial": issued.serial})
        return issued
