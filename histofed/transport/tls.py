"""TLS 1.3 with P-256 certificates, and the proof that nothing older is spoken.

grpcio has no option for the lowest TLS version. Its cipher list, though, concerns TLS 1.2 alone: with only an RSA suite
in it and an ECDSA key, a TLS 1.2 handshake finds no suite, while TLS 1.3 has its own. gRPC reads the list once, when its
library is loaded, so `histofed/__init__.py` sets it before anything else; whoever serves calls `prove_tls13_only`, which
tries a real TLS 1.2 handshake, because a variable that was set too late would fail in silence.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from histofed.base.errors import AggregatorUnavailable, ConfigError
from histofed.pki.pem import Proof

if TYPE_CHECKING:
    from histofed.pki.credentials import Credentials

PROBE_S = 5.0
"""Seconds for one probing handshake."""


def server_credentials(current: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """The mTLS port: shows the chain that is current at each handshake, demands a certificate of our CA.

    `current` is called in threads of gRPC. A connection keeps the certificate that it began with.
    """
    return _followed(current, lambda now: _shown(now, now.ca_pem), demanding=True)


def enrolment_credentials(current: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """The enrolment port: shows the chain, CA included, and demands nothing, for a joining site has nothing yet."""
    return _followed(current, _shown, demanding=False)


def _followed(
    current: Callable[[], Credentials],
    shown: Callable[[Credentials], grpc.ServerCertificateConfiguration],
    *,
    demanding: bool,
) -> grpc.ServerCredentials:
    """Credentials that gRPC asks for anew at each handshake; it is told only what has changed."""
    last = current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal last
        now = current()
        if now is last:
            return None
        last = now
        return shown(now)

    return grpc.dynamic_ssl_server_credentials(
        shown(last),
        changed,  # type: ignore[arg-type]  # None is "as before", says gRPC's documentation
        require_client_authentication=demanding,
    )


def _shown(credentials: Credentials, roots: bytes | None = None) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(credentials.key_pem, credentials.chain_pem)], root_certificates=roots)


def channel_credentials(credentials: Proof) -> grpc.ChannelCredentials:
    """A member's side: trusts our CA alone, shows its certificate."""
    return grpc.ssl_channel_credentials(
        root_certificates=credentials.ca_pem,
        private_key=credentials.key_pem,
        certificate_chain=credentials.certificate_pem,
    )


def joining_credentials(ca_pem: bytes) -> grpc.ChannelCredentials:
    """A joining site's side: trusts the CA of its join line alone, has no certificate to show."""
    return grpc.ssl_channel_credentials(root_certificates=ca_pem)


def client_context(ca_pem: bytes, credentials: Proof | None) -> ssl.SSLContext:
    """The same trust for the standard library's TLS, which says why a handshake fails where gRPC does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    if credentials is not None:
        _load_chain(context, credentials)
    return context


def _load_chain(context: ssl.SSLContext, credentials: Proof) -> None:
    """`load_cert_chain` reads a path only: it gets one of an anonymous file in memory, never of a disk."""
    with os.fdopen(os.memfd_create("identity"), "wb") as memory:
        memory.write(credentials.key_pem + credentials.certificate_pem)
        memory.flush()
        context.load_cert_chain(f"/proc/self/fd/{memory.fileno()}")


async def prove_tls13_only(host: str, port: int) -> None:
    """Try TLS 1.2 against our own port.

    Raises `ConfigError` when it is accepted, `AggregatorUnavailable` when nothing answers there.
    """
    if await asyncio.to_thread(speaks_tls12, host, port):
        raise ConfigError(
            f"port {port} accepts TLS 1.2: GRPC_SSL_CIPHER_SUITES was not set before gRPC was loaded; "
            "import histofed before grpc and start again"
        )


def speaks_tls12(host: str, port: int) -> bool:
    """Whether a TLS 1.2 handshake succeeds. Blocks. Raises `AggregatorUnavailable` when nothing answers there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the question is the version, not the server
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), PROBE_S) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=host):
                    return True
            except (ssl.SSLError, ConnectionResetError):
                return False
    except OSError as error:
        raise AggregatorUnavailable(f"nothing answers at {host}:{port} ({error.strerror or error})") from error
