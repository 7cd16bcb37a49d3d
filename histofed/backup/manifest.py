"""What a backup says about itself: the first thing in the file, signed by the daemon whose state it is.

It names every member with its length and SHA-256, so that nothing can be changed, added or left out unseen. The signature
proves against the federation's CA whose state it is; the CA stands in the backup itself, so that its digest has to be
compared with one that is known from elsewhere (a join line, the state directory that is being replaced). Readers refuse
unknown formats and unknown or missing fields.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from histofed.audit.verify import Head
from histofed.base.errors import BadData, VersionMismatch
from histofed.base.ids import Digest, canonical, digest, sha256
from histofed.pki.credentials import Credentials
from histofed.pki.identity import Identity
from histofed.pki.keys import certificate_from_pem, der_of
from histofed.pki.signing import Envelope, sign, verify

TYPE: Final = "application/vnd.histofed.backup.v1+json"
FORMAT: Final = 1
CA_MEMBER: Final = "identity/ca.pem"
"""The federation's CA certificate; a member of every backup."""
SIZE_LIMIT: Final = 64 << 20
"""Bytes of a manifest that are read: some 400,000 members."""
Kind = Literal["aggregator", "agent"]

_strict = ConfigDict(extra="forbid", strict=True)


@checked(frozen=True, config=_strict)
class Member:
    """One file of the state directory."""

    name: str
    """Relative, with slashes, for example `blobs/SHA256`."""
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        digest(self.sha256)
        if self.bytes < 0:
            raise BadData("a member's length is negative")


@checked(frozen=True, config=_strict)
class Manifest:
    """What is in a backup."""

    format: int
    kind: Kind
    id: str
    """Random, so that two backups of one state are two."""
    made_at: str
    version: str
    """The release of histofed that made it."""
    db_schema: str
    federation: str
    ca_sha256: str
    holder: str
    """URI of the daemon's identity."""
    epoch: int
    """Of the aggregator; in an agent's backup the newest one that the site has seen, 0 before its first hello."""
    records: int
    """Records of the audit journal that are in it."""
    head: str
    """Hash of the last of them."""
    rounds: dict[str, int]
    """The newest committed round of each experiment, 0 for none; at a site the round of its private tensors."""
    open_rounds: list[str]
    """Rounds that were not ended; at a site the tasks whose updates wait in the outbox."""
    members: list[Member]
    """In the order in which they stand in the file."""

    @property
    def journal_head(self) -> Head:
        """The end of the journal that is in it."""
        return Head(self.records, self.head)

    @property
    def newest_committed(self) -> str:
        """In words."""
        return ", ".join(f"{name}/{number}" for name, number in sorted(self.rounds.items()) if number) or "no round"

    @property
    def total_bytes(self) -> int:
        """Of all members."""
        return sum(member.bytes for member in self.members)

    @property
    def digest(self) -> Digest:
        """The name of this backup in journals."""
        return sha256(encode(self))


_READER: Final = TypeAdapter(Manifest)


def encode(manifest: Manifest) -> bytes:
    """The one byte form, which is signed."""
    return canonical(asdict(manifest))


def decode(data: bytes) -> Manifest:
    """The reverse. Raises `BadData`, and `VersionMismatch` for a format of a newer release."""
    try:
        document = json.loads(data)
        found = document["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadData("its manifest cannot be read: this is not a backup of histofed, or it is damaged") from error
    if found != FORMAT:
        raise VersionMismatch(f"the backup has format {str(found)[:20]}, this release knows {FORMAT}: install a newer one")
    try:
        manifest = _READER.validate_json(data)
    except (ValidationError, BadData) as error:
        raise BadData("its manifest does not have the fields that it must have: it is damaged") from error
    if encode(manifest) != data:
        raise BadData("its manifest is not written as histofed writes it: it was changed")
    return manifest


def seal(payload: bytes, credentials: Credentials) -> bytes:
    """The signature of a manifest, as the document beside it."""
    envelope = sign(TYPE, payload, credentials)
    return canonical(
        {
            "payload_type": envelope.payload_type,
            "signature": base64.b64encode(envelope.signature).decode(),
            "certificate": base64.b64encode(envelope.certificate).decode(),
        }
    )


def prove(payload: bytes, signature: bytes, ca_pem: bytes) -> None:
    """The manifest is signed by its holder, under the CA that it names. Raises `BadData` and `NotAuthorised`."""
    manifest = decode(payload)
    ca = certificate_from_pem(ca_pem, "CA certificate of the backup")
    if sha256(der_of(ca)) != manifest.ca_sha256:
        raise BadData("the CA in the backup is not the one that its manifest names: it was changed")
    try:
        document = json.loads(signature)
        certificate = base64.b64decode(document["certificate"], validate=True)
        envelope = Envelope(
            str(document["payload_type"]), payload, base64.b64decode(document["signature"], validate=True), certificate
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadData("the signature of its manifest cannot be read: it is damaged") from error
    # who signed matters, not whether the certificate has ended since or just before: a site that was away backs up too
    verify(envelope, ca=ca, payload_type=TYPE, signer=Identity.parse(manifest.holder), at=None)
