"""Signing requests: only a P-256 key whose holder proved to have it."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from histofed.base.errors import BadData
from histofed.pki.keys import certificate_from_pem, key_from_pem, key_pem, new_key, public_key_of, signing_request


def request_with(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def test_a_request_carries_its_key() -> None:
    key = new_key()
    assert public_key_of(signing_request(key)) == key.public_key()


def test_a_key_survives_its_file() -> None:
    key = new_key()
    assert key_from_pem(key_pem(key)).private_numbers() == key.private_numbers()


def test_refuses_a_request_for_a_key_its_sender_does_not_hold() -> None:
    stolen = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    mine, theirs = new_key(), new_key()
    request = x509.load_pem_x509_csr(signing_request(mine)).public_bytes(serialization.Encoding.DER)
    forged = request.replace(mine.public_key().public_bytes(*stolen), theirs.public_key().public_bytes(*stolen))
    pem = x509.load_der_x509_csr(forged).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(BadData, match="does not prove"):
        public_key_of(pem)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_refuses_other_kinds_of_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    with pytest.raises(BadData, match="P-256"):
        public_key_of(request_with(key))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(BadData, match="P-256"):
        key_from_pem(pem)


@pytest.mark.parametrize(
    ("pem", "words"), [(b"", "cannot be read"), (b"x" * 20_000, "larger than"), (b"\xff\x00", "cannot be read")]
)
def test_refuses_what_is_no_request(pem: bytes, words: str) -> None:
    with pytest.raises(BadData, match=words):
        public_key_of(pem)


def test_refuses_an_encrypted_key_and_rubbish() -> None:
    encrypted = new_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    for pem in (encrypted, b"rubbish"):
        with pytest.raises(BadData, match="private key cannot be read"):
            key_from_pem(pem)


def test_refuses_no_certificate() -> None:
    with pytest.raises(BadData, match="CA certificate cannot be read"):
        certificate_from_pem(b"rubbish", "CA certificate")
