"""The identity file: one file, one owner, parts that belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import BadData, ConfigError, NotEnrolled
from histofed.pki.credentials import Credentials
from histofed.pki.keys import new_key
from tests.support.pki import Federation

FEDERATION = Federation()
SITE = FEDERATION.site()


def test_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    SITE.save(path)
    again = Credentials.load(path)
    assert (again.identity, again.serial, again.ca_sha256) == (SITE.identity, SITE.serial, FEDERATION.authority.sha256)
    assert again.key_pem == SITE.key_pem
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_missing_file_says_enrol_first(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled, match="enrol first"):
        Credentials.load(tmp_path / "identity.pem")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_refuses_a_key_that_others_can_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.pem"
    SITE.save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="can be read by others"):
        Credentials.load(path)


@pytest.mark.parametrize("content", [b"", b"rubbish", SITE.key_pem, SITE.chain_pem, SITE.key_pem + SITE.certificate_pem])
def test_refuses_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BadData):
        Credentials.load(path)


@pytest.mark.parametrize("content", [b"x", FEDERATION.operator().key_pem + SITE.chain_pem])
def test_a_damaged_file_is_named_with_what_its_holder_can_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BadData, match=rf"{path} .*: enrol again with a new join line$"):
        Credentials.load(path)
    with pytest.raises(BadData, match=rf"{path} .*: take another$"):
        Credentials.load(path, "take another")


def test_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Credentials.load(tmp_path)


def test_refuses_the_certificate_of_another_key() -> None:
    with pytest.raises(BadData, match="another key"):
        Credentials.make(new_key(), SITE.certificate_pem, SITE.ca_pem)


def test_refuses_another_ca() -> None:
    with pytest.raises(BadData, match="not issued by this federation's CA"):
        Credentials.make(SITE.key, SITE.certificate_pem, Federation().authority.certificate_pem)


def test_never_prints_its_key() -> None:
    assert "PRIVATE" not in repr(SITE)
    assert "key" not in repr(SITE)


@given(st.floats(0, 1, exclude_max=True))
def test_renewal_is_around_half_life(jitter: float) -> None:
    life = SITE.not_after - SITE.not_before
    assert 0.399 * life < SITE.renew_at(jitter) - SITE.not_before < 0.601 * life
