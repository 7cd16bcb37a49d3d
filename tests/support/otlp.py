"""An OTLP/gRPC collector over mutual TLS, for tests: keeps what arrives and lets a test wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import cast

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.pki import TestPki


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came over the wire."""

    sender: str
    """Common name of the client's certificate."""
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first span of a trace."""
    attributes: Mapping[str, object]
    resource: Mapping[str, object]
    links: tuple[str, ...]
    """Span ids."""
    events: int
    failed: bool
    status_message: str


class OtlpReceiver(TraceServiceServicer):
    """`with OtlpReceiver(pki) as receiver: ... receiver.wait_for(3)`; clients need a certificate of the same authority."""

    def __init__(self, pki: TestPki, port: int = 0) -> None:
        self._arrived = threading.Condition()
        self._spans: list[ReceivedSpan] = []
        self.raw: list[bytes] = []
        """Every request as it came, for tests that look for what must not be in it."""
        self._pki = pki
        pair = pki.issue("collector")
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_secure_port(
            f"127.0.0.1:{port}",
            grpc.ssl_server_credentials([(pair.key, pair.certificate)], pki.ca, require_client_auth=True),
        )

    @property
    def endpoint(self) -> str:
        """What a daemon is configured with."""
        return f"https://localhost:{self.port}"

    def configuration(self, folder: Path, name: str) -> str:
        """A `[telemetry]` table for the daemon `name`, with certificates that are written to `folder`."""
        pair = self._pki.issue(name)
        files = {"ca_file": self._pki.ca, "certificate_file": pair.certificate, "key_file": pair.key}
        lines = ["[telemetry]", f'otlp_endpoint = "{self.endpoint}"']
        for key, data in files.items():
            path = folder / f"otlp-{name}-{key}.pem"
            path.write_bytes(data)
            lines.append(f'{key} = "{path}"')
        return "\n".join(lines)

    @property
    def spans(self) -> list[ReceivedSpan]:
        """What arrived so far."""
        with self._arrived:
            return list(self._spans)

    def wait_for(self, count: int, seconds: float = 30.0) -> list[ReceivedSpan]:
        """Return as soon as `count` spans are there. Raises `TimeoutError`, naming what came."""
        return self.wait_until(lambda spans: len(spans) >= count, seconds)

    def wait_until(self, enough: Callable[[list[ReceivedSpan]], bool], seconds: float) -> list[ReceivedSpan]:
        """Return as soon as what arrived is enough. Raises `TimeoutError`, naming what came."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: enough(self._spans), seconds):
                raise TimeoutError(f"{len(self._spans)} spans arrived: {[span.name for span in self._spans]}")
            return list(self._spans)

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        """The collector's only method."""
        # a list of values by name, which grpc's stubs take for one value
        shown = cast("Mapping[str, Sequence[bytes]]", context.auth_context())
        sender = shown["x509_common_name"][0].decode()
        with self._arrived:
            self.raw.append(request.SerializeToString())
            for group in request.resource_spans:
                resource = _plain(group.resource.attributes)
                for scope in group.scope_spans:
                    self._spans.extend(_received(sender, resource, span) for span in scope.spans)
            self._arrived.notify_all()
        return ExportTraceServiceResponse()

    def __enter__(self) -> OtlpReceiver:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.stop(0).wait()


def _received(sender: str, resource: Mapping[str, object], span: Span) -> ReceivedSpan:
    return ReceivedSpan(
        sender=sender,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_plain(span.attributes),
        resource=resource,
        links=tuple(link.span_id.hex() for link in span.links),
        events=len(span.events),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        status_message=span.status.message,
    )


def _plain(attributes: Iterable[KeyValue]) -> dict[str, object]:
    return {item.key: _value(item.value) for item in attributes}


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
