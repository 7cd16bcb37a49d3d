"""The growing file: whatever happens, what was committed is the beginning of the blob."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from histofed.base import durable
from histofed.base.errors import BadData, CannotWriteState, DigestMismatch, TooLarge, TryLater
from histofed.base.ids import sha256
from histofed.transport.part import PartFile

BLOB = os.urandom(3000)
NAME = sha256(BLOB)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blob.part"


def test_grows_and_becomes_the_blob(path: Path, tmp_path: Path) -> None:
    part = PartFile(path, NAME, len(BLOB))
    part.append(0, BLOB[:1000])
    part.append(1000, BLOB[1000:])
    part.verify()
    part.adopt(tmp_path / "blob")
    part.close()
    assert (tmp_path / "blob").read_bytes() == BLOB
    assert not path.exists()


def test_goes_on_where_another_process_stopped(path: Path, tmp_path: Path) -> None:
    path.write_bytes(BLOB[:1234])
    part = PartFile(path, NAME, len(BLOB))
    assert part.written == part.committed == 1234
    part.append(1234, BLOB[1234:])
    part.verify()
    part.close()


def test_a_part_that_is_too_long_is_not_a_beginning(path: Path) -> None:
    path.write_bytes(BLOB + b"x")
    part = PartFile(path, NAME, len(BLOB))
    assert part.written == 0
    part.close()


def test_only_the_next_byte_may_come(path: Path) -> None:
    part = PartFile(path, NAME, len(BLOB))
    part.append(0, BLOB[:10])
    for offset in (0, 9, 11):
        with pytest.raises(TryLater, match="the next byte is 10"):
            part.append(offset, b"x")
    with pytest.raises(TooLarge, match="more bytes came than the 3000"):
        part.append(10, BLOB)
    assert part.written == 10
    part.close()


def test_missing_bytes_are_told_and_kept(path: Path) -> None:
    part = PartFile(path, NAME, len(BLOB))
    part.append(0, BLOB[:10])
    with pytest.raises(BadData, match="10 of 3000 bytes"):
        part.verify()
    part.close()
    assert path.read_bytes() == BLOB[:10]


def test_wrong_bytes_are_dropped_so_that_the_next_attempt_is_clean(path: Path) -> None:
    part = PartFile(path, NAME, len(BLOB))
    part.append(0, bytes(len(BLOB)))
    with pytest.raises(DigestMismatch, match="they were dropped"):
        part.verify()
    part.close()
    assert not path.exists()


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_full_disk_takes_back_what_was_not_committed(path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PartFile(path, NAME, len(BLOB))
    part.append(0, BLOB[:500])
    part.commit()
    part.append(500, BLOB[500:700])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, call, full)
        with pytest.raises(CannotWriteState, match=r"No space left on device; free space.*nothing was acknowledged"):
            part.append(700, BLOB[700:800])
            part.commit()
    assert (part.written, part.committed, path.stat().st_size) == (500, 500, 500)
    part.append(500, BLOB[500:])
    part.verify()
    part.close()


def test_a_short_write_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: whole(descriptor, bytes(data)[:7], offset))
    part = PartFile(path, NAME, len(BLOB))
    part.append(0, BLOB)
    part.verify()
    part.close()


def test_every_failpoint_is_passed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []
    monkeypatch.setattr(durable, "failpoint", passed.append)
    part = PartFile(path, NAME, len(BLOB))
    part.append(0, BLOB)
    part.verify()
    part.adopt(tmp_path / "blob")
    part.close()
    assert passed == ["blob.chunk_written", "blob.before_complete", "blob.complete"]


def test_hashes_the_empty_blob(path: Path, tmp_path: Path) -> None:
    part = PartFile(path, sha256(b""), 0)
    part.verify()
    part.adopt(tmp_path / "blob")
    part.close()
    assert hashlib.sha256((tmp_path / "blob").read_bytes()).hexdigest() == sha256(b"")
