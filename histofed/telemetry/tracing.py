"""Spans as the daemons make them: `with tracing.span(names.TASK_TRAIN, {...}) as span`.

Without an endpoint (`Tracing.off()`) nothing of OpenTelemetry is imported, and contexts are still carried on: the audit
journal and the next process down the line see the same trace either way. With one (`Tracing.otlp`) spans are exported in
batches in the background; a collector that is down costs spans, never work.

Everything passes the allow-list of `attributes.py` here, before OpenTelemetry sees it. An error is told by its class and
exit code: its message may quote a file name and its stack holds paths.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from histofed.base.errors import BadData, HistofedError
from histofed.telemetry import attributes as names
from histofed.telemetry.context import TraceContext

if TYPE_CHECKING:
    import grpc

NO_ATTRIBUTES: Mapping[str, object] = {}


@dataclass(frozen=True)
class Resource:
    """Which process speaks. Each value passes the allow-list too."""

    service: str
    """`histofed-agent` or `histofed-aggregator`."""
    version: str
    instance: str
    """Stable over restarts: a site's name, `aggregator`."""
    environment: str = "production"

    def attributes(self) -> dict[str, str]:
        """In OpenTelemetry's names."""
        return {
            "service.namespace": "histofed",
            "service.name": self.service,
            "service.version": self.version,
            "service.instance.id": self.instance,
            "deployment.environment.name": self.environment,
        }


class Recording(Protocol):
    """A span that is on its way to an exporter; every value has passed the allow-list."""

    @property
    def context(self) -> TraceContext: ...

    def set(self, attributes: Mapping[str, names.Value]) -> None: ...

    def end(self, failed: bool) -> None: ...


class Exporting(Protocol):
    """What stands behind `Tracing` when spans are exported (`otel.py`)."""

    def begin(
        self,
        name: str,
        attributes: Mapping[str, names.Value],
        parent: TraceContext | None,
        identity: TraceContext | None,
        links: Sequence[TraceContext],
    ) -> Recording:
        """Start a span below `parent`; with `identity` it is the first of its trace and has exactly that context."""
        ...

    def flush(self, seconds: float) -> bool: ...

    def close(self) -> None: ...


class Span:
    """A span while its block lasts."""

    def __init__(self, context: TraceContext, recording: Recording | None, tracing: Tracing) -> None:
        self.context = context
        """For the audit journal, and for what carries the trace on."""
        self._recording = recording
        self._tracing = tracing
        self._failed = False

    def set(self, attributes: Mapping[str, object]) -> None:
        """Add attributes; those that are not on the allow-list, or not in its form, are dropped and counted."""
        if self._recording is not None:
            self._recording.set(self._tracing.keep(attributes))

    def outcome(self, word: str, error: BaseException | None = None) -> None:
        """How it ended, in a word from `attributes.OUTCOMES`; an error adds its class and exit code."""
        self._failed = self._failed or error is not None
        self.set({names.OUTCOME: word})
        if error is not None:
            self.set({names.ERROR_TYPE: names.error_type(error)})
        if isinstance(error, HistofedError):
            self.set({names.ERROR_CODE: error.exit_code})

    def end(self) -> None:
        """Called at the end of the block."""
        if self._recording is not None:
            self._recording.end(self._failed)


class Tracing:
    """Makes spans and carries their context; one per process, built by `daemon.py`."""

    def __init__(self, exporting: Exporting | None) -> None:
        self._exporting = exporting
        self._current: ContextVar[TraceContext | None] = ContextVar("histofed_span", default=None)
        self._dropped = 0

    @classmethod
    def off(cls) -> Tracing:
        """No export; contexts are carried all the same."""
        return cls(None)

    @classmethod
    def otlp(cls, endpoint: str, resource: Resource, *, credentials: grpc.ChannelCredentials) -> Tracing:
        """Export to an OTLP/gRPC collector at `https://host:port`. Raises `ConfigError` for another address.

        The credentials are fixed: after a certificate was renewed, build another `Tracing` and `close` this one.
        """
        from histofed.telemetry.otel import OpenTelemetry

        return cls(OpenTelemetry.otlp(endpoint, resource, credentials))

    @property
    def dropped(self) -> int:
        """How many names and values the allow-list kept back so far."""
        return self._dropped

    def span(
        self,
        name: str,
        attributes: Mapping[str, object] = NO_ATTRIBUTES,
        *,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
    ) -> contextlib.AbstractContextManager[Span]:
        """A span below `parent`, or below the span around it, or first in a trace of its own.

        An error that leaves the block becomes the outcome `failed` (`cancelled` for a cancelled task) and goes on.
        """
        return self._spanning(name, attributes, parent or self._current.get(), None, links)

    def root(
        self,
        name: str,
        identity: TraceContext,
        attributes: Mapping[str, object] = NO_ATTRIBUTES,
    ) -> contextlib.AbstractContextManager[Span]:
        """The first span of a trace whose identity is derived: `round_parent(experiment, round)`."""
        return self._spanning(name, attributes, None, identity, ())

    def inject(self, context: TraceContext | None = None) -> tuple[tuple[str, str], ...]:
        """gRPC metadata that carries `context`, or the span around the call; empty where there is neither."""
        carried = context or self._current.get()
        return () if carried is None else (("traceparent", carried.traceparent),)

    def extract(self, metadata: Iterable[tuple[str, str | bytes]]) -> TraceContext | None:
        """The caller's context; None where there is none, or not a valid one (W3C: then a new trace begins)."""
        for key, value in metadata:
            if key == "traceparent" and isinstance(value, str):
                with contextlib.suppress(BadData):
                    return TraceContext.parse(value)
        return None

    def keep(self, attributes: Mapping[str, object]) -> dict[str, names.Value]:
        """What the allow-list lets through; the rest is counted."""
        kept, dropped = names.keep(attributes, names.ATTRIBUTES)
        self._dropped += dropped
        return kept

    def flush(self, seconds: float = 5.0) -> bool:
        """Send what waits; False when not everything left in time. Blocks."""
        return self._exporting is None or self._exporting.flush(seconds)

    def close(self) -> None:
        """Send what waits and let go. Blocks for five seconds at most when the collector is down or hangs."""
        if self._exporting is not None:
            self._exporting.close()

    @contextlib.contextmanager
    def _spanning(
        self,
        name: str,
        attributes: Mapping[str, object],
        parent: TraceContext | None,
        identity: TraceContext | None,
        links: Sequence[TraceContext],
    ) -> Iterator[Span]:
        span = self._begin(name, attributes, parent, identity, links)
        token = self._current.set(span.context)
        try:
            yield span
        except BaseException as error:
            stopped = isinstance(error, asyncio.CancelledError | KeyboardInterrupt | GeneratorExit)
            span.outcome("cancelled" if stopped else "failed", error)
            raise
        finally:
            self._current.reset(token)
            span.end()

    def _begin(
        self,
        name: str,
        attributes: Mapping[str, object],
        parent: TraceContext | None,
        identity: TraceContext | None,
        links: Sequence[TraceContext],
    ) -> Span:
        if self._exporting is None:
            # nobody will ever see this span, so whoever is below it belongs to the one above
            return Span(identity or parent or TraceContext.new(), None, self)
        told = names.span_name(name)
        self._dropped += told != name
        recording = self._exporting.begin(told, self.keep(attributes), parent, identity, links)
        return Span(recording.context, recording, self)
