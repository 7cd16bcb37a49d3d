"""A federation for tests: an authority and the credentials of its members, made in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from histofed.base.clock import Clock, SystemClock
from histofed.pki.authority import Authority
from histofed.pki.credentials import Credentials
from histofed.pki.identity import Identity
from histofed.pki.keys import key_pem, new_key, pem_of, signing_request

LOOPBACK = ("localhost", "127.0.0.1")


@dataclass
class Federation:
    """An authority with shortcuts."""

    name: str = "test.example"
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        self.authority = Authority.create(self.name, self.clock)

    def at(self, clock: Clock) -> Federation:
        """The same authority at another time."""
        again = Federation(self.name, clock)
        again.authority = Authority(self.authority.certificate, self.authority._key, clock)
        return again

    def site(self, name: str = "north-clinic", lifetime: timedelta | None = None) -> Credentials:
        """A hospital's credentials."""
        return self.issue(self.authority.site(name), lifetime)

    def operator(self, name: str = "ada", lifetime: timedelta | None = None) -> Credentials:
        """An operator's credentials."""
        return self.issue(self.authority.operator(name), lifetime)

    def aggregator(self, hosts: tuple[str, ...] = LOOPBACK) -> Credentials:
        """The aggregator's credentials, for loopback unless said otherwise."""
        return self.issue(self.authority.aggregator(), None, hosts)

    def issue(self, identity: Identity, lifetime: timedelta | None = None, hosts: tuple[str, ...] = ()) -> Credentials:
        """Credentials for any identity of the federation."""
        key = new_key()
        issued = self.authority.issue(identity, signing_request(key), lifetime=lifetime, hosts=hosts)
        return Credentials.make(key, issued.certificate_pem, self.authority.certificate_pem)


def fixed(credentials: Credentials) -> Callable[[], Credentials]:
    """What a server shows as long as it runs."""
    return lambda: credentials


@dataclass(frozen=True)
class Pair:
    """A key and its certificate, PEM."""

    key: bytes
    certificate: bytes


class TestPki:
    """An authority without identities: plain TLS certificates for loopback, for servers and clients that are not ours."""

    __test__ = False  # pytest collects by this name otherwise

    def __init__(self) -> None:
        self._key = new_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        basic = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._builder(self._name, self._key).add_extension(basic, critical=True)
        self.ca = pem_of(certificate.sign(self._key, hashes.SHA256()))

    def issue(self, common_name: str) -> Pair:
        """A certificate for `common_name`, good for both ends of a connection on loopback."""
        key = new_key()
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]), key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Pair(key_pem(key), pem_of(certificate))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = SystemClock().now()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
        )
