"""Why a connection does not come about, in words.

gRPC says UNAVAILABLE and "Socket closed" for a wrong port, a foreign CA and an expired certificate alike. When that
happens, and only then, the same connection is tried once with the standard library, which tells them apart. Called by
`channel.py` and the agent's doctor; blocks up to about ten seconds, so in a thread.
"""

from __future__ import annotations

import socket
import ssl
from datetime import datetime
from typing import Final

from histofed.base.errors import AggregatorUnavailable, HistofedError, NotAuthorised, NotEnrolled
from histofed.base.proxy import Proxy, connect
from histofed.pki.credentials import Credentials
from histofed.pki.keys import key_from_pem
from histofed.pki.pem import Proof
from histofed.transport import tls

CONNECT_S: Final = 5.0
ANSWER_S: Final = 2.0
"""A server that accepts our certificate greets at once (HTTP/2 SETTINGS)."""


def split(address: str) -> tuple[str, int]:
    """HOST:PORT as a pair; an IPv6 address loses its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def diagnose(
    address: str, ca_pem: bytes, proof: Proof | None, now: datetime, hint: str, proxy: Proxy | None = None
) -> HistofedError:
    """The error that explains why `address` cannot be called; `hint` is what gRPC said. Blocks, never raises."""
    return probe(address, ca_pem, proof, now, proxy) or AggregatorUnavailable(
        f"the connection to {address} was lost and the aggregator answers again now ({hint})"
    )


def probe(
    address: str, ca_pem: bytes, proof: Proof | None, now: datetime, proxy: Proxy | None = None
) -> HistofedError | None:
    """Name, TCP, TLS 1.3 and our certificate, tried once; None when all of it works. Blocks, never raises."""
    try:
        credentials = None if proof is None else _parsed(proof)
    except HistofedError as error:
        return error
    if credentials is not None and not credentials.not_before <= now <= credentials.not_after:
        return NotEnrolled(
            f"the certificate of {credentials.identity} is valid from {credentials.not_before:%Y-%m-%d %H:%M} to "
            f"{credentials.not_after:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}: {credentials.identity.remedy}, "
            "or set the clock"
        )
    host, port = split(address)
    try:
        with connect(proxy, host, port, CONNECT_S) as plain:
            return _shake_hands(address, host, plain, tls.client_context(ca_pem, credentials), now, credentials)
    except AggregatorUnavailable as error:
        return error  # the proxy's
    except socket.gaierror:
        return AggregatorUnavailable(f"the name {host} of the aggregator cannot be resolved: check it, and the DNS")
    except ConnectionRefusedError:
        return AggregatorUnavailable(f"nobody listens at {address}: the aggregator may be down, or the port is wrong")
    except TimeoutError:
        return AggregatorUnavailable(f"{address} does not answer: a firewall may be between, or the address is wrong")
    except OSError as error:
        return AggregatorUnavailable(f"{address} cannot be reached: {error.strerror or error}")


def _parsed(proof: Proof) -> Credentials:
    """The same identity, looked into. Raises `BadData` when its parts are broken or do not belong together."""
    if isinstance(proof, Credentials):
        return proof
    return Credentials.make(key_from_pem(proof.key_pem), proof.certificate_pem, proof.ca_pem)


def _shake_hands(
    address: str, host: str, plain: socket.socket, context: ssl.SSLContext, now: datetime, credentials: Credentials | None
) -> HistofedError | None:
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            return _after_handshake(address, secure, credentials)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _WRONG_NAME:
            return NotAuthorised(
                f"the server at {address} has a certificate of our federation, but for another name than {host}: have it "
                "added to public_hosts in aggregator.toml and the aggregator restarted, or use a name that stands there"
            )
        if error.verify_code in _WRONG_TIME:
            return NotAuthorised(
                f"the certificate of the server at {address} is not valid at this machine's time, {now:%Y-%m-%d %H:%M} UTC "
                f"({error.verify_message}): set the clock (timedatectl); if it is right, the aggregator's own "
                f"{_WRONG_TIME[error.verify_code]}"
            )
        remedy = "ask for a new join line" if credentials is None else credentials.identity.remedy
        return NotAuthorised(
            f"the server at {address} is not the aggregator of this federation ({error.verify_message}): "
            f"check the address; if the federation has a new CA, {remedy}"
        )
    except (ssl.SSLEOFError, ConnectionResetError):
        return AggregatorUnavailable(f"{address} closed the connection in the middle of the TLS handshake: try again")
    except ssl.SSLError as error:
        return AggregatorUnavailable(
            f"{address} does not speak TLS 1.3 as an aggregator does ({error.reason or error}): check the port"
        )


def _after_handshake(address: str, secure: ssl.SSLSocket, credentials: Credentials | None) -> HistofedError | None:
    """Under TLS 1.3 a server judges the client's certificate only after the client's handshake is over."""
    secure.settimeout(ANSWER_S)
    try:
        greeted = bool(secure.recv(1))
    except TimeoutError:
        return AggregatorUnavailable(f"{address} accepts connections but does not answer: it may be overloaded or frozen")
    except OSError:
        greeted = False
    if greeted:
        return None
    if credentials is None:
        return NotEnrolled(
            f"the aggregator at {address} wants a certificate, which nobody has who joins: check the port, a join line's is "
            "that of listen.enrolment (8444, where nobody changed it)"
        )
    return NotEnrolled(
        f"the aggregator at {address} does not accept our certificate: it is of another federation, or expired by the "
        f"aggregator's clock; {credentials.identity.remedy}"
    )


_WRONG_NAME: Final = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH (OpenSSL, x509_vfy.h)."""
_WRONG_TIME: Final = {9: "clock may be wrong", 10: "certificate has ended: have it restarted, which renews it"}
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED, and what of the aggregator's own is behind them."""
