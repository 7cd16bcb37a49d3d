"""Finished updates, as a site signs them and puts them into its outbox."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.outbox import Outbox
from histofed.base.ids import TaskKey, sha256
from histofed.pki.signing import Envelope, sign
from histofed.statements import UPDATE_TYPE, File, UpdateManifest, encode
from tests.support.pki import Federation

CREDENTIALS: Final = Federation().site("north")


def manifest(number: int = 1, data: bytes = b"weights", attempt: int = 1) -> UpdateManifest:
    """What the site says of round `number`'s update, whose weights are `data`."""
    return UpdateManifest(
        federation="test.example",
        experiment="pilot",
        experiment_sha256=sha256(b"experiment"),
        round=number,
        kind="train",
        site="north",
        attempt=attempt,
        base=sha256(b"base"),
        encoding="float32",
        weights=File(sha256(data), len(data)),
        tiles=10,
        patients=3,
        steps=5,
        metrics={"distance": 0.5},
        private_round=0,
        policy_sha256=sha256(b"policy"),
        created_at="2026-01-01T00:00:00.000000Z",
    )


def signed(statement: UpdateManifest) -> Envelope:
    """It, signed."""
    return sign(UPDATE_TYPE, encode(statement), CREDENTIALS)


def put(outbox: Outbox, folder: Path, statement: UpdateManifest, data: bytes = b"weights") -> TaskKey:
    """It in the outbox; `folder` is on the same disk."""
    (folder / "made").write_bytes(data)
    return outbox.put(signed(statement), folder / "made", 2).task
