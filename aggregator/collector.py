"""Where the aggregator's traces go: the OTLP collector that its `[telemetry]` names, over TLS; nowhere where none is named.

The daemon is the caller.
"""

from __future__ import annotations

import grpc

from aggregator.config import Telemetry
from histofed import __version__
from histofed.telemetry.collector import read_tls
from histofed.telemetry.tracing import Resource, Tracing


def tracing_of(instance: str, config: Telemetry) -> Tracing:
    """What the aggregator's spans go to. Raises `ConfigError` for a file that cannot be read or an address that is none."""
    if not config.otlp_endpoint:
        return Tracing.off()
    resource = Resource("histofed-aggregator", __version__, instance, config.environment)
    return Tracing.otlp(config.otlp_endpoint, resource, credentials=grpc.ssl_channel_credentials(*read_tls(config)))
