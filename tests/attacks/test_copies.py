"""Attacks with copies: of bytes that are not there or not the ones announced, and questions about others' blobs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from histofed.base.errors import BadData, DigestMismatch, TryLater
from histofed.base.ids import Digest, sha256
from histofed.transport import limits
from histofed.transport.channel import Connection, open_connection
from histofed.transport.store import owner_of
from histofed.v1 import transfer_pb2, transfer_pb2_grpc
from tests.support.pki import Federation
from tests.support.wire import Wire, serving

FEDERATION = Federation()
SITE = FEDERATION.site("evil")
TASK = "gan/1/train/evil"
BASE = os.urandom(300_000)
NEXT = BASE[:200_000] + os.urandom(100_000)


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    async with serving(tmp_path / "blobs", FEDERATION) as running:
        running.permissions.bases[TASK] = keep(running, BASE)
        running.permissions.released.add(keep(running, NEXT))
        yield running


def keep(wire: Wire, data: bytes) -> Digest:
    path = wire.store.path(sha256(data)).with_name("incoming")
    path.write_bytes(data)
    return wire.store.import_file(path, move=True)


async def test_nobody_hears_what_a_model_has_in_common_with_a_blob_it_may_not_know(wire: Wire) -> None:
    """Whether another site's update is here, and what is in it, must not show in what is sent."""
    async with open_connection(wire.address, SITE) as connection:
        stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
        for name in (sha256(BASE), sha256(b"not here")):
            request = transfer_pb2.DownloadRequest(sha256=sha256(NEXT), held=name)
            answers = [message async for message in connection.stream(stub.Download, request)]
            assert b"".join(message.data for message in answers) == NEXT
            assert not any(message.HasField("copy") for message in answers)


async def upload(connection: Connection, *more: transfer_pb2.UploadRequest) -> None:
    named = transfer_pb2.GetUploadRequest(task=TASK, sha256=sha256(NEXT), bytes=len(NEXT))

    async def requests() -> AsyncIterator[transfer_pb2.UploadRequest]:
        yield transfer_pb2.UploadRequest(blob=named)
        for piece in more:
            yield piece

    stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
    async for _ in connection.stream(stub.Upload, requests()):
        pass


def copy(size: int, digest: str = "", offset: int = 0, data: bytes = b"") -> transfer_pb2.UploadRequest:
    return transfer_pb2.UploadRequest(offset=offset, data=data, copy=transfer_pb2.Copy(bytes=size, sha256=digest))


@pytest.mark.parametrize(
    ("piece", "error", "words"),
    [
        (copy(0), BadData, "a copy has"),
        (copy(-5), BadData, "a copy has"),
        (copy(1 << 40), BadData, "a copy has"),
        (copy(limits.COPY_LEAST, offset=len(BASE)), DigestMismatch, "reaches behind"),
        (copy(limits.COPY_LEAST, offset=-1), DigestMismatch, "reaches behind"),
        (copy(limits.COPY_LEAST, sha256(b"guess")), DigestMismatch, "one of the two is damaged"),
        (copy(limits.COPY_LEAST, sha256(BASE[7 : 7 + limits.COPY_LEAST]), offset=7), TryLater, "the next byte is 0"),
        (copy(limits.COPY_LEAST, sha256(BASE[: limits.COPY_LEAST]), data=b"x"), BadData, "comes without data"),
    ],
)
async def test_a_hostile_copy_is_refused(
    wire: Wire, piece: transfer_pb2.UploadRequest, error: type[Exception], words: str
) -> None:
    async with open_connection(wire.address, SITE) as connection:
        with pytest.raises(error, match=words):
            await upload(connection, piece)
    assert wire.store.committed(sha256(NEXT), owner_of(TASK)) == 0


async def test_overlapping_copies_are_refused(wire: Wire) -> None:
    size = limits.COPY_LEAST
    twice = copy(size, sha256(BASE[:size]))
    async with open_connection(wire.address, SITE) as connection:
        with pytest.raises(TryLater, match=f"the next byte is {size}"):
            await upload(connection, twice, twice)


async def test_a_copy_without_a_base_is_refused(wire: Wire) -> None:
    wire.permissions.bases.clear()
    async with open_connection(wire.address, SITE) as connection:
        with pytest.raises(BadData, match="only where the first answer named"):
            await upload(connection, copy(limits.COPY_LEAST, sha256(BASE[: limits.COPY_LEAST])))


async def test_copies_of_the_wrong_blob_do_not_pass_for_it(wire: Wire) -> None:
    """Every copy is right, but they are not the blob that was announced."""
    middle = len(NEXT) // 2
    parts = ((0, middle), (middle, len(NEXT)))
    halves = [copy(end - begin, sha256(BASE[begin:end]), offset=begin) for begin, end in parts]
    async with open_connection(wire.address, SITE) as connection:
        with pytest.raises(DigestMismatch, match="they were dropped"):
            await upload(connection, *halves)
    assert not wire.store.received(sha256(NEXT), owner_of(TASK))
