"""Blobs by content, and uploads as a state machine: connections come, die and compete; no byte goes astray."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from histofed.base.errors import BadData, CannotWriteState, DigestMismatch, NotFound, Stale, TryLater
from histofed.base.ids import sha256
from histofed.transport import limits
from histofed.transport.receiving import Writer
from histofed.transport.store import BlobStore, owner_of

BLOB = os.urandom(4096)
NAME = sha256(BLOB)
NORTH, SOUTH = owner_of("gan/1/train/north"), owner_of("gan/1/train/south")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def send(store: BlobStore, data: bytes, owner: str = NORTH, name: str = NAME) -> None:
    writer = store.writer(name, owner).open(len(BLOB))
    try:
        writer.append(writer.committed, data)
        writer.finish()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "name", ["", "..", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "/x", "a" * 64 + "\n", "\0" * 64]
)
def test_nothing_but_a_digest_names_a_blob(store: BlobStore, name: str) -> None:
    for ask in (store.path, store.has, store.size, store.remove):
        with pytest.raises(BadData, match="not a SHA-256 digest"):
            ask(name)
    with pytest.raises(BadData):
        store.writer(name, NORTH)


def test_a_blob_arrives(store: BlobStore) -> None:
    assert not store.has(NAME)
    send(store, BLOB)
    assert store.path(NAME).read_bytes() == BLOB
    assert (store.size(NAME), store.digests()) == (len(BLOB), {NAME})
    assert store.received(NAME, NORTH)
    assert store.committed(NAME, NORTH) == len(BLOB)


def test_knowing_a_digest_is_not_having_sent_the_bytes(store: BlobStore) -> None:
    send(store, BLOB, NORTH)
    assert not store.received(NAME, SOUTH)
    assert store.committed(NAME, SOUTH) == 0
    with pytest.raises(DigestMismatch):
        send(store, bytes(len(BLOB)), SOUTH)
    assert not store.received(NAME, SOUTH), "a failed attempt leaves no receipt"
    assert store.path(NAME).read_bytes() == BLOB


def test_two_owners_may_send_the_same_bytes(store: BlobStore) -> None:
    send(store, BLOB, NORTH)
    send(store, BLOB, SOUTH)
    assert store.received(NAME, NORTH)
    assert store.received(NAME, SOUTH)


def test_nobody_spoils_anothers_upload(store: BlobStore) -> None:
    north = store.writer(NAME, NORTH).open(len(BLOB))
    north.append(0, BLOB[:100])
    south = store.writer(NAME, SOUTH).open(len(BLOB))
    south.append(0, bytes(200))
    north.append(100, BLOB[100:])
    north.finish()
    assert store.received(NAME, NORTH)
    north.close()
    south.close()


def test_the_later_connection_takes_over(store: BlobStore) -> None:
    earlier = store.writer(NAME, NORTH).open(len(BLOB))
    earlier.append(0, BLOB[:1000])
    later = store.writer(NAME, NORTH).open(len(BLOB))
    assert later.committed == 1000
    with pytest.raises(Stale, match="another connection of this site"):
        earlier.append(1000, BLOB[1000:])
    earlier.close()
    later.append(1000, BLOB[1000:])
    later.finish()
    later.close()
    assert store.received(NAME, NORTH)
    assert store._uploads == {}


def test_a_stretch_is_synced_when_it_is_full(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SYNC_EVERY", 1000)
    writer = store.writer(NAME, NORTH).open(len(BLOB))
    assert writer.append(0, BLOB[:999]) == 0
    assert writer.append(999, BLOB[999:1000]) == 1000
    assert writer.append(1000, BLOB[1000:1001], sync=True) == 1001
    writer.close()


def test_files_of_this_machine_come_in(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(BLOB)
    assert store.import_file(source) == NAME
    assert source.exists()
    store.remove(NAME)
    assert store.import_file(source, move=True) == NAME
    assert not source.exists()
    assert store.path(NAME).read_bytes() == BLOB
    assert store.digests() == {NAME}


def test_a_failed_import_leaves_nothing(store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(BLOB)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWriteState, match="No space left"):
        store.import_file(source)
    assert list(store.path(NAME).parent.iterdir()) == []


def test_removal_takes_everything_with_it(store: BlobStore) -> None:
    send(store, BLOB)
    store.writer(NAME, SOUTH).open(len(BLOB)).close()
    store.remove(NAME)
    assert list(store.path(NAME).parent.iterdir()) == []
    with pytest.raises(NotFound, match="there is no blob"):
        store.size(NAME)


def test_an_ended_round_leaves_no_parts(store: BlobStore) -> None:
    store.writer(NAME, NORTH).open(len(BLOB)).close()
    store.writer(NAME, SOUTH).open(len(BLOB)).close()
    assert store.owners() == {NORTH, SOUTH}
    store.forget({NORTH}, keep=lambda _: False)
    assert [path.name for path in store.path(NAME).parent.iterdir()] == [f"{NAME}.{SOUTH}.part"]


def test_a_blob_goes_with_the_last_who_sent_it_unless_it_is_kept(store: BlobStore) -> None:
    for owner in (NORTH, SOUTH):
        with contextlib.closing(store.writer(NAME, owner).open(len(BLOB))) as writer:
            writer.append(0, BLOB)
            writer.finish()
    store.forget({NORTH}, keep=lambda _: False)
    assert store.received(NAME, SOUTH)
    assert not store.received(NAME, NORTH)
    store.forget({SOUTH}, keep=lambda name: name == NAME)
    assert (store.has(NAME), store.owners()) == (True, set())


def test_bytes_that_were_made_here_too_stay_when_who_sent_them_is_forgotten(store: BlobStore, tmp_path: Path) -> None:
    send(store, BLOB)
    (tmp_path / "made").write_bytes(BLOB)
    store.adopt(tmp_path / "made", NAME)
    store.forget({NORTH}, keep=lambda _: False)  # no row says yet that they are part of a model
    assert store.path(NAME).read_bytes() == BLOB
    assert store.sweep(lambda _: False, most=1) == 1
    send(store, BLOB)
    store.forget({NORTH}, keep=lambda _: False)
    assert not store.has(NAME)


def test_bytes_that_another_owner_finishes_while_they_are_removed_stay_his(store: BlobStore) -> None:
    send(store, BLOB)
    south = store.writer(NAME, SOUTH).open(len(BLOB))
    south.append(0, BLOB)
    finishing = threading.Thread(target=south.finish)

    def keep(_: str) -> bool:
        finishing.start()
        finishing.join(0.2)  # without the lock it is done long before
        return False

    store.forget({NORTH}, keep)
    finishing.join()
    assert store.received(NAME, SOUTH)
    assert store.path(NAME).read_bytes() == BLOB


def test_of_two_blobs_that_one_owner_sends_only_the_one_that_is_wanted_stays(store: BlobStore) -> None:
    sent, other = os.urandom(len(BLOB)), os.urandom(len(BLOB))
    for owner in (NORTH, SOUTH):
        send(store, sent, owner, sha256(sent))
    with (
        contextlib.closing(store.writer(NAME, NORTH).open(len(BLOB))) as wanted,
        contextlib.closing(store.writer(sha256(other), NORTH).open(len(BLOB))) as unwanted,
    ):
        unwanted.append(0, other[:1000], sync=True)
        store.forget_others(NORTH, NAME, keep=lambda _: False)
        with pytest.raises(Stale, match="this site announced another update"):
            unwanted.append(1000, other[1000:])
        wanted.append(0, BLOB)
        wanted.finish()
    assert not store.received(sha256(sent), NORTH)
    assert store.received(sha256(sent), SOUTH)
    assert {path.name for path in store.path(NAME).parent.iterdir()} == {
        *(NAME, f"{NAME}.{NORTH}.received"),
        *(sha256(sent), f"{sha256(sent)}.{SOUTH}.received"),
    }


def test_the_sums_of_a_part_are_found_without_it(store: BlobStore) -> None:
    with contextlib.closing(store.writer(NAME, NORTH).open(len(BLOB))) as writer:
        writer.append(0, BLOB[:1000], sync=True)
    store.path(NAME).with_name(f"{NAME}.{NORTH}.part").unlink()
    assert store.owners() == {NORTH}
    store.forget(store.owners(), keep=lambda _: False)
    assert list(store.path(NAME).parent.iterdir()) == []


class Uploads(RuleBasedStateMachine):
    """One owner's upload, with any interleaving of connections, cuts, crashes, full disks and wrong offsets."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = BlobStore(self.folder)
        self.writers: list[Writer] = []
        self.written = 0
        self.promised = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for writer in self.writers:
                writer.close()
            shutil.rmtree(self.folder)

    @property
    def complete(self) -> bool:
        return self.store.has(NAME)

    @precondition(lambda self: not self.complete)
    @rule()
    def connect(self) -> None:
        writer = self.store.writer(NAME, NORTH).open(len(BLOB))
        assert writer.committed == self.written, "what was written is found again"
        self.promised = writer.committed
        self.writers.append(writer)

    @precondition(lambda self: self.writers and not self.complete)
    @rule(length=st.integers(1, 2000), sync=st.booleans())
    def send(self, length: int, sync: bool) -> None:
        piece = BLOB[self.written : self.written + length]
        committed = self.writers[-1].append(self.written, piece, sync=sync)
        self.written += len(piece)
        assert self.promised <= committed <= self.written
        self.promised = committed

    @precondition(lambda self: self.writers and not self.complete)
    @rule(offset=st.integers(0, 5000), length=st.integers(1, 50))
    def send_at_a_wrong_offset(self, offset: int, length: int) -> None:
        if offset != self.written:
            with pytest.raises(TryLater, match=f"next byte is {self.written}"):
                self.writers[-1].append(offset, bytes(length))

    @precondition(lambda self: self.writers and self.written < len(BLOB) and not self.complete)
    @rule()
    def send_to_a_full_disk(self) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "full")

        with pytest.MonkeyPatch.context() as disk, pytest.raises(CannotWriteState):
            disk.setattr(os, "pwrite", full)
            self.writers[-1].append(self.written, BLOB[self.written : self.written + 1])
        self.written = self.promised

    @precondition(lambda self: len(self.writers) > 1)
    @rule()
    def an_earlier_connection_wakes_up(self) -> None:
        with pytest.raises(Stale):
            self.writers[0].append(self.written, b"x")
        self.writers.pop(0).close()

    @precondition(lambda self: self.writers)
    @rule()
    def cut(self) -> None:
        self.writers.pop().close()
        while self.writers:  # those that were taken over before
            self.writers.pop().close()

    @rule()
    def crash(self) -> None:
        """The process is killed; what the kernel has, it keeps."""
        for writer in self.writers:
            writer.close()
        self.writers = []
        self.store = BlobStore(self.folder)

    @precondition(lambda self: self.writers and not self.complete)
    @rule()
    def finish(self) -> None:
        whole = self.written == len(BLOB)
        with contextlib.nullcontext() if whole else pytest.raises(BadData, match="not complete"):
            self.writers[-1].finish()
        self.promised = self.written
        assert self.store.received(NAME, NORTH) == whole

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "folder"):
            assert self.store.committed(NAME, NORTH) >= self.promised
            if self.complete:
                assert self.store.path(NAME).read_bytes() == BLOB


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
