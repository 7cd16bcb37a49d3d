"""The aggregator's own certificate: the daemon renews it while it serves, and its end is told while there is time.

Asked every few seconds by the daemon (`pulse.py`), and before it listens. New handshakes see the new certificate, and the
next model is signed with it; connections that are there keep the old one, which is good until its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509

from histofed.audit.journal import Journal
from histofed.base.clock import Clock, iso
from histofed.base.health import Health
from histofed.pki.credentials import Credentials
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)

RENEW_AFTER: Final = 0.5
"""Share of its life after which the next one is issued."""
SOON: Final = timedelta(days=60)


class OwnCertificate:
    """The one that is shown and signed with now."""

    def __init__(
        self,
        credentials: Credentials,
        path: Path,
        hosts: Sequence[str],
        issue: Callable[[], Credentials],
        journal: Journal,
        clock: Clock,
    ) -> None:
        """`path` keeps it, `issue` makes another one for `hosts`."""
        self._credentials = credentials
        self._path = path
        self._hosts = hosts
        self._issue = issue
        self._journal = journal
        self._clock = clock

    def current(self) -> Credentials:
        """Key and certificate. For any thread."""
        return self._credentials

    def ends(self) -> datetime:
        """The end of its validity, UTC."""
        return self._credentials.not_after

    def begin(self) -> None:
        """At a start, whose configuration may name other hosts: what `renew` does. Raises `CannotWriteState`."""
        if missing_hosts(self._credentials, self._hosts) and not _outlived(self._credentials, self._clock.now()):
            self._renew()
        self.renew()

    def renew(self) -> None:
        """If it is time, issue the next one: in the journal and on disk before it is shown.

        Raises `CannotWriteState`; then the one that is there goes on.
        """
        if due(self._credentials, self._clock.now()):
            self._renew()

    def _renew(self) -> None:
        following = self._issue()
        until = iso(following.not_after)
        subject = {"identity": following.identity.uri, "serial": following.serial, "valid_until": until}
        self._journal.append("identity.renewal", subject=subject)
        following.save(self._path)
        self._credentials = following
        log.info("the aggregator's certificate was renewed, valid until %s", until, extra=fields(event="identity.renewed"))

    def tell(self, health: Health) -> None:
        """Say in `histofed status` that it ends soon; readiness does not wait for it."""
        sentence = ending(self._credentials, self._clock.now())
        health.set("certificate", sentence is None, sentence or f"valid until {self.ends():%Y-%m-%d %H:%M} UTC")


def due(credentials: Credentials, now: datetime) -> bool:
    """Whether the next one should be issued: at half its life, or where a clock that was wrong dated it.

    Not where it could not end later than this one: none outlives the CA.
    """
    if _outlived(credentials, now):
        return False
    if now < credentials.not_before:
        return True
    half = credentials.not_before + RENEW_AFTER * (credentials.not_after - credentials.not_before)
    return now >= half and credentials.not_after < credentials.ca.not_valid_after_utc


def _outlived(credentials: Credentials, now: datetime) -> bool:
    """Whether the CA is over, and with it all that it could issue."""
    return now >= credentials.ca.not_valid_after_utc


def missing_hosts(credentials: Credentials, hosts: Sequence[str]) -> list[str]:
    """The names and addresses among `hosts` that the certificate does not have, however they are written."""
    names = credentials.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = {*map(_value, names.get_values_for_type(x509.DNSName)), *names.get_values_for_type(x509.IPAddress)}
    return [host for host in hosts if _value(host) not in known]


def _value(host: str) -> object:
    """An address as a number, which can be written in several ways; a name in small letters."""
    try:
        return ip_address(host)
    except ValueError:
        return host.lower()


def ending(credentials: Credentials, now: datetime) -> str | None:
    """What to do about a certificate in its last days or past them; None where there is time."""
    end = credentials.not_after
    if now < end - SOON:
        return None
    when = f"the aggregator's own certificate {'ends' if now <= end else 'ended'} on {end:%Y-%m-%d %H:%M} UTC"
    if end == credentials.ca.not_valid_after_utc:
        return f"{when}, with the CA: every site has to enrol again, in a new federation"
    return f"{when}: a daemon that runs renews it from its half on; start it, or read in its log what it cannot write"
