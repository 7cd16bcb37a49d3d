"""Is this file a model of the federation? The proof needs the file, its statement and the CA, and no network.

Three links: the CA certifies the aggregator, the aggregator signed the statement, the statement names the file's SHA-256.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from histofed.base.errors import BadData, DigestMismatch, NotFound
from histofed.base.ids import Digest, sha256
from histofed.pki.identity import Identity, Role
from histofed.pki.signing import Envelope, verify
from histofed.statements import MODEL_TYPE, File, ModelStatement, decode_model


@dataclass(frozen=True)
class VerifiedModel:
    """A statement whose signature was right."""

    digest: Digest
    """The model's name."""
    statement: ModelStatement

    def part(self, name: str | None) -> tuple[str, File]:
        """The named part, or the finished product. Raises `NotFound`."""
        wanted = name or self.statement.release
        if wanted not in self.statement.parts:
            there = ", ".join(sorted(self.statement.parts))
            raise NotFound(f"model {self.digest[:12]} has no part {wanted!r}; it has {there}")
        return wanted, self.statement.parts[wanted]


def verify_statement(envelope: Envelope, ca: x509.Certificate, at: datetime | None = None) -> VerifiedModel:
    """Check the signature and who signed; with `at` also that the signer's certificate was valid then.

    A model is kept for longer than that certificate lives. Raises `NotAuthorised` (who) or `BadData` (what).
    """
    if envelope.payload_type != MODEL_TYPE:
        raise BadData(f"the envelope holds {envelope.payload_type[:80]!r}, not a model statement ({MODEL_TYPE})")
    # the federation's name is only a claim here; the certificate must say the same, and the CA vouches for that
    statement = decode_model(envelope.payload)
    signer = Identity(statement.federation, Role.AGGREGATOR, "")
    verify(envelope, ca=ca, payload_type=MODEL_TYPE, signer=signer, at=at)
    return VerifiedModel(sha256(envelope.payload), statement)


def verify_file(path: Path, model: VerifiedModel) -> tuple[str, File]:
    """Which part of the model the file is. Raises `DigestMismatch` when it is none."""
    found = sha256_of(path)
    for name, file in model.statement.parts.items():
        if file.sha256 == found:
            return name, file
    raise DigestMismatch(
        f"{path} (SHA-256 {found[:12]}…) is no part of model {model.digest[:12]}: it was changed or belongs to another "
        "statement; do not use it"
    )


def sha256_of(path: Path) -> Digest:
    """The digest of a file. Raises `NotFound`, `BadData`."""
    try:
        with path.open("rb") as file:
            return Digest(hashlib.file_digest(file, "sha256").hexdigest())
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror}") from error


def load_ca(path: Path) -> x509.Certificate:
    """The federation's CA certificate. Raises `NotFound`, `BadData`."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"there is no CA certificate at {path}") from error
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadData(f"{path} is not a certificate in PEM form") from error
