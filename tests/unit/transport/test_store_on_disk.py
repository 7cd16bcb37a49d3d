"""What a power cut may find of the blobs: receipt and blob are on disk before anybody hears of them, and removals stay.

A folder that cannot be listed for a moment is no folder without receipts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from histofed.base.errors import CannotWriteState
from histofed.base.ids import sha256
from histofed.transport.store import BlobStore, owner_of
from tests.support.disk_order import disk_order
from tests.support.failing_disk import hide
from tests.support.failpoints import armed

BLOB = os.urandom(4096)
NAME = sha256(BLOB)
NORTH = owner_of("gan/1/train/north")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def send(store: BlobStore) -> None:
    with contextlib.closing(store.writer(NAME, NORTH).open(len(BLOB))) as writer:
        writer.append(0, BLOB)
        writer.finish()


def test_an_upload_is_told_with_its_bytes_its_name_and_its_receipt_on_disk(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, receipt = f"{NAME}.{NORTH}.part", f"{NAME}.{NORTH}.received"
    with disk_order(monkeypatch, tmp_path) as calls:
        send(store)
    assert calls == [
        *(f"create {part}", f"sync {part} 0", f"sync {part} 4096"),
        *(f"create {receipt}", f"rename {part} {NAME}", "sync ."),
    ]


def test_what_a_row_will_say_was_received_is_on_disk_first(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store)
    with disk_order(monkeypatch, tmp_path) as calls:
        store.settle()
    assert calls == ["sync ."]


def test_an_ended_rounds_files_are_gone_on_disk_each_receipt_before_its_blob(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store)
    with disk_order(monkeypatch, tmp_path) as calls:
        store.forget({NORTH}, keep=lambda _: False)
    assert calls == [f"unlink {NAME}.{NORTH}.received", f"unlink {NAME}", "sync ."]


def test_a_death_between_a_receipt_and_its_blob_leaves_a_stray_that_is_swept(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store)
    with armed(monkeypatch, "remove.after_unlink=EIO"), pytest.raises(CannotWriteState):
        store.forget({NORTH}, keep=lambda _: False)
    assert (store.owners(), store.digests()) == (set(), {NAME})
    again = BlobStore(tmp_path)
    assert again.sweep(lambda _: False, most=5) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "look",
    [
        lambda store: store.sweep(lambda _: False, most=5),
        lambda store: store.remove(NAME),
        BlobStore.owners,
        BlobStore.digests,
    ],
)
def test_who_does_not_see_what_is_here_removes_nothing(
    store: BlobStore, tmp_path: Path, look: Callable[[BlobStore], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store)
    hide(monkeypatch, tmp_path, looks=1)
    with pytest.raises(CannotWriteState, match="Too many open files"):
        look(store)
    assert store.received(NAME, NORTH)
    assert store.sweep(lambda _: False, most=5) == 0


def test_a_file_that_comes_in_is_synced_before_its_digest_names_it(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").write_bytes(BLOB)
    with disk_order(monkeypatch, tmp_path) as calls:
        store.import_file(tmp_path / "made", move=True)
    assert calls == ["sync made 4096", f"rename made {NAME}", "sync ."]


def test_so_is_one_that_is_copied(store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "given").write_bytes(BLOB)
    with disk_order(monkeypatch, tmp_path) as calls:
        store.import_file(tmp_path / "given")
    assert [call.partition(" ")[0] for call in calls] == ["create", "sync", "rename", "sync", "rename", "sync"]
    assert calls[1].endswith(".tmp 4096")
    assert calls[-2:] == [f"rename {calls[-2].split()[1]} {NAME}", "sync ."]
