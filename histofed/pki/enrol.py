"""How a joining site recognises the aggregator: by the SHA-256 of the CA in its join line.

The site has no trust anchor yet. It makes one TLS handshake that checks nothing, only to read the chain that the server
shows, sends no byte of its own, and keeps the CA if its digest is the one in the join line. From then on exactly that CA
is trusted; the token travels over a second connection, which checks the server's name and chain in full.
"""

from __future__ import annotations

import ssl

from cryptography import x509

from histofed.base.errors import AggregatorUnavailable, BadData, NotAuthorised
from histofed.base.ids import Digest, sha256
from histofed.base.proxy import Proxy, connect
from histofed.pki.identity import federation_of
from histofed.pki.keys import UNREADABLE, pem_of


def fetch_ca(host: str, port: int, expected: Digest, timeout_s: float, proxy: Proxy | None = None) -> bytes:
    """The CA certificate, PEM, that the server at `host`:`port` shows and the join line names. Blocks.

    Raises `AggregatorUnavailable` when nobody answers TLS there, `NotAuthorised` when the CA is another one.
    """
    chain = _shown_chain(host, port, timeout_s, proxy)
    for der in chain:
        if sha256(der) == expected:
            return _checked(der)
    raise NotAuthorised(
        f"the server at {host}:{port} is not of the federation in the join line (it shows no CA with SHA-256 "
        f"{expected[:16]}…): the line may be damaged or old, or somebody is between; ask the operator for a new line "
        "and compare the digests by telephone"
    )


def _shown_chain(host: str, port: int, timeout_s: float, proxy: Proxy | None) -> list[bytes]:
    """The certificates of one handshake that verifies nothing, DER, leaf first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the digest decides, and nothing is sent on this connection
    context.set_alpn_protocols(["h2"])
    try:
        with (
            connect(proxy, host, port, timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            # public as SSLSocket.get_unverified_chain from Python 3.13 on; until then only on the inner object
            return [shown.public_bytes(ssl._ssl.ENCODING_DER) for shown in tls._sslobj.get_unverified_chain()]  # type: ignore[attr-defined]
    except OSError as error:
        raise AggregatorUnavailable(
            f"no TLS server answers at {host}:{port} ({error.strerror or error}): check address and port of the join "
            "line, and that the aggregator runs and has an open token"
        ) from error


def _checked(der: bytes) -> bytes:
    try:
        ca = x509.load_der_x509_certificate(der)
        federation_of(ca)
    except (BadData, *UNREADABLE) as error:
        raise NotAuthorised("the join line names a certificate that is not the CA of a federation") from error
    return pem_of(ca)
