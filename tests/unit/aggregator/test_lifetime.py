"""The aggregator's own certificate is renewed while the daemon serves, and its end is told where it could not be."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from aggregator.lifetime import OwnCertificate, due, ending
from histofed.audit.journal import Journal
from histofed.audit.verify import records
from histofed.base.clock import FakeClock
from histofed.base.errors import CannotWriteState
from histofed.base.health import Health
from histofed.pki.credentials import Credentials
from tests.support.pki import LOOPBACK, Federation

DAY = 86400


@dataclass
class Renewing:
    """A certificate that was issued now, where it is kept and what is journalled."""

    own: OwnCertificate
    clock: FakeClock
    path: Path
    journal: Journal

    def journalled(self) -> list[str]:
        """Serials of the certificates that were issued."""
        return [
            str(one.subject["serial"]) for one in records(self.path.parent / "journal") if one.action == "identity.renewal"
        ]


@pytest.fixture
def renewing(tmp_path: Path) -> Renewing:
    clock, path = FakeClock(), tmp_path / "aggregator.pem"
    federation = Federation(clock=clock)
    first = federation.aggregator()
    first.save(path)
    journal = Journal(tmp_path / "journal", clock, "test")
    return Renewing(OwnCertificate(first, path, LOOPBACK, federation.aggregator, journal, clock), clock, path, journal)


def test_the_next_one_is_issued_at_half_its_life_and_once(renewing: Renewing) -> None:
    first = renewing.own.current()
    renewing.clock.jump(181 * DAY)
    renewing.own.renew()
    assert renewing.own.current() is first
    renewing.clock.jump(2 * DAY)
    renewing.own.renew()
    second = renewing.own.current()
    assert second.serial != first.serial
    assert renewing.own.ends() > first.not_after
    renewing.own.renew()
    assert renewing.own.current() is second
    assert Credentials.load(renewing.path).serial == second.serial
    assert renewing.journalled() == [second.serial]


def test_a_disk_that_refuses_leaves_the_old_one_and_the_next_turn_tries_again(
    renewing: Renewing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = renewing.own.current()
    renewing.clock.jump(200 * DAY)
    with monkeypatch.context() as patched, pytest.raises(CannotWriteState):
        patched.setattr(os, "fdatasync", full)
        renewing.own.renew()
    with monkeypatch.context() as patched, pytest.raises(CannotWriteState):
        patched.setattr(os, "fsync", full)
        renewing.own.renew()
    assert renewing.own.current() is first
    assert Credentials.load(renewing.path).serial == first.serial
    renewing.own.renew()
    assert renewing.own.current() is not first


@pytest.mark.parametrize(("days", "wanted"), [(-30, True), (0, False), (183, True), (3700, False)])
def test_when_the_next_one_is_due(days: int, wanted: bool) -> None:
    """A clock that was years ahead for a while dates certificates that nobody takes once it is right again."""
    clock = FakeClock()
    found = Federation(clock=clock).aggregator()
    assert due(found, clock.now() + timedelta(days=days)) == wanted


@pytest.mark.parametrize(
    ("hosts", "wanted"),
    [
        (("hub.example.org",), True),
        (("LocalHost", "127.0.0.1"), False),
        (("2001:DB8:0::0001", "::ffff:10.0.0.1"), True),
    ],
)
def test_another_public_host_is_reason_enough_once(
    renewing: Renewing, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...], wanted: bool
) -> None:
    """Addresses can be written in several ways; one that the certificate writes in another way is there."""
    own, federation = renewing.own, Federation(clock=renewing.clock)
    monkeypatch.setattr(own, "_hosts", hosts)
    monkeypatch.setattr(own, "_issue", lambda: federation.aggregator(hosts))
    for _ in range(3):
        own.begin()
        own.renew()
    assert len(renewing.journalled()) == wanted


def test_a_host_that_no_certificate_has_makes_no_stream_of_them(renewing: Renewing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing.own, "_hosts", ("hub.example.org",))
    renewing.own.begin()
    for _ in range(3):
        renewing.own.renew()
    assert len(renewing.journalled()) == 1


def test_none_is_issued_that_could_not_end_later_than_this_one() -> None:
    clock = FakeClock()
    federation = Federation(clock=clock)
    clock.jump(3640 * DAY)
    found = federation.aggregator()
    assert found.not_after == found.ca.not_valid_after_utc
    assert not due(found, found.not_after - timedelta(seconds=1))


@pytest.mark.parametrize(("day", "ok"), [(0, True), (304, True), (306, False), (364, False), (366, False)])
def test_the_condition_says_it_sixty_days_before_and_the_daemon_stays_ready(renewing: Renewing, day: int, ok: bool) -> None:
    health = Health(renewing.clock, required=())
    renewing.clock.jump(day * DAY)

    renewing.own.tell(health)

    (condition,) = health.conditions()
    told = "a daemon that runs renews it from its half on" in condition.words
    assert (condition.name, condition.ok, told) == ("certificate", ok, not ok)
    assert health.ready
    assert (f"ended on {renewing.own.ends():%Y-%m-%d}" in condition.words) == (day > 365)


def test_one_that_ends_with_the_ca_is_renewed_by_nobody() -> None:
    clock = FakeClock()
    federation = Federation(clock=clock)
    clock.jump(3640 * DAY)
    sentence = ending(federation.aggregator(), clock.now() + timedelta(days=1))
    assert sentence is not None
    assert "with the CA" in sentence
    assert "renews it" not in sentence
