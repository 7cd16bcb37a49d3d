"""The federation's certificate authority: it lives in the aggregator and signs every identity of the federation.

It decides who the holder of a key is; a signing request contributes its public key and the proof of possession, never
a name or an extension. Lifetimes are short instead of revocation lists: a site's certificate ends after a week, and
until then the deny list of the aggregator, by serial, is asked at every call: enrolling again puts all older ones of the
site on it. The caller journals what was issued.
"""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from histofed.base import durable
from histofed.base.clock import Clock
from histofed.base.errors import BadData, ConfigError, NotFound
from histofed.base.ids import Digest, sha256
from histofed.base.owner import not_ours, refused
from histofed.pki.credentials import FILE_LIMIT
from histofed.pki.identity import Identity, Role, federation_of, federation_uri, serial_of
from histofed.pki.keys import certificate_from_pem, der_of, key_from_pem, key_pem, new_key, pem_of, public_key_of
from histofed.pki.pem import refuse_readable_by_others

CA_LIFETIME: Final = timedelta(days=3652)
LIFETIMES: Final[Mapping[Role, timedelta]] = {
    Role.SITE: timedelta(days=7),
    Role.OPERATOR: timedelta(days=90),
    Role.AGGREGATOR: timedelta(days=365),
}
"""How long a certificate of each role is valid unless the caller says otherwise."""
SKEW: Final = timedelta(days=1)
"""A certificate begins this much in the past, but for a lifetime below a week: a hospital's machine whose clock fell back by
hours still finds the aggregator's certificate valid, can connect, and hears that its clock is wrong."""
LEAST_SKEW: Final = timedelta(minutes=5)
"""Of the shortest certificates: clocks of hospitals differ by minutes."""
CERTIFICATE_FILE: Final = "ca.pem"
KEY_FILE: Final = "ca.key"
COPIED: Final = "whoever has it can be anybody here: make a new federation, in which every site and operator enrols again"
"""What helps where somebody has the CA's key."""


@dataclass(frozen=True)
class Issued:
    """A new certificate, and what the store and the journal need to know about it."""

    certificate_pem: bytes
    identity: Identity
    serial: str
    not_before: datetime
    not_after: datetime


class Authority:
    """The CA's key and certificate, and the one place that signs certificates."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock) -> None:
        self.federation = federation_of(certificate)
        if certificate.public_key() != key.public_key():
            raise BadData("the CA's key does not belong to the CA's certificate")
        self.certificate = certificate
        self._key = key
        self._clock = clock

    @classmethod
    def create(cls, federation: str, clock: Clock) -> Authority:
        """A new self-signed CA, valid for ten years. Raises `BadData` for a name that is not allowed."""
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"histofed {federation}"[:64])])
        subject_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key(), clock.now() - SKEW, clock.now() + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(subject_id, critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(federation_uri(federation))]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key, clock)

    @classmethod
    def load(cls, directory: Path, clock: Clock) -> Authority:
        """The CA in `directory`. Raises `NotFound`, `ConfigError` (its key can be read by others) or `BadData`."""
        try:
            mode = stat.S_IMODE((directory / KEY_FILE).stat().st_mode)
            refuse_readable_by_others(directory / KEY_FILE, mode, COPIED)
            key = (directory / KEY_FILE).read_bytes()[:FILE_LIMIT]
            certificate = (directory / CERTIFICATE_FILE).read_bytes()[:FILE_LIMIT]
        except FileNotFoundError as error:
            raise NotFound(f"there is no CA in {directory}: run histofed-aggregator init first") from error
        except PermissionError as error:
            raise refused(error) or not_ours(directory, error) from error
        except OSError as error:
            raise ConfigError(f"the CA in {directory} cannot be read: {error.strerror}") from error
        return cls(certificate_from_pem(certificate, "CA certificate"), key_from_pem(key), clock)

    def save(self, directory: Path) -> None:
        """Write certificate (0644), then key (0600), durable: with the key the CA is there. Raises `CannotWriteState`."""
        durable.make_directory(directory)
        durable.replace(directory / CERTIFICATE_FILE, self.certificate_pem, mode=0o644)
        durable.replace(directory / KEY_FILE, key_pem(self._key), mode=0o600)

    @property
    def certificate_pem(self) -> bytes:
        """The CA's certificate, PEM."""
        return pem_of(self.certificate)

    @property
    def sha256(self) -> Digest:
        """SHA-256 of the CA's DER: what a join line pins."""
        return sha256(der_of(self.certificate))

    def site(self, name: str) -> Identity:
        """The identity of a hospital. Raises `BadData` for a name that is not allowed."""
        return Identity(self.federation, Role.SITE, name)

    def operator(self, name: str) -> Identity:
        """The identity of an operator. Raises `BadData` for a name that is not allowed."""
        return Identity(self.federation, Role.OPERATOR, name)

    def aggregator(self) -> Identity:
        """The identity of the aggregator itself."""
        return Identity(self.federation, Role.AGGREGATOR, "")

    def issue(
        self, identity: Identity, csr_pem: bytes, *, lifetime: timedelta | None = None, hosts: Sequence[str] = ()
    ) -> Issued:
        """Certify that the holder of the request's key is `identity`.

        `hosts` are the DNS names and IP addresses under which an aggregator is reached. Raises `BadData` for an unusable
        request, another federation, or hosts where none belong.
        """
        if identity.federation != self.federation:
            raise BadData(f"{identity} is not of federation {self.federation!r}")
        serves = identity.role is Role.AGGREGATOR
        if serves != bool(hosts):
            raise BadData("an aggregator's certificate needs at least one host name, and no other certificate has any")
        key = public_key_of(csr_pem)
        now = self._clock.now()
        end = min(now + (lifetime or LIFETIMES[identity.role]), self.certificate.not_valid_after_utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.uri.rpartition("//")[2][-64:])])
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + [ExtendedKeyUsageOID.SERVER_AUTH] * serves
        names = [x509.UniformResourceIdentifier(identity.uri), *map(_host, hosts)]
        certificate = (
            _builder(subject, self.certificate.subject, key, now - _skew(end - now), end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certificate.public_key()),  # type: ignore[arg-type]  # always P-256
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            certificate_pem=pem_of(certificate),
            identity=identity,
            serial=serial_of(certificate),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )


def _skew(lifetime: timedelta) -> timedelta:
    """How far in the past a certificate begins: a seventh of its life, within bounds, so that the half of it lies ahead."""
    return max(LEAST_SKEW, min(SKEW, lifetime / 7))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    """A DNS name or an IP address as the certificate writes it. Raises `BadData`."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise BadData(f"{text[:80]!r} is neither a DNS name nor an IP address") from error
