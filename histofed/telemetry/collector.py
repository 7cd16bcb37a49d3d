"""The files by which a daemon and its OTLP collector know each other over TLS: `[telemetry]` of both daemons names them.

The collector belongs to the daemon's owner or to whoever audits it, and never to the federation: it has its own CA and
certificates. A file that cannot be read is an error at the start, not a trace that silently goes nowhere. The daemons, which
make credentials of the bytes, are the callers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from histofed.base.errors import ConfigError


class TlsFiles(Protocol):
    """What `[telemetry]` says of them."""

    @property
    def ca_file(self) -> Path | None:
        """CA of the collector; the system's where none is named."""
        ...

    @property
    def certificate_file(self) -> Path | None:
        """Who the daemon is to the collector."""
        ...

    @property
    def key_file(self) -> Path | None:
        """Of that certificate."""
        ...


def read_tls(files: TlsFiles) -> tuple[bytes | None, bytes | None, bytes | None]:
    """CA, key and certificate in PEM, as `grpc.ssl_channel_credentials` takes them; None for one that is not named.

    Raises `ConfigError` for a file that cannot be read, and for a certificate without its key or a key without one.
    """
    if (files.certificate_file is None) != (files.key_file is None):
        raise ConfigError("telemetry.certificate_file and telemetry.key_file go together: set both or neither")
    return _read(files.ca_file), _read(files.key_file), _read(files.certificate_file)


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} (named in [telemetry]) cannot be read: {error.strerror}") from error
