"""Keys and signing requests: P-256 everywhere (FIPS 186-5), PKCS#8 and PKCS#10 in PEM.

A key is made where it is used and never travels; what travels is a signing request, of which only the public key and
the proof that its sender holds the private half count.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from histofed.base.errors import BadData

UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What the parser raises for bytes that are not what they should be."""
REQUEST_LIMIT: Final = 16 << 10
"""Bytes of a signing request that are read at all; a P-256 request needs about 400."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as an unencrypted PKCS#8 file; its only protection is the file's mode, 0600."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The reverse of `key_pem`. Raises `BadData`."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except UNREADABLE as error:
        raise BadData("the private key cannot be read: it must be an unencrypted PEM file") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadData("the private key is not a P-256 key")
    return key


def signing_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PKCS#10 request for `key`, PEM. Its subject is empty: the authority decides who the holder is."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def public_key_of(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose sender proved to hold the private one. Raises `BadData`."""
    if len(csr_pem) > REQUEST_LIMIT:
        raise BadData(f"the signing request is larger than {REQUEST_LIMIT} bytes")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        proven = request.is_signature_valid
        key = request.public_key()
    except UNREADABLE as error:
        raise BadData("the signing request cannot be read: it must be PKCS#10 in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadData("the signing request is not for a P-256 key")
    if not proven:
        raise BadData("the signing request does not prove that its sender holds the private key")
    return key


def certificate_from_pem(pem: bytes, what: str = "certificate") -> x509.Certificate:
    """The one certificate in `pem`. Raises `BadData`."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise BadData(f"the {what} cannot be read: it must be PEM") from error
    if len(found) != 1:
        raise BadData(f"the {what} must be one certificate, {len(found)} were found")
    return found[0]


def pem_of(certificate: x509.Certificate) -> bytes:
    """PEM of a certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def der_of(certificate: x509.Certificate) -> bytes:
    """DER of a certificate."""
    return certificate.public_bytes(serialization.Encoding.DER)
