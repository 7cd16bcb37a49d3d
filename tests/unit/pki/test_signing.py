"""Envelopes: who signed what, when, and nothing that could be moved elsewhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from histofed.base.clock import FakeClock
from histofed.base.errors import BadData, HistofedError, NotAuthorised
from histofed.pki.identity import Identity
from histofed.pki.signing import Envelope, pae, sign, verify
from tests.support.pki import Federation

CLOCK = FakeClock()
FEDERATION = Federation(clock=CLOCK)
SITE = FEDERATION.site("north")
KIND = "application/vnd.histofed.update.v1+json"
ENVELOPE = sign(KIND, b'{"round":1}', SITE)


def check(envelope: Envelope, *, kind: str = KIND, signer: Identity = SITE.identity, at: datetime | None = None) -> None:
    verify(envelope, ca=FEDERATION.authority.certificate, payload_type=kind, signer=signer, at=at or CLOCK.now())


def test_pre_authentication_encoding_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(st.text(max_size=40), st.binary(max_size=80))
def test_what_was_signed_verifies(kind: str, payload: bytes) -> None:
    check(sign(kind, payload, SITE), kind=kind)


@given(st.integers(0, len(ENVELOPE.payload) * 8 - 1))
def test_one_bit_of_the_payload_breaks_it(bit: int) -> None:
    changed = bytearray(ENVELOPE.payload)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadData, match="changed after signing"):
        check(replace(ENVELOPE, payload=bytes(changed)))


# a negative serial number is only warned about by today's cryptography
@pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")
@given(st.integers(0, len(ENVELOPE.certificate) * 8 - 1))
@example(127)
def test_one_bit_of_the_certificate_breaks_it(bit: int) -> None:
    changed = bytearray(ENVELOPE.certificate)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(HistofedError):
        check(replace(ENVELOPE, certificate=bytes(changed)))


@given(st.binary(max_size=80))
def test_any_other_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(BadData, match="changed after signing"):
        check(replace(ENVELOPE, signature=signature))


def test_a_signature_cannot_move_to_another_type() -> None:
    with pytest.raises(BadData, match="of type"):
        check(ENVELOPE, kind="application/vnd.histofed.model.v1+json")
    with pytest.raises(BadData, match="changed after signing"):
        check(replace(ENVELOPE, payload_type="other"), kind="other")


def test_another_member_is_not_the_signer() -> None:
    with pytest.raises(NotAuthorised, match=r"signed by spiffe://test\.example/site/north, it must be signed by"):
        check(ENVELOPE, signer=FEDERATION.authority.site("south"))
    operator = sign(KIND, b"{}", FEDERATION.operator("north"))
    with pytest.raises(NotAuthorised, match="operator/north"):
        check(operator)


def test_another_ca_does_not_count() -> None:
    foreign = Federation(clock=CLOCK)
    with pytest.raises(NotAuthorised, match="not issued by this federation's CA"):
        check(sign(KIND, b"{}", foreign.site("north")))


def test_only_at_a_time_when_the_certificate_is_valid() -> None:
    check(ENVELOPE, at=SITE.not_after)
    for at in (SITE.not_after + timedelta(seconds=1), SITE.not_before - timedelta(seconds=1)):
        with pytest.raises(NotAuthorised, match="was not valid at"):
            check(ENVELOPE, at=at)


def test_the_aggregator_signs_too() -> None:
    aggregator = FEDERATION.aggregator()
    check(sign(KIND, b"model", aggregator), signer=aggregator.identity)
