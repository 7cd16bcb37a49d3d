"""A member's identity as it lies in files: three PEM texts, unparsed.

A command line shows its certificate and never looks into it, and `cryptography.x509` alone would cost a third of the time
in which `histofed status` has to start. `histofed/pki/credentials.py` is the same identity, parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from histofed.base.errors import ConfigError


class Proof(Protocol):
    """What a TLS handshake needs of a member."""

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS#8."""
        ...

    @property
    def certificate_pem(self) -> bytes:
        """The member's certificate."""
        ...

    @property
    def ca_pem(self) -> bytes:
        """The federation's CA."""
        ...


@dataclass(frozen=True)
class PemIdentity:
    """A `Proof` that was read from files; whether its parts belong together shows in the handshake."""

    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes


def refuse_readable_by_others(path: Path, mode: int) -> None:
    """A private key is its owner's alone. Raises `ConfigError`."""
    if mode & 0o077:
        raise ConfigError(
            f"{path} holds a private key and can be read by others (mode {mode:04o}): "
            f"run chmod 600 on it, and enrol again if somebody may have copied it"
        )
