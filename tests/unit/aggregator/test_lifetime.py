"""The aggregator's own certificate comes to its end under a daemon that runs on."""

from __future__ import annotations

from datetime import timedelta

import pytest

from aggregator.lifetime import ending, tell
from histofed.base.clock import FakeClock
from histofed.base.health import Health
from tests.support.pki import Federation

RESTART = "restart the aggregator, which renews it"


@pytest.mark.parametrize(("day", "ok"), [(0, True), (304, True), (306, False), (364, False), (366, False)])
def test_the_condition_says_it_sixty_days_before_and_the_daemon_stays_ready(day: int, ok: bool) -> None:
    clock = FakeClock()
    credentials, health = Federation(clock=clock).aggregator(), Health(clock, required=())
    clock.jump(day * 86400)

    tell(credentials, clock, health)

    (condition,) = health.conditions()
    assert (condition.name, condition.ok, RESTART in condition.words) == ("certificate", ok, not ok)
    assert health.ready
    assert (f"ended on {credentials.not_after:%Y-%m-%d}" in condition.words) == (day > 365)


def test_one_that_ends_with_the_ca_is_renewed_by_no_restart() -> None:
    clock = FakeClock()
    federation = Federation(clock=clock)
    clock.jump(3640 * 86400)
    sentence = ending(federation.aggregator(), clock.now() + timedelta(days=1))
    assert sentence is not None
    assert "with the CA" in sentence
    assert RESTART not in sentence
