"""Where a site's traces go: the OTLP collector that its `[telemetry]` names, over TLS; nowhere where none is named.

The collector belongs to the site or to whoever audits it, and never to the federation: it has its own CA and certificates.
A file that cannot be read is an error at the start, not a trace that silently goes nowhere. The daemon is the caller.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from agent.config import TelemetryConfig
from histofed import __version__
from histofed.base.errors import ConfigError
from histofed.base.ids import SiteId
from histofed.telemetry.tracing import Resource, Tracing


def tracing_of(site: SiteId, config: TelemetryConfig) -> Tracing:
    """What the site's spans go to. Raises `ConfigError` for a file that cannot be read or an address that is none."""
    if config.otlp_endpoint is None:
        return Tracing.off()
    resource = Resource("histofed-agent", __version__, instance=site, environment=config.environment)
    credentials = _credentials(config.ca_file, config.certificate_file, config.key_file)
    return Tracing.otlp(config.otlp_endpoint, resource, credentials=credentials)


def _credentials(ca: Path | None, certificate: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    if (certificate is None) != (key is None):
        raise ConfigError("telemetry.certificate_file and telemetry.key_file go together: set both or neither")
    return grpc.ssl_channel_credentials(_file(ca), _file(key), _file(certificate))


def _file(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} (named in [telemetry]) cannot be read: {error.strerror}") from error
