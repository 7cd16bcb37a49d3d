"""Numbers for Prometheus, scraped as Prometheus does."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import given
from prometheus_client.parser import text_string_to_metric_families

from histofed.base.errors import ConfigError
from histofed.telemetry import attributes as names
from histofed.telemetry.metrics import NoMetrics, PrometheusMetrics
from histofed.telemetry.metrics_server import MetricsServer
from tests.unit.telemetry.identifiers import identifiers


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(page.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


@pytest.fixture
def server() -> Iterator[tuple[PrometheusMetrics, MetricsServer]]:
    metrics = PrometheusMetrics()
    serving = metrics.serve("127.0.0.1", 0)
    yield metrics, serving
    serving.close()


def test_a_scrape_sees_what_was_counted(server: tuple[PrometheusMetrics, MetricsServer]) -> None:
    metrics, serving = server
    metrics.count(names.ROUNDS_TOTAL, state="committed")
    metrics.count(names.ROUNDS_TOTAL, 2, state="abandoned")
    metrics.count(names.UPDATES_BYTES_TOTAL, 1000)
    metrics.set(names.SITES_CONNECTED, 4)
    metrics.set(names.SITE_CERTIFICATE_EXPIRY, 3600, site="north")
    metrics.observe(names.ROUND_SECONDS, 12)
    with urllib.request.urlopen(f"http://127.0.0.1:{serving.port}/metrics", timeout=10) as answer:
        seen = samples(answer.read())
    assert seen["histofed_rounds_total", (("state", "committed"),)] == 1
    assert seen["histofed_rounds_total", (("state", "abandoned"),)] == 2
    assert seen["histofed_updates_bytes_total", ()] == 1000
    assert seen["histofed_sites_connected", ()] == 4
    assert seen["histofed_site_certificate_expiry_seconds", (("site", "north"),)] == 3600
    assert seen["histofed_round_seconds_bucket", (("le", "15.0"),)] == 1
    assert seen["histofed_round_seconds_bucket", (("le", "5.0"),)] == 0
    assert seen["process_resident_memory_bytes", ()] > 0


def test_every_metric_is_there_from_the_start() -> None:
    page = PrometheusMetrics().render().decode()
    assert all(f"# HELP {metric.name} " in page for metric in names.METRICS)


def test_counters_with_a_closed_list_of_labels_begin_at_zero() -> None:
    """So that the first round that is abandoned is an increase."""
    seen = samples(PrometheusMetrics().render())
    assert seen["histofed_rounds_total", (("state", "abandoned"),)] == 0
    assert seen["histofed_tasks_total", (("state", "expired"),)] == 0
    assert seen["histofed_transfer_bytes_total", (("direction", "upload"), ("how", "copied"))] == 0
    assert seen["histofed_journal_records_total", ()] == 0
    assert not any(value == "other" for _, labels in seen for _, value in labels)


def test_a_site_that_left_is_forgotten() -> None:
    metrics = PrometheusMetrics()
    metrics.set(names.SITE_CERTIFICATE_EXPIRY, 1, site="north")
    metrics.forget(names.SITE_CERTIFICATE_EXPIRY, site="north")
    assert b'site="north"' not in metrics.render()


@given(identifiers)
def test_no_identifier_becomes_a_label(identifier: str) -> None:
    metrics = PrometheusMetrics()
    metrics.set(names.SITE_CERTIFICATE_EXPIRY, 1, site=identifier)
    metrics.count(names.TASKS_TOTAL, state=identifier)
    page = metrics.render()
    assert b'expiry_seconds{site="other"} 1.0' in page
    assert b'histofed_tasks_total{state="other"} 1.0' in page
    assert f'"{identifier}"'.encode() not in page


def test_a_label_is_present_on_every_instance() -> None:
    with pytest.raises(TypeError, match=r"has the labels \['state'\], not \[\]"):
        PrometheusMetrics().count(names.ROUNDS_TOTAL)


def test_a_port_that_is_taken_is_named(server: tuple[PrometheusMetrics, MetricsServer]) -> None:
    with pytest.raises(ConfigError, match=f"metrics cannot be served on 127.0.0.1:{server[1].port}: Address already in use"):
        PrometheusMetrics().serve("127.0.0.1", server[1].port)


def test_a_process_without_metrics_counts_into_nothing() -> None:
    nothing = NoMetrics()
    nothing.count(names.ROUNDS_TOTAL, state="open")
    nothing.set(names.SITES_CONNECTED, 1)
    nothing.observe(names.ROUND_SECONDS, 1)
    nothing.forget(names.SITE_CERTIFICATE_EXPIRY, site="north")
