"""A member's identity as it lies in files: three PEM texts, unparsed.

A command line shows its certificate and never looks into it, and `cryptography.x509` alone would cost a third of the time
in which `histofed status` has to start. `histofed/pki/credentials.py` is the same identity, parsed.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from histofed.base.errors import ConfigError

_TIME: Final = rb"(?:\x17\x0d\d{6}|\x18\x0f\d{8})\d{6}Z"
_VALIDITY: Final = re.compile(rb"\x30[\x1e\x20\x22](?:%b)(%b)" % (_TIME, _TIME))
"""SEQUENCE of two times, each UTCTime (until 2049) or GeneralizedTime (RFC 5280, 4.1.2.5), DER."""


_KEY_ID: Final = re.compile(rb"\x06\x03\x55\x1d\x0e\x04\x16\x04\x14(.{20})", re.DOTALL)
"""subjectKeyIdentifier of a CA, which each certificate that it issues repeats (RFC 5280, 4.2.1.1 and 4.2.1.2), DER."""


class Proof(Protocol):
    """What a TLS handshake needs of a member."""

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS#8."""
        ...

    @property
    def certificate_pem(self) -> bytes:
        """The member's certificate."""
        ...

    @property
    def ca_pem(self) -> bytes:
        """The federation's CA."""
        ...


@dataclass(frozen=True)
class PemIdentity:
    """A `Proof` that was read from files; `belong_together` looks whether they are one identity's."""

    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes


def belong_together(key: Path, certificate: Path, ca: Path) -> bool:
    """Whether the three files are the parts of one identity, as far as can be said without a look at signatures."""
    try:
        # a password is never asked for: our keys have none
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
        own, issuer = (ssl.PEM_cert_to_DER_cert(path.read_text("ascii")) for path in (certificate, ca))
    except (ssl.SSLError, ValueError):
        return False
    named = _KEY_ID.search(issuer)
    return named is None or named[1] in own


def end_of(certificate_pem: bytes) -> datetime | None:
    """The end of a certificate's validity, UTC; None where it cannot be found."""
    try:
        found = _VALIDITY.search(ssl.PEM_cert_to_DER_cert(certificate_pem.decode("ascii")))
        digits = "" if found is None else found[1][2:-1].decode()
        return datetime.strptime(digits if len(digits) == 14 else f"20{digits}", "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def refuse_readable_by_others(path: Path, mode: int, remedy: str = "") -> None:
    """A secret key is its owner's alone; `remedy` says what helps where somebody copied it. Raises `ConfigError`."""
    if mode & 0o077:
        raise ConfigError(
            f"{path} holds a secret key and can be read by others (mode {mode:04o}): run chmod 600 on it"
            + (f"; if somebody may have copied it, {remedy}" if remedy else "")
        )
