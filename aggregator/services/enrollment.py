"""EnrollmentService: a join token or a certificate becomes a (newer) certificate.

Both ways write: a record and, for a certificate, a row, which are kept for ever. So what one member or all strangers
together can make of them is bounded, far above what honest ones need.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any, Final

import grpc
from cryptography import x509

from aggregator.members import Members
from aggregator.services import convert
from histofed.audit.journal import Journal
from histofed.audit.record import Who
from histofed.base.clock import Clock
from histofed.base.errors import NotAuthorised, TryLater
from histofed.base.ids import Json, site_id
from histofed.pki import tokens
from histofed.pki.authority import SKEW, Authority
from histofed.pki.identity import Identity
from histofed.telemetry.logs import fields
from histofed.transport.rate import Rate, RateLimiter
from histofed.transport.server import Caller, caller
from histofed.v1 import enrollment_pb2, enrollment_pb2_grpc

log = logging.getLogger(__name__)

CERTIFICATES: Final = 8
"""Certificates of one identity in `CERTIFICATES_IN`. A site asks twice a week, and again, minutes later, where the answer
was lost or its disk is full."""
CERTIFICATES_IN: Final = timedelta(days=1)
REFUSALS: Final = Rate(per_second=1 / 60, burst=100)
"""Refusals of strangers that are journalled, over all addresses: a day of guessing is a megabyte, whoever guesses."""


class EnrollmentServicer(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """`Enroll` is reachable on the enrolment port alone, `Renew` on the mTLS port alone (`transport/authz.py`)."""

    def __init__(
        self, *, members: Members, journal: Journal, authority: Authority, token_key: bytes, address: str, clock: Clock
    ) -> None:
        self._clock = clock
        self._refusals = RateLimiter(REFUSALS, clock)
        self._untold = 0
        """Refusals since the last one that was journalled."""
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
            self._journal_refusal(context.peer())
            raise NotAuthorised("the join token is unknown, used or expired; ask the operator for a new one")
        issued = self._authority.issue(self._authority.site(site), request.csr_pem)
        revoked = self._members.valid(issued.identity.uri)
        subject: dict[str, Json] = {"site": site, "serial": issued.serial, "revoked": revoked, "peer": context.peer()}
        self._journal.append("site.enrol", who=Who("anonymous"), subject=subject)
        self._members.enrol(token, site, issued.identity.uri, issued.serial, issued.not_after)
        about = fields(event="site.enrolled", site=site, serial=issued.serial, revoked=revoked)
        log.info("site enrolled", extra=about)
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
        self._check_outlived(who)
        self._check_renewals(who.identity)
        issued = self._authority.issue(who.identity, request.csr_pem)
        self._journal.append(
            "certificate.renewed",
            who=convert.who(who),
            subject={"identity": issued.identity.uri, "serial": issued.serial},
        )
        self._members.add_certificate(issued.identity.uri, issued.serial, issued.not_after)
        log.info("certificate renewed", extra=fields(identity=issued.identity.uri, serial=issued.serial))
        return enrollment_pb2.RenewResponse(certificate_pem=issued.certificate_pem, ca_pem=self._authority.certificate_pem)

    def _check_outlived(self, who: Caller) -> None:
        """Raises `NotAuthorised` for a certificate that would be revoked, had a restore not forgotten that it was issued."""
        issued_at = x509.load_der_x509_certificate(who.certificate).not_valid_before_utc + SKEW
        if self._members.outlived(site_id(who.name), who.serial, issued_at):
            raise NotAuthorised(
                f"{who.identity} has enrolled since this certificate was issued, which is not renewed: use the newer one, "
                f"or {who.identity.remedy}"
            )

    def _check_renewals(self, identity: Identity) -> None:
        """Raises `TryLater` for a member that was issued many certificates just now."""
        nth = self._members.issued_at(identity.uri, CERTIFICATES)
        if nth is not None and self._clock.now() < nth + CERTIFICATES_IN:
            raise TryLater(
                f"{identity} was issued {CERTIFICATES} certificates within a day: use the newest, or ask again from "
                f"{nth + CERTIFICATES_IN:%Y-%m-%d %H:%M} UTC on"
            )

    def _journal_refusal(self, peer: str) -> None:
        """Write down that a stranger was refused, unless too many were."""
        try:
            self._refusals.take("strangers")
        except TryLater:
            self._untold += 1
            log.warning("an enrolment was refused, and not journalled: there are too many", extra=fields(peer=peer))
            return
        more = f"; {self._untold} refusals before this one were too many to be journalled" if self._untold else ""
        self._journal.append(
            "site.enrol",
            who=Who("anonymous"),
            subject={"peer": peer},
            outcome="refused",
            reason=f"token not valid{more}",
        )
        self._untold = 0
