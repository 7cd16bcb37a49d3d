"""Transfer offsets under any interleaving of two sites' uploads of one blob: chunks, wrong offsets, power cuts, bad files.

`test_store.py` has a machine for one well-meaning owner; here the disk loses what was not synced, files are longer or other
than they were, senders lie, rounds end in the middle, and two owners send the same blob. What was acknowledged stays.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from histofed.base.errors import BadData, CannotWriteState, DigestMismatch, Stale, TooLarge, TryLater
from histofed.base.ids import sha256
from histofed.transport.receiving import Writer
from histofed.transport.store import BlobStore, owner_of

BLOB = bytes(range(256)) * 12
NAME = sha256(BLOB)
OWNERS = tuple(owner_of(f"gan/1/train/{site}") for site in ("north", "south"))
owners = st.sampled_from(OWNERS)


@dataclass
class Upload:
    """What one owner knows of its upload."""

    writer: Writer | None = None
    written: int = 0
    """Bytes that the aggregator took."""
    acknowledged: int = 0
    """Bytes of which it said that they are durable."""
    good: bool = True
    """Every byte so far is the blob's."""
    damaged: bool = False
    """The disk changed bytes since anybody was connected."""
    received: bool = False


class Offsets(RuleBasedStateMachine):
    """Two owners, one blob, one folder."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = BlobStore(self.folder)
        self.uploads = {owner: Upload() for owner in OWNERS}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for upload in self.uploads.values():
                if upload.writer is not None:
                    upload.writer.close()
            shutil.rmtree(self.folder)

    def part(self, owner: str) -> Path:
        return self.folder / f"{NAME}.{owner}.part"

    @rule(owner=owners)
    def connect(self, owner: str) -> None:
        """A new connection, also while the one before is still there: it is told what is durable."""
        upload = self.uploads[owner]
        if upload.received:
            return
        earlier, upload.writer = upload.writer, self.store.writer(NAME, owner).open(len(BLOB))
        if upload.damaged:
            # the stretch that is not what it was, and what follows, was dropped if it had been synced
            assert upload.writer.committed <= upload.written
            upload.written, upload.damaged = upload.writer.committed, False
            upload.good = self.part(owner).read_bytes() == BLOB[: upload.written]
        else:
            assert upload.writer.committed == upload.written >= upload.acknowledged
        upload.acknowledged = upload.writer.committed
        if earlier is not None:
            with pytest.raises(Stale):
                earlier.append(upload.written, b"x")
            earlier.close()

    @rule(owner=owners, length=st.integers(1, 1500), sync=st.booleans(), lie=st.integers(0, 9))
    def send(self, owner: str, length: int, sync: bool, lie: int) -> None:
        """The next bytes; one time in ten they are others."""
        upload = self.uploads[owner]
        piece = BLOB[upload.written : upload.written + length]
        if upload.writer is None or not piece:
            return
        upload.good = upload.good and lie > 0
        committed = upload.writer.append(upload.written, piece if lie else bytes(b ^ 1 for b in piece), sync=sync)
        upload.written += len(piece)
        assert upload.acknowledged <= committed <= upload.written
        assert committed == upload.written or not sync
        upload.acknowledged = committed

    @rule(owner=owners, offset=st.integers(0, len(BLOB) + 10))
    def send_from_elsewhere(self, owner: str, offset: int) -> None:
        upload = self.uploads[owner]
        if upload.writer is not None and offset != upload.written:
            with pytest.raises(TryLater, match=f"next byte is {upload.written}"):
                upload.writer.append(offset, b"x")

    @rule(owner=owners)
    def send_too_much(self, owner: str) -> None:
        upload = self.uploads[owner]
        if upload.writer is not None:
            with pytest.raises(TooLarge):
                upload.writer.append(upload.written, bytes(len(BLOB) + 1))

    @rule(owner=owners, call=st.sampled_from(["pwrite", "fdatasync"]))
    def send_to_a_full_disk(self, owner: str, call: str) -> None:
        upload = self.uploads[owner]
        if upload.writer is None or upload.written == len(BLOB):
            return

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "full")

        with mock.patch.object(os, call, full), pytest.raises(CannotWriteState):
            upload.writer.append(upload.written, BLOB[upload.written : upload.written + 1], sync=True)
        upload.written = upload.acknowledged

    @rule(owner=owners)
    def finish(self, owner: str) -> None:
        upload = self.uploads[owner]
        if upload.writer is None:
            return
        if upload.written < len(BLOB):
            with pytest.raises(BadData, match="not complete"):
                upload.writer.finish()
            upload.acknowledged = upload.written
            return
        if upload.good:
            upload.writer.finish()
            upload.received = True
        else:
            with pytest.raises(DigestMismatch):
                upload.writer.finish()
        upload.writer.close()
        if not upload.good:
            self.uploads[owner] = Upload()
        upload.writer = None

    @rule(owner=owners)
    def hang_up(self, owner: str) -> None:
        upload = self.uploads[owner]
        if upload.writer is not None:
            upload.writer.close()
            upload.writer = None

    @rule(data=st.data())
    def power_cut(self, data: st.DataObject) -> None:
        """What was not synced is on the disk in part, or not at all; memory is empty."""
        for owner, upload in self.uploads.items():
            if upload.writer is not None:
                upload.writer.close()
                upload.writer = None
            if not upload.received and self.part(owner).exists():
                upload.written = data.draw(st.integers(upload.acknowledged, upload.written))
                os.truncate(self.part(owner), upload.written)
        self.store = BlobStore(self.folder)

    @rule(owner=owners, damage=st.sampled_from(["longer than the blob", "bytes changed"]))
    def the_disk_errs(self, owner: str, damage: str) -> None:
        """Nobody is connected, and the file is not what it was."""
        upload = self.uploads[owner]
        if upload.writer is not None or upload.received or not upload.written:
            return
        if damage == "bytes changed":
            self.part(owner).write_bytes(bytes(upload.written))
            upload.good, upload.damaged = False, True
        else:
            self.part(owner).write_bytes(BLOB + b"x")
            self.uploads[owner] = Upload()

    @rule(owner=owners, keep=st.booleans())
    def the_round_ends(self, owner: str, keep: bool) -> None:
        """What this owner sent goes, and nobody else's; what it still sends is refused."""
        upload, self.uploads[owner] = self.uploads[owner], Upload()
        self.store.forget({owner}, lambda _: keep)
        if upload.writer is not None:
            with pytest.raises(Stale, match="the round has ended"):
                upload.writer.append(upload.written, b"x")
            upload.writer.close()
        assert not self.store.received(NAME, owner)
        assert not list(self.folder.glob(f"*.{owner}.*"))
        if not any(upload.received for upload in self.uploads.values()) and not keep:
            self.store.sweep(lambda _: False, 10)
            assert not self.store.has(NAME)

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        if not hasattr(self, "uploads"):
            return
        for owner, upload in self.uploads.items():
            assert self.store.received(NAME, owner) == upload.received
            if upload.received:
                assert self.store.path(NAME).read_bytes() == BLOB
            elif upload.good and upload.acknowledged:
                assert self.part(owner).read_bytes()[: upload.acknowledged] == BLOB[: upload.acknowledged]


TestOffsets = Offsets.TestCase
TestOffsets.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
