"""What the CA certifies, and what it does not let a request decide."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from histofed.base.clock import FakeClock
from histofed.base.errors import BadData, ConfigError, NotFound
from histofed.pki.authority import CA_LIFETIME, KEY_FILE, SKEW, Authority
from histofed.pki.identity import Identity, Role, identity_of
from histofed.pki.keys import certificate_from_pem, new_key, signing_request

CLOCK = FakeClock()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("f.example", CLOCK)


@pytest.mark.parametrize(("role", "days"), [(Role.SITE, 7), (Role.OPERATOR, 90)])
def test_lifetime_depends_on_the_role(authority: Authority, role: Role, days: int) -> None:
    issued = authority.issue(Identity("f.example", role, "a"), signing_request(new_key()))
    assert issued.not_after == CLOCK.now() + timedelta(days=days)
    assert issued.not_before == CLOCK.now() - SKEW


def test_the_caller_may_choose_the_lifetime_but_not_beyond_the_ca(authority: Authority) -> None:
    csr = signing_request(new_key())
    short = authority.issue(authority.site("a"), csr, lifetime=timedelta(hours=1))
    assert short.not_after == CLOCK.now() + timedelta(hours=1)
    assert short.not_before > CLOCK.now() - timedelta(minutes=10), "half of its life is ahead"
    long = authority.issue(authority.site("a"), csr, lifetime=CA_LIFETIME * 2)
    assert long.not_after == authority.certificate.not_valid_after_utc


def test_what_a_request_asks_for_is_ignored(authority: Authority) -> None:
    key = new_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "operator/root")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=9), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://f.example/operator/root")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    issued = authority.issue(authority.site("a"), greedy.public_bytes(serialization.Encoding.PEM))
    certificate = certificate_from_pem(issued.certificate_pem)
    assert identity_of(certificate, "f.example") == authority.site("a")
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert "root" not in certificate.subject.rfc4514_string()
    certificate.verify_directly_issued_by(authority.certificate)


def test_serials_are_random_and_told(authority: Authority) -> None:
    csr = signing_request(new_key())
    serials = {authority.issue(authority.site("a"), csr).serial for _ in range(20)}
    assert len(serials) == 20
    assert all(len(serial) > 30 for serial in serials)


def test_an_aggregator_carries_its_hosts(authority: Authority) -> None:
    issued = authority.issue(
        authority.aggregator(), signing_request(new_key()), hosts=("agg.example.org", "10.0.0.1", "::1")
    )
    names = certificate_from_pem(issued.certificate_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["agg.example.org"]
    assert [str(each) for each in names.value.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]


def test_only_an_aggregator_has_hosts(authority: Authority) -> None:
    csr = signing_request(new_key())
    with pytest.raises(BadData, match="host name"):
        authority.issue(authority.site("a"), csr, hosts=("agg.example.org",))
    with pytest.raises(BadData, match="host name"):
        authority.issue(authority.aggregator(), csr)
    with pytest.raises(BadData, match="neither a DNS name nor an IP address"):
        authority.issue(authority.aggregator(), csr, hosts=("ä",))


def test_another_federation_is_refused(authority: Authority) -> None:
    with pytest.raises(BadData, match="not of federation"):
        authority.issue(Identity("other", Role.SITE, "a"), signing_request(new_key()))


def test_survives_its_folder(authority: Authority, tmp_path: Path) -> None:
    authority.save(tmp_path / "ca")
    again = Authority.load(tmp_path / "ca", CLOCK)
    assert (again.sha256, again.federation) == (authority.sha256, "f.example")
    assert (tmp_path / "ca" / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_refuses_a_key_that_others_can_read(authority: Authority, tmp_path: Path) -> None:
    authority.save(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 0640\): run chmod 600"):
        Authority.load(tmp_path, CLOCK)


def test_says_what_to_do_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="histofed-aggregator init"):
        Authority.load(tmp_path, CLOCK)


def test_refuses_the_key_of_another_ca(authority: Authority, tmp_path: Path) -> None:
    authority.save(tmp_path)
    other = Authority.create("f.example", CLOCK)
    (tmp_path / "ca.pem").write_bytes(other.certificate_pem)
    with pytest.raises(BadData, match="does not belong"):
        Authority.load(tmp_path, CLOCK)
