"""One blob of a task, sent and fetched as an agent does, on a clock of the test's."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Final

from histofed.base.clock import FakeClock
from histofed.base.ids import Digest, sha256
from histofed.transport import blobs, limits
from histofed.transport.channel import Connection
from histofed.transport.store import BlobStore, owner_of
from tests.support.pki import Federation

FEDERATION: Final = Federation()
SITE: Final = FEDERATION.site("north")
TASK: Final = "gan/1/train/north"
OWNER: Final = owner_of(TASK)
BLOB: Final = os.urandom(5 * limits.MIB + 12345)
NAME: Final = sha256(BLOB)
CUTS: Final = [60_000, 700_000, 1_200_000, 2 * limits.MIB, 5 * limits.MIB]
"""Bytes that cross the line before it breaks: in the handshake, in a piece, between two, near the end."""


async def send(connection: Connection, source: Path, *, name: Digest = NAME, task: str = TASK, **options: object) -> None:
    await blobs.upload(
        connection,
        source,
        name,
        task=task,
        clock=FakeClock(),
        random=Random(0),
        **options,  # type: ignore[arg-type]  # what the tests choose
    )


async def fetch(connection: Connection, target: Path, *, name: Digest = NAME, **options: object) -> None:
    await blobs.download(
        connection,
        name,
        target,
        clock=FakeClock(),
        random=Random(0),
        **({"size": len(BLOB)} | options),  # type: ignore[arg-type]  # what the tests choose
    )


def put(store: BlobStore, data: bytes = BLOB) -> Digest:
    """The blob as an aggregator's own work leaves it in its store."""
    path = store.path(NAME).with_name("incoming")
    path.write_bytes(data)
    return store.import_file(path, move=True)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
