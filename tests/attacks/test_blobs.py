"""Attacks on files: paths for names, other sites' tasks and uploads, more bytes than said, claims without bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from histofed.base.clock import FakeClock
from histofed.base.errors import BadData, DigestMismatch, HistofedError, NotAuthorised, NotFound, TooLarge
from histofed.base.ids import sha256
from histofed.transport import blobs
from histofed.transport.channel import Connection, open_connection
from histofed.transport.store import owner_of
from histofed.v1 import transfer_pb2, transfer_pb2_grpc
from tests.support.pki import Federation
from tests.support.wire import UPDATE_LIMIT, Wire, serving

FEDERATION = Federation()
BLOB = Random(23).randbytes(100_000)
NAME = sha256(BLOB)
NORTH, EVIL = "gan/1/train/north", "gan/1/train/evil"


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    async with serving(tmp_path / "blobs", FEDERATION) as running:
        yield running


@pytest.fixture
async def evil(wire: Wire) -> AsyncIterator[Connection]:
    async with open_connection(wire.address, FEDERATION.site("evil")) as connection:
        yield connection


async def upload(connection: Connection, *pieces: transfer_pb2.UploadRequest) -> list[transfer_pb2.UploadResponse]:
    async def requests() -> AsyncIterator[transfer_pb2.UploadRequest]:
        for piece in pieces:
            yield piece

    stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
    return [answer async for answer in connection.stream(stub.Upload, requests())]


def named(task: str = EVIL, sha: str = NAME, size: int = len(BLOB)) -> transfer_pb2.GetUploadRequest:
    return transfer_pb2.GetUploadRequest(task=task, sha256=sha, bytes=size)


PATHS = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "a" * 63 + "/",
    ".import-1",
    f"{NAME}.part",
    NAME.upper(),
    NAME + "\0",
    "",
]


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_for_a_name(wire: Wire, evil: Connection, path: str) -> None:
    stub = transfer_pb2_grpc.BlobServiceStub(evil.channel)
    with pytest.raises(BadData, match="not a SHA-256 digest"):
        await anext(evil.stream(stub.Download, transfer_pb2.DownloadRequest(sha256=path)))
    with pytest.raises(BadData, match="not a SHA-256 digest"):
        await evil.call(stub.GetUpload, named(sha=path))
    with pytest.raises(BadData, match="not a SHA-256 digest"):
        await upload(evil, transfer_pb2.UploadRequest(blob=named(sha=path), data=b"x"))


@pytest.mark.parametrize(
    "task", ["gan/1/train/../north", "../1/train/evil", "gan/x/train/evil", "gan/1/steal/evil", "", "/" * 3]
)
async def test_a_path_for_a_task(wire: Wire, evil: Connection, task: str) -> None:
    with pytest.raises(BadData):
        await upload(evil, transfer_pb2.UploadRequest(blob=named(task), data=b"x"))


async def test_somebody_elses_task(wire: Wire, evil: Connection) -> None:
    stub = transfer_pb2_grpc.BlobServiceStub(evil.channel)
    with pytest.raises(NotAuthorised, match="gan/1/train/north is not a task of evil"):
        await upload(evil, transfer_pb2.UploadRequest(blob=named(NORTH), data=b"x"))
    with pytest.raises(NotAuthorised, match="not a task of evil"):
        await evil.call(stub.GetUpload, named(NORTH))
    assert wire.store.committed(NAME, owner_of(NORTH)) == 0


async def test_an_operator_uploads(wire: Wire) -> None:
    async with open_connection(wire.address, FEDERATION.operator("evil")) as connection:
        with pytest.raises(NotAuthorised, match="it needs a site's certificate"):
            await upload(connection, transfer_pb2.UploadRequest(blob=named(), data=b"x"))


async def test_another_sites_upload_cannot_be_spoiled(wire: Wire, evil: Connection, tmp_path: Path) -> None:
    """The attacker knows the digest and sends rubbish under it, first and at the same length."""
    await spoil(evil)
    (source := tmp_path / "update").write_bytes(BLOB)
    async with open_connection(wire.address, FEDERATION.site("north")) as north:
        await blobs.upload(north, source, NAME, task=NORTH, clock=FakeClock(), random=Random(0))
    assert wire.store.received(NAME, owner_of(NORTH))


async def spoil(evil: Connection) -> None:
    answers = await upload_partly(evil, transfer_pb2.UploadRequest(blob=named(), data=bytes(1000)))
    assert answers[0].committed == 0


async def upload_partly(connection: Connection, *pieces: transfer_pb2.UploadRequest) -> list[transfer_pb2.UploadResponse]:
    """An upload that ends before its last byte: what came stays for later, and the end is told."""
    answers: list[transfer_pb2.UploadResponse] = []

    async def requests() -> AsyncIterator[transfer_pb2.UploadRequest]:
        for piece in pieces:
            yield piece

    stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
    with pytest.raises(BadData, match="not complete"):
        async for answer in connection.stream(stub.Upload, requests()):
            answers.append(answer)
    return answers


async def test_a_claim_to_another_sites_blob_needs_its_bytes(wire: Wire, evil: Connection, tmp_path: Path) -> None:
    (source := tmp_path / "update").write_bytes(BLOB)
    async with open_connection(wire.address, FEDERATION.site("north")) as north:
        await blobs.upload(north, source, NAME, task=NORTH, clock=FakeClock(), random=Random(0))
    stub = transfer_pb2_grpc.BlobServiceStub(evil.channel)
    answer = await evil.call(stub.GetUpload, named())
    assert (answer.committed, answer.complete) == (0, False), "nobody learns what others sent"
    with pytest.raises(DigestMismatch):
        await upload(evil, transfer_pb2.UploadRequest(blob=named(), data=bytes(len(BLOB))))
    assert not wire.store.received(NAME, owner_of(EVIL))
    assert wire.permissions.complete == [(NORTH, NAME)]


async def test_another_sites_update_cannot_be_read(wire: Wire, evil: Connection, tmp_path: Path) -> None:
    (source := tmp_path / "update").write_bytes(BLOB)
    async with open_connection(wire.address, FEDERATION.site("north")) as north:
        await blobs.upload(north, source, NAME, task=NORTH, clock=FakeClock(), random=Random(0))
    stub = transfer_pb2_grpc.BlobServiceStub(evil.channel)
    with pytest.raises(NotFound):
        await anext(evil.stream(stub.Download, transfer_pb2.DownloadRequest(sha256=NAME)))


@pytest.mark.parametrize(
    ("pieces", "error", "words"),
    [
        ([transfer_pb2.UploadRequest(blob=named(size=UPDATE_LIMIT + 1))], TooLarge, "the experiment allows"),
        ([transfer_pb2.UploadRequest(blob=named(size=10), data=bytes(11))], TooLarge, "more bytes came than the 10"),
        ([transfer_pb2.UploadRequest(blob=named(), offset=5, data=b"x")], HistofedError, "the next byte is 0"),
        ([transfer_pb2.UploadRequest(blob=named(), offset=-1, data=b"x")], HistofedError, "the next byte is 0"),
        ([transfer_pb2.UploadRequest(blob=named(), data=bytes(2 << 20))], TooLarge, "at most 1048576"),
        ([transfer_pb2.UploadRequest(blob=named(), data=bytes(len(BLOB)))], DigestMismatch, "they were dropped"),
    ],
)
async def test_other_bytes_than_announced(
    wire: Wire, evil: Connection, pieces: list[transfer_pb2.UploadRequest], error: type[HistofedError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await upload(evil, *pieces)
    assert wire.store.digests() == set()
    assert wire.permissions.complete == []
