"""Signatures over statements: DSSE envelopes with one ECDSA P-256 signature and the signer's certificate inside.

What is signed is the pre-authentication encoding, type and payload together, so a signature can never be moved to a
document of another type (DSSE protocol v1.0, "PAE"). A proof needs the envelope and the federation's CA, nothing else.
Called by agents (updates), the aggregator (models) and whoever verifies either.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from histofed.base.errors import BadData, NotAuthorised
from histofed.pki.credentials import Credentials
from histofed.pki.identity import Identity, identity_of
from histofed.pki.keys import UNREADABLE, der_of


@dataclass(frozen=True)
class Envelope:
    """A payload, its type, the signature over both (DER) and the signer's certificate (DER)."""

    payload_type: str
    payload: bytes
    signature: bytes
    certificate: bytes


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: lengths before contents, so that no two pairs give the same bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, credentials: Credentials) -> Envelope:
    """Sign `payload` as the holder of `credentials`."""
    signature = credentials.key.sign(pae(payload_type, payload), ec.ECDSA(hashes.SHA256()))
    return Envelope(payload_type, payload, signature, der_of(credentials.certificate))


def verify(envelope: Envelope, *, ca: x509.Certificate, payload_type: str, signer: Identity, at: datetime | None) -> None:
    """Check that `signer`, and nobody else, signed this payload as this type with a certificate valid at `at`.

    None for `at` asks only who signed: what is kept outlives the certificate under which it was signed.
    Raises `NotAuthorised` when the signer is not the one expected or the certificate does not count, `BadData` when the
    type is another or the signature does not fit the bytes.
    """
    if envelope.payload_type != payload_type:
        raise BadData(f"the signed document is of type {envelope.payload_type[:80]!r}, expected {payload_type!r}")
    certificate = _issued_by(ca, envelope.certificate)
    found = identity_of(certificate, signer.federation)
    if found != signer:
        raise NotAuthorised(f"the document is signed by {found}, it must be signed by {signer}")
    if at is not None and not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise NotAuthorised(
            f"the certificate of {found} was not valid at {at:%Y-%m-%d %H:%M} UTC "
            f"(it is from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} "
            f"to {certificate.not_valid_after_utc:%Y-%m-%d %H:%M})"
        )
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise NotAuthorised(f"the certificate of {found} has no P-256 key")
    try:
        key.verify(envelope.signature, pae(payload_type, envelope.payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise BadData(f"the signature of {found} does not fit the document: it was changed after signing") from error


def _issued_by(ca: x509.Certificate, der: bytes) -> x509.Certificate:
    """The certificate in the envelope, if our CA signed it. Raises `BadData` or `NotAuthorised`."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise BadData("the signer's certificate cannot be read") from error
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, *UNREADABLE) as error:
        raise NotAuthorised("the signer's certificate was not issued by this federation's CA") from error
    return certificate
