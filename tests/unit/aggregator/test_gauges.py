"""What alerts read: sites, open rounds, conditions, disk and certificates as they are at the moment of a look."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aggregator.gauges import Gauges
from histofed.base.clock import FakeClock
from histofed.base.health import Health
from histofed.base.ids import ExperimentId, RoundKey, SiteId
from histofed.telemetry.metrics import PrometheusMetrics


@dataclass
class Open:
    key: RoundKey
    deadline: datetime | None


@dataclass
class World:
    """The parts that are read, as plain values."""

    open_rounds: list[Open] = field(default_factory=list)
    connected: set[str] = field(default_factory=set)
    expiries: dict[SiteId, datetime] = field(default_factory=dict)
    dropped: int = 0

    def certificate_expiries(self) -> dict[SiteId, datetime]:
        return self.expiries


@dataclass
class Look:
    world: World
    clock: FakeClock
    health: Health
    metrics: PrometheusMetrics
    gauges: Gauges

    def take(self) -> dict[str, float]:
        self.gauges.refresh()
        families = text_string_to_metric_families(self.metrics.render().decode())
        return {
            " ".join([sample.name, *sample.labels.values()]): sample.value
            for family in families
            for sample in family.samples
        }


@pytest.fixture
def look(tmp_path: Path) -> Look:
    clock, world, metrics = FakeClock(), World(), PrometheusMetrics()
    health = Health(clock, required=("journal",))
    parts: Any = cast("Any", world)
    gauges = Gauges(
        metrics=metrics,
        tracing=parts,
        engine=parts,
        fleet=parts,
        members=parts,
        health=health,
        clock=clock,
        state=tmp_path,
        certificate_ends=(clock.now() + timedelta(days=100)).replace,
    )
    return Look(world, clock, health, metrics, gauges)


def test_a_round_past_its_deadline_is_below_zero_and_forgotten_when_it_ends(look: Look) -> None:
    look.world.open_rounds = [Open(RoundKey(ExperimentId("demo"), 3), look.clock.now() - timedelta(minutes=6))]
    assert look.take()["histofed_round_deadline_seconds demo"] == -360
    look.world.open_rounds = []
    assert not any(name.startswith("histofed_round_deadline_seconds") for name in look.take())


def test_a_round_that_is_planned_has_no_deadline_yet(look: Look) -> None:
    look.world.open_rounds = [Open(RoundKey(ExperimentId("demo"), 1), None)]
    assert not any(name.startswith("histofed_round_deadline_seconds") for name in look.take())


def test_a_site_is_silent_and_its_certificate_runs_out(look: Look) -> None:
    look.world.expiries = {SiteId(name): look.clock.now() + timedelta(hours=1) for name in ("north", "south")}
    look.world.connected = {"north"}
    seen = look.take()
    assert (seen["histofed_site_connected north"], seen["histofed_site_connected south"]) == (1, 0)
    assert seen["histofed_sites_connected"] == 1
    assert seen["histofed_site_certificate_expiry_seconds south"] == 3600
    assert seen["histofed_certificate_expiry_seconds"] == 100 * 86400


def test_conditions_as_they_are(look: Look) -> None:
    assert look.take()["histofed_condition journal"] == 0, "nobody has said that it can be written"
    look.health.set("journal", True, "audit records are written")
    look.health.set("disk", False, "full")
    seen = look.take()
    assert (seen["histofed_condition journal"], seen["histofed_condition disk"]) == (1, 0)
    assert seen["histofed_disk_free_bytes"] > 0


def test_what_the_tracing_keeps_back_is_counted_once(look: Look) -> None:
    assert look.take()["histofed_telemetry_dropped_total"] == 0
    look.world.dropped = 3
    assert [look.take()["histofed_telemetry_dropped_total"] for _ in range(2)] == [3, 3]
    look.world.dropped = 4
    assert look.take()["histofed_telemetry_dropped_total"] == 4
