"""Identity is the URI in a certificate's subject alternative name, and nothing else.

`spiffe://<federation>/site/<name>`, `/operator/<name>` and `/aggregator` (SPIFFE-ID, section 2). A certificate counts
only if it carries exactly one URI, of our federation, and may be used by a TLS client; the subject is for people to
read and is never looked at. Called by the transport for every peer, by the authority and by signature checks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from histofed.base.errors import BadData, NotAuthorised
from histofed.base.ids import check_name

_FEDERATION: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?\Z")
_SCHEME: Final = "spiffe://"


class Role(StrEnum):
    """What an identity may be; the authorisation table is written in these."""

    SITE = "site"
    OPERATOR = "operator"
    AGGREGATOR = "aggregator"


@dataclass(frozen=True, order=True)
class Identity:
    """One member of one federation; `name` is empty for the aggregator, of which there is one."""

    federation: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        check_federation(self.federation)
        if self.role is not Role.AGGREGATOR:
            check_name(self.name, f"{self.role} name")
        elif self.name:
            raise BadData(f"the aggregator has no name, {self.name[:60]!r} was given")

    @property
    def uri(self) -> str:
        """As written in the certificate."""
        path = f"{self.role}/{self.name}" if self.name else str(self.role)
        return f"{_SCHEME}{self.federation}/{path}"

    def __str__(self) -> str:
        return self.uri

    @property
    def remedy(self) -> str:
        """How its holder comes to another certificate, in words."""
        match self.role:
            case Role.SITE:
                return "enrol again with a new join line"
            case Role.OPERATOR:
                return f"have `histofed-aggregator operator {self.name} --out DIR` run on the aggregator's host"
            case Role.AGGREGATOR:
                return "restart the aggregator, which renews it"

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """The reverse of `uri`. Raises `BadData`."""
        federation, _, path = uri.removeprefix(_SCHEME).partition("/")
        role, _, name = path.partition("/")
        if uri.startswith(_SCHEME) and role in set(Role):
            found = cls(federation, Role(role), name)
            if found.uri == uri:
                return found
        raise BadData(f"{uri[:120]!r} is not an identity (spiffe://FEDERATION/site/NAME, /operator/NAME or /aggregator)")


def check_federation(text: str) -> str:
    """A federation's name: 1-63 of a-z, 0-9, '.' and '-' (a SPIFFE trust domain). Raises `BadData`."""
    if not _FEDERATION.match(text):
        raise BadData(
            f"federation name {text[:80]!r} is not allowed: use 1 to 63 lower-case letters, digits, '.' and '-', "
            "beginning and ending with a letter or digit"
        )
    return text


def federation_uri(federation: str) -> str:
    """The URI in the CA's own certificate: the trust domain without a path."""
    return _SCHEME + check_federation(federation)


def federation_of(ca: x509.Certificate) -> str:
    """The federation that a CA certificate stands for. Raises `BadData`."""
    uris = _alternative_names(ca)[0]
    if len(uris) != 1 or not is_ca(ca):
        raise BadData("this is not the certificate of a histofed federation's CA")
    return check_federation(uris[0].removeprefix(_SCHEME))


def identity_of(certificate: x509.Certificate, federation: str | None) -> Identity:
    """The identity that `certificate` gives its holder inside `federation`; None when the caller compares it later.

    Only the form is checked here; the chain to the CA is TLS's business, or `signing.verify`'s. Raises `NotAuthorised`.
    """
    uris, others = _alternative_names(certificate)
    if len(uris) != 1:
        raise NotAuthorised(f"the certificate names {len(uris)} URIs where exactly one must say who its holder is")
    try:
        found = Identity.parse(uris[0])
    except BadData as error:
        raise NotAuthorised(f"the certificate gives no identity: {error}") from error
    if federation is not None and found.federation != federation:
        raise NotAuthorised(f"the certificate is of federation {found.federation!r}, this is {federation!r}")
    if others and found.role is not Role.AGGREGATOR:
        raise NotAuthorised(f"the certificate of {found} carries host names, which only an aggregator's may")
    if is_ca(certificate) or not _may_be_client(certificate):
        raise NotAuthorised(f"the certificate of {found} is not for TLS clients")
    return found


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number, lower-case hexadecimal: the key of the deny list."""
    return f"{certificate.serial_number:x}"


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether the certificate may sign other certificates."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _alternative_names(certificate: x509.Certificate) -> tuple[list[str], list[x509.GeneralName]]:
    """URIs, and every other kind of name."""
    try:
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return [], []
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    return uris, [name for name in names if not isinstance(name, x509.UniformResourceIdentifier)]


def _may_be_client(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usages
