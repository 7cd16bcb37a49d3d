"""What a member of the federation holds: its private key, its certificate and the one CA it trusts.

All three live in one PEM file, mode 0600, replaced in one rename: a renewal can never leave a key beside the
certificate of another one. Read by every process that opens a channel, serves one or signs; written by enrolment,
renewal and `histofed-aggregator init`.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from histofed.base import durable
from histofed.base.errors import BadData, ConfigError, NotEnrolled
from histofed.base.ids import Digest, sha256
from histofed.base.owner import not_ours
from histofed.pki.identity import Identity, federation_of, identity_of, serial_of
from histofed.pki.keys import UNREADABLE, certificate_from_pem, der_of, key_from_pem, key_pem, pem_of
from histofed.pki.pem import refuse_readable_by_others

FILE_LIMIT: Final = 64 << 10
"""Bytes of an identity file that are read at all."""
ENROL: Final = "enrol again with a new join line"
_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)


@dataclass(frozen=True)
class Credentials:
    """Key, certificate and CA that belong together. Never printed, never logged."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate
    ca: x509.Certificate

    @classmethod
    def make(cls, key: ec.EllipticCurvePrivateKey, certificate_pem: bytes, ca_pem: bytes) -> Credentials:
        """Put together what an authority answered. Raises `BadData`, or `NotAuthorised` for a strange identity."""
        ca = certificate_from_pem(ca_pem, "CA certificate")
        certificate = certificate_from_pem(certificate_pem)
        if certificate.public_key() != key.public_key():
            raise BadData("the certificate is for another key than the one in use")
        try:
            certificate.verify_directly_issued_by(ca)
        except (InvalidSignature, *UNREADABLE) as error:
            raise BadData("the certificate was not issued by this federation's CA") from error
        identity_of(certificate, federation_of(ca))
        return cls(key, certificate, ca)

    @classmethod
    def load(cls, path: Path, remedy: str = ENROL) -> Credentials:
        """Read an identity file; `remedy` says how its holder comes to another one.

        Raises `NotEnrolled` when there is none, `NotOurs` when it is another user's, `ConfigError` when others can read it,
        `BadData` when it is damaged.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(path.stat().st_mode)
                data = file.read(FILE_LIMIT)
        except FileNotFoundError as error:
            raise NotEnrolled(f"there is no identity at {path}: enrol first, with a join line of the operator") from error
        except PermissionError as error:
            raise not_ours(path, error) from error
        except OSError as error:
            raise ConfigError(f"the identity {path} cannot be read: {error.strerror}") from error
        refuse_readable_by_others(path, mode, remedy)
        keys = _KEY.findall(data)
        certificates = _KEY.sub(b"", data).partition(_END)
        if len(keys) != 1 or not certificates[1]:
            raise BadData(f"{path} is not an identity file (one private key, its certificate, the CA): {remedy}")
        try:
            return cls.make(key_from_pem(keys[0]), certificates[0] + _END, certificates[2])
        except BadData as error:
            raise BadData(f"{path} is damaged ({error}): {remedy}") from error

    def save(self, path: Path) -> None:
        """Write the identity file, 0600, all or nothing. Raises `CannotWriteState`."""
        durable.replace(path, self.key_pem + self.chain_pem, mode=0o600)

    @property
    def federation(self) -> str:
        """The federation's name."""
        return federation_of(self.ca)

    @property
    def identity(self) -> Identity:
        """Who the holder is."""
        return identity_of(self.certificate, self.federation)

    @property
    def serial(self) -> str:
        """Serial number of the certificate, hexadecimal."""
        return serial_of(self.certificate)

    @property
    def not_before(self) -> datetime:
        """Beginning of the certificate's validity, UTC."""
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """End of the certificate's validity, UTC."""
        return self.certificate.not_valid_after_utc

    @property
    def key_pem(self) -> bytes:
        """The private key, PEM."""
        return key_pem(self.key)

    @property
    def certificate_pem(self) -> bytes:
        """The holder's certificate, PEM."""
        return pem_of(self.certificate)

    @property
    def ca_pem(self) -> bytes:
        """The federation's CA, PEM."""
        return pem_of(self.ca)

    @property
    def chain_pem(self) -> bytes:
        """Certificate, then CA, PEM: what a server shows, so that a joining site can compare the CA's digest."""
        return self.certificate_pem + self.ca_pem

    @property
    def ca_sha256(self) -> Digest:
        """SHA-256 of the CA's DER, as in the join line."""
        return sha256(der_of(self.ca))

    def renew_at(self, jitter: float) -> datetime:
        """When to ask for the next certificate: half life, moved by up to 10 % of the lifetime.

        `jitter` is a random number in [0, 1) of the caller's, so that sites do not come all at once.
        """
        return self.not_before + (self.not_after - self.not_before) * (0.5 + 0.2 * (jitter - 0.5))


_END: Final = b"-----END CERTIFICATE-----\n"
