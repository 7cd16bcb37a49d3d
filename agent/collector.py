"""Where a site's traces go: the OTLP collector that its `[telemetry]` names, over TLS; nowhere where none is named.

The daemon is the caller.
"""

from __future__ import annotations

import grpc

from agent.config import TelemetryConfig
from histofed import __version__
from histofed.base.ids import SiteId
from histofed.telemetry.collector import read_tls
from histofed.telemetry.tracing import Resource, Tracing


def tracing_of(site: SiteId, config: TelemetryConfig) -> Tracing:
    """What the site's spans go to. Raises `ConfigError` for a file that cannot be read or an address that is none."""
    if config.otlp_endpoint is None:
        return Tracing.off()
    resource = Resource("histofed-agent", __version__, instance=site, environment=config.environment)
    return Tracing.otlp(config.otlp_endpoint, resource, credentials=grpc.ssl_channel_credentials(*read_tls(config)))
