"""Export to a real OTLP/gRPC collector over mutual TLS."""

from __future__ import annotations

import socket
import time

import grpc
import pytest

from histofed.base.errors import ConfigError
from histofed.telemetry import attributes as names
from histofed.telemetry import otel
from histofed.telemetry.context import round_parent
from histofed.telemetry.tracing import Resource, Tracing
from tests.support.otlp import OtlpReceiver
from tests.support.pki import TestPki

RESOURCE = Resource("histofed-aggregator", "0.1.0", "aggregator", "demo")


@pytest.fixture(scope="module")
def pki() -> TestPki:
    return TestPki()


def credentials(pki: TestPki, issuer: TestPki | None = None) -> grpc.ChannelCredentials:
    pair = (issuer or pki).issue("aggregator")
    return grpc.ssl_channel_credentials(pki.ca, pair.key, pair.certificate)


def test_spans_arrive_at_a_collector(pki: TestPki) -> None:
    with OtlpReceiver(pki) as receiver:
        tracing = Tracing.otlp(receiver.endpoint, RESOURCE, credentials=credentials(pki))
        begun = tracing.root(names.ROUND_SAMPLE, round_parent("crc", 3), {names.EXPERIMENT_ID: "crc", "path": "/srv/tiles"})
        with begun, tracing.span(names.TASK_OFFER, {names.SITE_ID: "north"}) as offer:
            offer.outcome("ok")
        with pytest.raises(ValueError, match="x"), tracing.span(names.ROUND_AGGREGATE, links=[offer.context]):
            raise ValueError("x")
        tracing.close()
        spans = {span.name: span for span in receiver.wait_for(3)}
    sample, offered, aggregate = spans["round.sample"], spans["task.offer"], spans["round.aggregate"]
    assert sample.sender == "aggregator"
    assert (sample.trace_id, sample.span_id, sample.parent_id) == (
        round_parent("crc", 3).trace_id,
        round_parent("crc", 3).span_id,
        "",
    )
    assert sample.attributes == {names.EXPERIMENT_ID: "crc"}
    assert sample.resource["service.instance.id"] == "aggregator"
    assert (offered.parent_id, offered.attributes) == (sample.span_id, {names.SITE_ID: "north", names.OUTCOME: "ok"})
    assert (aggregate.failed, aggregate.status_message, aggregate.events) == (True, "", 0)
    assert aggregate.links == (offered.span_id,)
    assert tracing.dropped == 1


def test_spans_leave_in_batches_without_being_asked(pki: TestPki) -> None:
    with OtlpReceiver(pki) as receiver:
        tracing = Tracing.otlp(receiver.endpoint, RESOURCE, credentials=credentials(pki))
        with tracing.span(names.TASK_OFFER):
            pass
        assert [span.name for span in receiver.wait_for(1)] == ["task.offer"]
        tracing.close()


def test_a_flush_sends_what_waits(pki: TestPki) -> None:
    with OtlpReceiver(pki) as receiver:
        tracing = Tracing.otlp(receiver.endpoint, RESOURCE, credentials=credentials(pki))
        with tracing.span(names.TASK_OFFER):
            pass
        assert tracing.flush()
        assert len(receiver.spans) == 1
        tracing.close()


def test_a_collector_that_hangs_is_not_waited_for(pki: TestPki, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many exports as there are batches would each take their time, and a daemon has twenty seconds for its stop."""
    monkeypatch.setattr(otel, "CLOSE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = Tracing.otlp(f"https://127.0.0.1:{silent.getsockname()[1]}", RESOURCE, credentials=credentials(pki))
        with tracing.span(names.TASK_OFFER):
            pass
        begun = time.monotonic()
        tracing.close()
        assert time.monotonic() - begun < otel.EXPORT_SECONDS / 2


def test_a_foreign_certificate_delivers_nothing_and_disturbs_nothing(pki: TestPki) -> None:
    with OtlpReceiver(pki) as receiver:
        tracing = Tracing.otlp(receiver.endpoint, RESOURCE, credentials=credentials(pki, issuer=TestPki()))
        with tracing.span(names.TASK_OFFER):
            pass
        tracing.close()
        assert receiver.spans == []


@pytest.mark.parametrize("endpoint", ["http://localhost:4317", "localhost:4317", ""])
def test_plaintext_is_refused(pki: TestPki, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="must begin with https://"):
        Tracing.otlp(endpoint, RESOURCE, credentials=credentials(pki))
