"""An upload as its connections see it: they come, take each other over, are ended, and wait for nobody's hashing."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from histofed.base.errors import DigestMismatch, Stale
from histofed.base.ids import sha256
from histofed.transport import limits
from histofed.transport.store import BlobStore, owner_of

BLOB = os.urandom(4096)
NAME = sha256(BLOB)
NORTH = owner_of("gan/1/train/north")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.mark.parametrize("came", [0, 1000, len(BLOB)])
def test_a_round_that_ends_ends_its_uploads_and_leaves_nothing(store: BlobStore, came: int) -> None:
    with contextlib.closing(store.writer(NAME, NORTH).open(len(BLOB))) as writer:
        writer.append(0, BLOB[:came], sync=True)
        store.forget({NORTH}, keep=lambda _: False)
        for go_on in (lambda: writer.committed, lambda: writer.append(came, b"x", sync=True), writer.finish):
            with pytest.raises(Stale, match="the round has ended"):
                go_on()
    assert list(store.path(NAME).parent.iterdir()) == []
    assert store._uploads == {}


def test_an_upload_that_was_not_open_yet_when_its_round_ended_does_not_begin(store: BlobStore) -> None:
    with contextlib.closing(store.writer(NAME, NORTH)) as writer:
        store.forget({NORTH}, keep=lambda _: False)
        with pytest.raises(Stale, match="the round has ended"):
            writer.open(len(BLOB))
    assert list(store.path(NAME).parent.iterdir()) == []


def test_an_upload_that_is_ended_while_what_is_there_is_hashed_keeps_nobody_waiting(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's loop ends it."""
    with contextlib.closing(store.writer(NAME, NORTH).open(len(BLOB))) as writer:
        writer.append(0, BLOB)
    monkeypatch.setattr(limits, "CHUNK", 64)
    ended, hashing, chunks = threading.Event(), threading.Event(), list[int]()

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        hashing.set()
        ended.wait(0.1)  # of each chunk: seconds in all
        chunks.append(offset)
        return BLOB[offset : offset + size]

    monkeypatch.setattr(os, "pread", pread)
    with contextlib.closing(store.writer(NAME, NORTH)) as writer, ThreadPoolExecutor() as pool:
        opening = pool.submit(writer.open, len(BLOB))
        hashing.wait()
        store.forget({NORTH}, keep=lambda _: False)
        ended.set()
        with pytest.raises(Stale, match="the round has ended"):
            opening.result()
    assert len(chunks) < len(BLOB) / 64
    assert list(store.path(NAME).parent.iterdir()) == []


def test_how_much_is_here_is_told_while_another_connection_hashes_it(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's loop asks."""
    earlier = store.writer(NAME, NORTH).open(len(BLOB))
    earlier.append(0, BLOB[:1000], sync=True)
    told, hashing, read = threading.Event(), threading.Event(), os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        hashing.set()
        assert told.wait(10), "it was not told meanwhile"
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    with contextlib.closing(store.writer(NAME, NORTH)) as later, ThreadPoolExecutor() as pool:
        opening = pool.submit(later.open, len(BLOB) + 1)
        hashing.wait()
        with pytest.raises(Stale, match="another connection of this site"):
            _ = earlier.committed
        told.set()
        assert opening.result().committed == 1000
    earlier.close()


def test_a_connection_that_comes_when_the_upload_is_finished_finishes_it_again(store: BlobStore) -> None:
    """Before the earlier connection has closed: the part is a blob by now, and no part of this one."""
    earlier = store.writer(NAME, NORTH).open(len(BLOB))
    earlier.append(0, BLOB)
    earlier.finish()
    later = store.writer(NAME, NORTH).open(len(BLOB))
    assert later.committed == 0
    earlier.close()
    later.append(0, BLOB)
    later.finish()
    later.close()
    assert store.path(NAME).read_bytes() == BLOB
    assert {path.name for path in store.path(NAME).parent.iterdir()} == {NAME, f"{NAME}.{NORTH}.received"}


def test_a_connection_that_comes_when_wrong_bytes_were_dropped_begins_anew(store: BlobStore) -> None:
    earlier = store.writer(NAME, NORTH).open(len(BLOB))
    earlier.append(0, bytes(len(BLOB)))
    with pytest.raises(DigestMismatch):
        earlier.finish()
    later = store.writer(NAME, NORTH).open(len(BLOB))
    assert later.committed == 0
    earlier.close()
    later.append(0, BLOB)
    later.finish()
    later.close()
    assert store.received(NAME, NORTH)


def test_who_waits_for_an_upload_goes_on_with_what_the_one_before_hashed(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender was cut off meanwhile, and is back: hashed again for each connection, it would never come to an end."""
    store.path(NAME).with_name(part := f"{NAME}.{NORTH}.part").write_bytes(BLOB[:1000])
    earlier = store.writer(NAME, NORTH)
    with contextlib.closing(store.writer(NAME, NORTH)) as later:
        earlier.open(len(BLOB)).close()
        with monkeypatch.context() as disk:
            disk.setattr(os, "pread", lambda *_: pytest.fail("it is hashed again"))
            assert later.open(len(BLOB)).committed == 1000
        later.append(1000, BLOB[1000:])
        assert opened(part)
    assert not opened(part)
    assert store._uploads == {}


def test_the_last_to_leave_closes_an_upload_also_if_it_never_wrote(store: BlobStore) -> None:
    earlier, later = store.writer(NAME, NORTH), store.writer(NAME, NORTH)
    earlier.open(len(BLOB)).close()
    assert opened(part := f"{NAME}.{NORTH}.part")
    later.close()
    assert not opened(part)


def opened(name: str) -> bool:
    """Whether this process has such a file open."""
    found = set[str]()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.add(descriptor.readlink().name)
    return name in found


def test_an_upload_begins_anew_while_the_one_that_was_ended_hangs_on(store: BlobStore) -> None:
    ended = store.writer(NAME, NORTH).open(len(BLOB))
    ended.append(0, BLOB[:1000])
    store.forget({NORTH}, keep=lambda _: False)
    with contextlib.closing(store.writer(NAME, NORTH).open(len(BLOB))) as writer:
        assert writer.committed == 0
        ended.close()
        writer.append(0, BLOB)
        writer.finish()
    assert store.received(NAME, NORTH)
    assert store._uploads == {}
