"""Spans: where they stand in the trace, and what can never be in them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from histofed.base.errors import AggregatorUnavailable, BadData
from histofed.telemetry import attributes as names
from histofed.telemetry.context import TraceContext, round_parent
from histofed.telemetry.otel import OpenTelemetry
from histofed.telemetry.tracing import Resource, Tracing
from tests.unit.telemetry.identifiers import identifiers

RESOURCE = Resource("histofed-agent", "0.1.0", "north")


class Recorder:
    """A process that exports into memory."""

    def __init__(self, resource: Resource = RESOURCE) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracing = Tracing(OpenTelemetry(resource, SimpleSpanProcessor(self._exporter)))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def only(self) -> ReadableSpan:
        (span,) = self.spans
        return span


def identity(span: ReadableSpan) -> TraceContext:
    return TraceContext(format_trace_id(span.context.trace_id), format_span_id(span.context.span_id))


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else format_span_id(span.parent.span_id)


# -- where a span stands -------------------------------------------------------------------------------------------------


def test_a_rounds_first_span_is_the_rounds_parent() -> None:
    recorder = Recorder()
    with recorder.tracing.root(names.ROUND_SAMPLE, round_parent("crc", 3), {names.ROUND_NUMBER: 3}) as span:
        assert span.context == round_parent("crc", 3)
    told = recorder.only()
    assert (told.name, identity(told), parent_of(told)) == ("round.sample", round_parent("crc", 3), None)
    assert dict(told.attributes or {}) == {names.ROUND_NUMBER: 3}


def test_spans_of_two_processes_are_one_trace() -> None:
    aggregator, agent = Recorder(), Recorder()
    with aggregator.tracing.span(names.TASK_OFFER, parent=round_parent("crc", 3)) as offer:
        metadata = aggregator.tracing.inject()
    with agent.tracing.span(names.TASK_TRAIN, parent=agent.tracing.extract(metadata)):
        pass
    offered, trained = aggregator.only(), agent.only()
    assert parent_of(offered) == round_parent("crc", 3).span_id
    assert parent_of(trained) == offer.context.span_id
    assert identity(trained).trace_id == identity(offered).trace_id == round_parent("crc", 3).trace_id


def test_spans_inside_spans_are_below_them() -> None:
    recorder = Recorder()
    with recorder.tracing.span(names.TASK_TRAIN) as outer, recorder.tracing.span(names.TASK_UPLOAD) as inner:
        pass
    with recorder.tracing.span(names.TASK_ADMIT):
        pass
    below, above, apart = recorder.spans
    assert parent_of(below) == outer.context.span_id
    assert inner.context.trace_id == outer.context.trace_id != identity(apart).trace_id
    assert parent_of(above) is None


def test_a_derived_identity_is_used_once() -> None:
    recorder = Recorder()
    with recorder.tracing.root(names.ROUND_SAMPLE, round_parent("crc", 1)), recorder.tracing.span(names.TASK_OFFER) as offer:
        assert offer.context.span_id != round_parent("crc", 1).span_id


async def test_tasks_of_the_loop_do_not_see_each_others_spans() -> None:
    recorder = Recorder()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def one() -> None:
        with recorder.tracing.span(names.TASK_TRAIN):
            entered.set()
            await leave.wait()

    task = asyncio.create_task(one())
    await entered.wait()
    assert recorder.tracing.inject() == ()
    leave.set()
    await task


def test_links_are_kept() -> None:
    recorder = Recorder()
    offers = [TraceContext.new(), TraceContext.new()]
    with recorder.tracing.span(names.ROUND_AGGREGATE, links=offers):
        pass
    assert [format_span_id(link.context.span_id) for link in recorder.only().links] == [offer.span_id for offer in offers]


@pytest.mark.parametrize(
    "metadata",
    [(), (("traceparent", "nonsense"),), (("traceparent", b"bytes"),), (("other", round_parent("a", 1).traceparent),)],
)
def test_a_caller_without_a_context_is_accepted(metadata: tuple[tuple[str, str | bytes], ...]) -> None:
    assert Tracing.off().extract(metadata) is None


# -- how a span ends -----------------------------------------------------------------------------------------------------


def test_an_outcome_is_told() -> None:
    recorder = Recorder()
    with recorder.tracing.span(names.TASK_CONSENT) as span:
        span.outcome("declined")
    assert dict(recorder.only().attributes or {}) == {names.OUTCOME: "declined"}
    assert recorder.only().status.status_code is StatusCode.UNSET


def test_an_error_is_told_by_class_and_code_alone() -> None:
    recorder = Recorder()
    with pytest.raises(BadData), recorder.tracing.span(names.TASK_TRAIN):
        raise BadData("/srv/histology/TCGA-AA-3488/tile_17.png cannot be read")
    told = recorder.only()
    assert dict(told.attributes or {}) == {names.OUTCOME: "failed", names.ERROR_TYPE: "BadData", names.ERROR_CODE: 65}
    assert (told.status.status_code, told.status.description, tuple(told.events)) == (StatusCode.ERROR, None, ())


def test_an_error_that_was_dealt_with_can_be_told() -> None:
    recorder = Recorder()
    with recorder.tracing.span(names.TASK_UPLOAD) as span:
        span.outcome("expired", AggregatorUnavailable("10.0.0.1 does not answer"))
    told = recorder.only()
    assert (told.attributes or {})[names.ERROR_CODE] == 69
    assert told.status.status_code is StatusCode.ERROR


async def test_a_cancelled_task_is_told_as_cancelled() -> None:
    recorder = Recorder()
    entered = asyncio.Event()

    async def work() -> None:
        with recorder.tracing.span(names.TASK_TRAIN):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (recorder.only().attributes or {})[names.OUTCOME] == "cancelled"


# -- what can never be in a span -----------------------------------------------------------------------------------------


@given(identifier=identifiers, name=st.sampled_from(sorted(names.ATTRIBUTES)))
def test_no_identifier_reaches_an_exporter(identifier: str, name: str) -> None:
    recorder = Recorder(Resource(identifier, identifier, identifier, identifier))
    tracing = recorder.tracing
    with tracing.span(identifier, {name: identifier, identifier: 1}) as span:
        span.set({name: identifier, identifier: identifier})
        span.outcome(identifier, ValueError(identifier))
        with pytest.raises(OSError, match="x"), tracing.root(identifier, round_parent("crc", 1), {name: identifier}):
            raise OSError(2, "x", identifier)
        assert tracing.extract([("traceparent", identifier), (identifier, identifier)]) is None
        with tracing.span(names.TASK_TRAIN, {name: [identifier], "x": {"y": identifier}}, links=[span.context]):
            pass
    sent = "\n".join(span.to_json() for span in recorder.spans)
    assert json.dumps(identifier)[1:-1] not in sent
    assert {span.name for span in recorder.spans} == {"other", "task.train"}
    assert tracing.dropped == 2 + 2 + 1 + 2 + 1 + 1 + 1


def test_only_our_own_resource_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=ws-dr-doe")
    recorder = Recorder()
    with recorder.tracing.span(names.TASK_TRAIN):
        pass
    assert dict(recorder.only().resource.attributes) == {
        "service.namespace": "histofed",
        "service.name": "histofed-agent",
        "service.version": "0.1.0",
        "service.instance.id": "north",
        "deployment.environment.name": "production",
    }


# -- off -----------------------------------------------------------------------------------------------------------------


def test_switched_off_a_context_is_still_carried() -> None:
    tracing = Tracing.off()
    with tracing.root(names.ROUND_SAMPLE, round_parent("crc", 3)) as span:
        assert span.context == round_parent("crc", 3)
        with tracing.span(names.TASK_OFFER, {"secret": "x"}) as inner:
            inner.outcome("ok")
            assert inner.context == round_parent("crc", 3)
        assert tracing.inject() == (("traceparent", round_parent("crc", 3).traceparent),)
    assert tracing.inject() == ()
    assert tracing.flush()
    tracing.close()


def test_switched_off_a_span_of_its_own_has_a_trace_for_the_journal() -> None:
    tracing = Tracing.off()
    with tracing.span(names.TASK_TRAIN) as first, tracing.span(names.TASK_UPLOAD) as second:
        assert first.context.trace_id == second.context.trace_id
    with tracing.span(names.TASK_TRAIN) as third:
        assert third.context.trace_id != first.context.trace_id


def test_switched_off_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from histofed.telemetry.tracing import Tracing; from histofed.telemetry.metrics import NoMetrics\n"
        "import histofed.telemetry.logs\n"
        "with Tracing.off().span('task.train'): pass\n"
        "sys.exit(any(name.partition('.')[0] in {'opentelemetry', 'grpc', 'prometheus_client'} for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
