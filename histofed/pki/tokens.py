"""The join line: how a hospital gets in, on one line that the operator hands over by a channel both trust.

    histofed1 aggregator.example.org:8444 TOKEN SHA256-OF-THE-CA

The token proves the hospital to the aggregator, once; the digest proves the aggregator to the hospital. The aggregator
keeps only the token's HMAC under a key of its own, so a stolen database admits nobody. All functions are pure; expiry and
single use are the store's.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

from histofed.base import ids
from histofed.base.errors import BadData
from histofed.base.ids import Digest

TOKEN_BYTES: Final = 32
_MARK: Final = "histofed1"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}\Z")
_ADDRESS: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?):(?P<port>[0-9]{1,5})\Z"
)


def make() -> str:
    """A new token: 256 random bits, 43 characters of the URL-safe base64 alphabet."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def new_server_key() -> bytes:
    """The aggregator's key for `digest`; made once and kept 0600."""
    return secrets.token_bytes(32)


def digest(token: str, server_key: bytes) -> Digest:
    """What is stored instead of the token: HMAC-SHA256 under the aggregator's key (RFC 2104)."""
    return Digest(hmac.new(server_key, token.encode(), "sha256").hexdigest())


def matches(token: str, server_key: bytes, stored: str) -> bool:
    """Whether `stored` is the digest of `token`; takes the same time for every answer."""
    return hmac.compare_digest(digest(token, server_key), stored)


@dataclass(frozen=True)
class JoinLine:
    """Where to enrol, with which secret, and how to recognise the federation."""

    host: str
    port: int
    token: str
    ca_sha256: Digest

    def __post_init__(self) -> None:
        if not _ADDRESS.match(self.address) or not 0 < self.port < 65536:
            raise BadData(f"{self.address[:80]!r} is not HOST:PORT")
        if not _TOKEN.match(self.token):
            raise BadData("the token of the join line is damaged: copy the whole line")
        ids.digest(self.ca_sha256)

    @property
    def address(self) -> str:
        """HOST:PORT, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{_MARK} {self.address} {self.token} {self.ca_sha256}"

    def __repr__(self) -> str:
        return f"JoinLine({self.address!r}, token withheld, {self.ca_sha256!r})"

    @classmethod
    def parse(cls, text: str) -> JoinLine:
        """The reverse of `str`; space around it does not matter. Raises `BadData`, never with the token in it."""
        words = text.split()
        if len(words) != 4 or words[0] != _MARK:
            raise BadData(f"this is not a join line: it must be four words beginning with {_MARK}; copy the whole line")
        address = _ADDRESS.match(words[1])
        if address is None:
            raise BadData(f"the join line's second word, {words[1][:80]!r}, is not HOST:PORT")
        return cls(address["host"].strip("[]"), int(address["port"]), words[2], ids.digest(words[3]))
