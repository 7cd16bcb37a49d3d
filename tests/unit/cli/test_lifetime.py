"""An operator's certificate in its last days."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from histofed.base.clock import FakeClock, SystemClock
from histofed.cli import lifetime
from histofed.pki.authority import Authority
from histofed.pki.pem import end_of
from tests.support.operator_service import RunningAggregator
from tests.support.signed_models import Federation
from tests.unit.cli.conftest import Ran

Histofed = Callable[..., Ran]


def age(aggregator: RunningAggregator, config: Path, days: int) -> None:
    """Put a certificate of 90 days in its place that was issued so many days ago."""
    authority = aggregator.federation.authority
    past = FakeClock(SystemClock().now() - timedelta(days=days))
    Federation(Authority(authority.certificate, authority._key, past)).write_operator(config.parent, aggregator.address)


@pytest.mark.parametrize("arguments", [("status",), ("sites", "list", "--json"), ("rounds", "watch", "demo")])
def test_every_command_of_an_operator_says_that_its_certificate_ends(
    histofed: Histofed, aggregator: RunningAggregator, config: Path, arguments: tuple[str, ...]
) -> None:
    age(aggregator, config, days=80)
    found = histofed(*arguments)
    assert found.error.count("this operator's certificate ends on 20") == 1
    assert "have `histofed-aggregator operator NAME --out DIR` run on the aggregator's host" in found.error
    assert "operator" not in found.out, "stdout is the answer's alone"


def test_as_long_as_there_is_time_nothing_is_said(histofed: Histofed, aggregator: RunningAggregator, config: Path) -> None:
    age(aggregator, config, days=75)
    assert histofed("status").error == ""


def test_the_last_fourteen_days_and_no_other() -> None:
    end = datetime(2026, 4, 1, 12, 30, tzinfo=UTC)
    pem = Federation.make(clock=FakeClock(end - timedelta(days=90))).operator().certificate_pem
    told = [days for days in (90, 15, 14, 1, 0, -1) if lifetime.words(pem, end - timedelta(days=days))]
    assert told == [14, 1, 0]
    assert "ends on 2026-04-01 12:30 UTC" in str(lifetime.words(pem, end))


@pytest.mark.parametrize("year", [2026, 2044, 2049, 2050, 2060])
def test_the_end_is_read_as_a_parser_reads_it(year: int) -> None:
    """Two ways of writing a time: RFC 5280 changes from one to the other with the year 2050."""
    credentials = Federation.make(clock=FakeClock(datetime(year, 11, 30, 1, 2, 3, tzinfo=UTC))).operator()
    assert end_of(credentials.certificate_pem) == credentials.not_after


@pytest.mark.parametrize("text", [b"", b"\xff", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_has_no_end(text: bytes) -> None:
    assert end_of(text) is None
