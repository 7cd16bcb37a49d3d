from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from histofed.base.clock import FakeClock, SystemClock
from histofed.base.errors import BadData, DigestMismatch, NotAuthorised, NotFound
from histofed.cli.verification import load_ca, verify_file, verify_statement
from histofed.pki.authority import Authority
from histofed.pki.signing import sign
from histofed.statements import MODEL_TYPE, UPDATE_TYPE
from tests.support.signed_models import Federation, signed_model
from tests.support.users import as_nobody, needs_root, open_tmp_path

tmp_path = open_tmp_path


def now() -> datetime:
    """Asked by each test: a federation's certificates begin when it is made, which a long suite does late."""
    return SystemClock().now()


@pytest.fixture(scope="module")
def federation() -> Federation:
    return Federation.make()


def test_a_model_of_the_federation_is_verified(federation: Federation, tmp_path: Path) -> None:
    model = signed_model(federation.aggregator())
    path = tmp_path / "model.safetensors"
    path.write_bytes(model.server)

    verified = verify_statement(model.envelope, federation.authority.certificate, now())

    assert verified.digest == model.digest
    assert verified.part(None) == verify_file(path, verified)
    assert verified.part("shared")[1].bytes == len(model.shared)


def test_a_site_cannot_sign_a_model(federation: Federation) -> None:
    model = signed_model(federation.member(federation.authority.site("north")))

    with pytest.raises(NotAuthorised):
        verify_statement(model.envelope, federation.authority.certificate, now())


def test_another_federation_cannot_sign_a_model(federation: Federation) -> None:
    model = signed_model(Federation.make().aggregator())

    with pytest.raises(NotAuthorised, match="not issued by this federation's CA"):
        verify_statement(model.envelope, federation.authority.certificate, now())


def test_a_changed_statement_is_noticed(federation: Federation) -> None:
    model = signed_model(federation.aggregator())
    changed = replace(model.envelope, payload=model.envelope.payload.replace(b'"round":2', b'"round":3'))

    with pytest.raises(BadData, match="changed after signing"):
        verify_statement(changed, federation.authority.certificate, now())


def test_a_signed_update_is_no_model(federation: Federation) -> None:
    aggregator = federation.aggregator()
    envelope = sign(UPDATE_TYPE, signed_model(aggregator).envelope.payload, aggregator)

    with pytest.raises(BadData, match="not a model statement"):
        verify_statement(envelope, federation.authority.certificate, now())
    with pytest.raises(BadData, match="changed after signing"):
        verify_statement(replace(envelope, payload_type=MODEL_TYPE), federation.authority.certificate, now())


def test_a_model_outlives_the_certificate_that_signed_it_unless_a_moment_is_asked_for(federation: Federation) -> None:
    past = FakeClock(now() - timedelta(days=400))
    authority = Authority(federation.authority.certificate, federation.authority._key, past)
    model = signed_model(Federation(authority).aggregator())

    assert verify_statement(model.envelope, federation.authority.certificate).digest == model.digest
    with pytest.raises(NotAuthorised, match="was not valid at"):
        verify_statement(model.envelope, federation.authority.certificate, now())


def test_a_certificate_counts_only_while_it_is_valid(federation: Federation) -> None:
    model = signed_model(federation.aggregator())

    with pytest.raises(NotAuthorised, match="was not valid at"):
        verify_statement(model.envelope, federation.authority.certificate, now() + timedelta(days=400))


def test_a_changed_file_is_no_part_of_the_model(federation: Federation, tmp_path: Path) -> None:
    model = signed_model(federation.aggregator())
    verified = verify_statement(model.envelope, federation.authority.certificate, now())
    path = tmp_path / "model.safetensors"
    path.write_bytes(model.server + b"!")

    with pytest.raises(DigestMismatch, match="do not use it"):
        verify_file(path, verified)
    with pytest.raises(NotFound, match="there is no file"):
        verify_file(tmp_path / "nothing", verified)
    with pytest.raises(NotFound, match="it has server, shared"):
        verified.part("release")


def test_a_ca_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("hello", encoding="utf-8")

    with pytest.raises(BadData, match="not a certificate in PEM form"):
        load_ca(tmp_path / "ca.crt")
    with pytest.raises(NotFound, match="no CA certificate"):
        load_ca(tmp_path / "nothing")
    with pytest.raises(BadData, match=f"cannot read {tmp_path}: Is a directory"):
        load_ca(tmp_path)


@needs_root
def test_a_ca_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    file.touch(mode=0o600)
    with as_nobody(), pytest.raises(BadData, match=f"cannot read {file}: Permission denied"):
        load_ca(file)
