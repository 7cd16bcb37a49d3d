"""The OpenTelemetry half of `tracing.py`; imported only where an endpoint is configured (20 MB and 0.3 s).

Nothing is read from OTEL_* variables that could widen what is sent: sampler, limits and resource are given here, and the
provider is not registered globally, so no instrumentation of a library can write into it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import resources
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from histofed.base.errors import ConfigError
from histofed.telemetry import attributes as names
from histofed.telemetry.context import TraceContext
from histofed.telemetry.tracing import Recording, Resource

if TYPE_CHECKING:
    import grpc

EXPORT_SECONDS: Final = 3.0
"""How long one export may take before its batch is given up."""
CLOSE_SECONDS: Final = 5.0
"""How long a stop waits for a collector: a quarter of what a daemon has to let go of everything."""


class OpenTelemetry:
    """A tracer provider with one processor behind it."""

    def __init__(self, resource: Resource, processor: SpanProcessor) -> None:
        told, _ = names.keep(resource.attributes(), names.RESOURCE)
        self._identities = _Identities()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=resources.Resource(told),
            shutdown_on_exit=False,
            id_generator=self._identities,
            span_limits=SpanLimits(max_span_attributes=64, max_links=1024, max_events=0),
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("histofed")

    @classmethod
    def otlp(cls, endpoint: str, resource: Resource, credentials: grpc.ChannelCredentials) -> OpenTelemetry:
        """Batches to a collector, over TLS only. Raises `ConfigError`."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        if not endpoint.startswith("https://"):
            raise ConfigError(
                f"the telemetry endpoint must begin with https:// (it is {endpoint[:100]!r}): spans leave by TLS only"
            )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=False, credentials=credentials, timeout=EXPORT_SECONDS)
        return cls(resource, BatchSpanProcessor(exporter, schedule_delay_millis=2000))

    def begin(
        self,
        name: str,
        attributes: Mapping[str, names.Value],
        parent: TraceContext | None,
        identity: TraceContext | None,
        links: Sequence[TraceContext],
    ) -> Recording:
        """Start a span; see `tracing.Exporting`."""
        above = Context()  # an empty one: a span of another library must not become the parent
        if parent is not None:
            above = trace.set_span_in_context(trace.NonRecordingSpan(_foreign(parent)), above)
        with self._identities.given(identity):
            span = self._tracer.start_span(
                name,
                context=above,
                attributes=attributes,
                links=[trace.Link(_foreign(link)) for link in links],
                record_exception=False,
                set_status_on_exception=False,
            )
        return _Recording(span)

    def flush(self, seconds: float) -> bool:
        """Send what waits."""
        return self._provider.force_flush(int(seconds * 1000))

    def close(self) -> None:
        """Send what waits, then let go; what a collector does not take within `CLOSE_SECONDS` is lost."""
        # the SDK waits for its queue, an export's time for each batch; its own limit is no argument of this method
        closing = threading.Thread(target=self._provider.shutdown, name="histofed-telemetry-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class _Recording:
    """One span of the SDK behind `tracing.Recording`."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self._context = TraceContext(trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id))

    @property
    def context(self) -> TraceContext:
        return self._context

    def set(self, attributes: Mapping[str, names.Value]) -> None:
        self._span.set_attributes(attributes)

    def end(self, failed: bool) -> None:
        if failed:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


class _Identities(IdGenerator):
    """Random identifiers, except inside `given`, where the span that is started has exactly the identity given."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self._given: ContextVar[TraceContext | None] = ContextVar("histofed_identity", default=None)

    @contextlib.contextmanager
    def given(self, identity: TraceContext | None) -> Iterator[None]:
        token = self._given.set(identity)
        try:
            yield
        finally:
            self._given.reset(token)

    def generate_trace_id(self) -> int:
        given = self._given.get()
        return int(given.trace_id, 16) if given else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        given = self._given.get()
        return int(given.span_id, 16) if given else self._random.generate_span_id()


def _foreign(context: TraceContext) -> trace.SpanContext:
    """A context from elsewhere, in the SDK's form."""
    return trace.SpanContext(
        trace_id=int(context.trace_id, 16),
        span_id=int(context.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
