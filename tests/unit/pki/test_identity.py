"""The URI in the certificate, and everything that must not count as one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.clock import SystemClock
from histofed.base.errors import BadData, NotAuthorised
from histofed.pki.identity import Identity, Role, federation_of, identity_of, serial_of
from histofed.pki.keys import new_key
from tests.support.pki import Federation

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)
federations = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", fullmatch=True)
identities = st.one_of(
    st.builds(Identity, federations, st.sampled_from([Role.SITE, Role.OPERATOR]), names),
    st.builds(Identity, federations, st.just(Role.AGGREGATOR), st.just("")),
)


@given(identities)
def test_parse_reverses_uri(identity: Identity) -> None:
    assert Identity.parse(identity.uri) == identity


@given(
    st.text(max_size=80)
    | st.from_regex(r"spiffe://[a-z.]{0,9}/?(site|operator|aggregator|ca)?/?[a-z/]{0,9}", fullmatch=True)
)
def test_whatever_parses_is_written_the_same_way(text: str) -> None:
    try:
        found = Identity.parse(text)
    except BadData:
        return
    assert found.uri == text


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://f/site/",
        "spiffe://f/site",
        "spiffe://f/site/../aggregator",
        "spiffe://f/site/a/b",
        "spiffe://f/aggregator/x",
        "spiffe://f/admin/a",
        "spiffe://F/site/a",
        "https://f/site/a",
        "spiffe:///site/a",
        "",
    ],
)
def test_refuses_what_is_not_an_identity(uri: str) -> None:
    with pytest.raises(BadData):
        Identity.parse(uri)


def certificate(
    names: Sequence[x509.GeneralName],
    usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH,),
    *,
    ca: bool = False,
) -> x509.Certificate:
    key, now = new_key(), SystemClock().now()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spiffe://f/operator/root")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(0xBEEF)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256())


SITE = x509.UniformResourceIdentifier("spiffe://f/site/north")


def test_reads_the_uri_and_nothing_of_the_subject() -> None:
    assert identity_of(certificate([SITE]), "f") == Identity("f", Role.SITE, "north")


def test_serial_is_lower_case_hexadecimal() -> None:
    assert serial_of(certificate([SITE])) == "beef"


@pytest.mark.parametrize(
    ("strange", "words"),
    [
        (certificate([]), "names 0 URIs"),
        (certificate([SITE, x509.UniformResourceIdentifier("spiffe://f/operator/eve")]), "names 2 URIs"),
        (certificate([x509.UniformResourceIdentifier("https://f/site/north")]), "gives no identity"),
        (certificate([x509.UniformResourceIdentifier("spiffe://g/site/north")]), "federation 'g'"),
        (certificate([SITE, x509.DNSName("aggregator.example.org")]), "host names"),
        (certificate([SITE], ()), "not for TLS clients"),
        (certificate([SITE], (ExtendedKeyUsageOID.SERVER_AUTH,)), "not for TLS clients"),
        (certificate([SITE], ca=True), "not for TLS clients"),
    ],
)
def test_refuses_strange_certificates_in_words(strange: x509.Certificate, words: str) -> None:
    with pytest.raises(NotAuthorised, match=words):
        identity_of(strange, "f")


def test_the_ca_says_which_federation_it_is() -> None:
    assert federation_of(Federation("north.example").authority.certificate) == "north.example"


def test_a_members_certificate_is_no_ca() -> None:
    with pytest.raises(BadData, match="not the certificate of a histofed federation"):
        federation_of(Federation().site().certificate)
