"""The other side of a call, for servicers that are called without a wire."""

from __future__ import annotations

from dataclasses import dataclass

from histofed.pki.credentials import Credentials


@dataclass
class Call:
    """As much of a gRPC context as our servicers ask for."""

    credentials: Credentials | None = None
    """Of the member that calls; None for a stranger."""
    address: str = "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {} if self.credentials is None else {"x509_pem_cert": [self.credentials.certificate_pem]}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def peer(self) -> str:
        return self.address
