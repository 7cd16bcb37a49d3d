"""The growing file: whatever happens, what was committed is the beginning of the blob."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path

import pytest

from histofed.base.errors import BadData, CannotWriteState, DigestMismatch, TooLarge, TryLater
from histofed.base.ids import sha256
from histofed.transport.part import PartFile
from tests.support.disk_order import disk_order
from tests.support.failing_disk import lose

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
    monkeypatch.setattr("histofed.transport.part.failpoint", passed.append)
    part = PartFile(path, NAME, len(BLOB))
    part.append(0, BLOB)
    part.verify()
    part.adopt(tmp_path / "blob")
    part.close()
    assert passed == ["blob.chunk_written", "blob.chunk_synced", "blob.before_complete", "blob.complete"]


def test_hashes_the_empty_blob(path: Path, tmp_path: Path) -> None:
    part = PartFile(path, sha256(b""), 0)
    part.verify()
    part.adopt(tmp_path / "blob")
    part.close()
    assert hashlib.sha256((tmp_path / "blob").read_bytes()).hexdigest() == sha256(b"")


def left_behind(path: Path, *stretches: int) -> None:
    """What a process leaves that synced after each of these lengths and was killed."""
    part, offset = PartFile(path, NAME, len(BLOB)), 0
    for end in stretches:
        part.append(offset, BLOB[offset:end])
        part.commit()
        offset = end
    part.close()


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damaged", "good"), [(0, 0), (999, 0), (1000, 1000), (1999, 1000), (2000, 2000)])
def test_a_damaged_stretch_is_found_when_the_transfer_resumes(
    path: Path, tmp_path: Path, damaged: int, good: int, caplog: pytest.LogCaptureFixture
) -> None:
    left_behind(path, 1000, 2000, 2500)
    damage(path, damaged)
    part = PartFile(path, NAME, len(BLOB))
    assert part.written == part.committed == good
    assert f"of 2500 bytes that were here {good} are good" in caplog.text
    part.append(good, BLOB[good:])
    part.verify()
    part.adopt(tmp_path / "blob")
    part.close()
    assert [each.name for each in tmp_path.iterdir()] == ["blob"], "the digests go with the part"


@pytest.mark.parametrize(("lost", "good"), [(0, 0), (999, 0), (1000, 1000), (2400, 2000), (2500, 2500), (2600, 2600)])
def test_what_the_disk_does_not_give_any_more_comes_again(
    path: Path, tmp_path: Path, lost: int, good: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left_behind(path, 1000, 2000, 2500)
    with path.open("ab") as file:
        file.write(BLOB[2500:2800])
    with monkeypatch.context() as disk:
        lose(disk, path, lost)
        part = PartFile(path, NAME, len(BLOB))
    assert part.written == part.committed == path.stat().st_size == good
    assert f"of 2800 bytes that were here {good} are good" in caplog.text
    part.append(good, BLOB[good:])
    part.verify()
    part.adopt(tmp_path / "blob")
    part.close()
    assert (tmp_path / "blob").read_bytes() == BLOB


def test_what_cannot_be_read_for_a_moment_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(path, 1000, 2000)
    with monkeypatch.context() as machine, pytest.raises(CannotWriteState, match="Cannot allocate memory"):
        lose(machine, path, 1500, errno.ENOMEM)
        PartFile(path, NAME, len(BLOB))
    left_behind(path)
    assert path.read_bytes() == BLOB[:2000]


@pytest.mark.parametrize(("reason", "opens"), [(errno.EIO, True), (errno.EMFILE, False)])
def test_digests_that_the_disk_does_not_give_are_as_good_as_none(
    path: Path, monkeypatch: pytest.MonkeyPatch, reason: int, opens: bool
) -> None:
    left_behind(path, 1000, 2000)

    def refuse(_: Path) -> bytes:
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as disk, contextlib.nullcontext() if opens else pytest.raises(CannotWriteState):
        disk.setattr(Path, "read_bytes", refuse)
        left_behind(path)
    assert path.read_bytes() == BLOB[:2000]


def test_bytes_behind_the_last_stretch_are_kept(path: Path) -> None:
    left_behind(path, 1000)
    with path.open("ab") as file:
        file.write(BLOB[1000:1200])
    part = PartFile(path, NAME, len(BLOB))
    assert part.written == 1200
    part.append(1200, BLOB[1200:])
    part.verify()
    part.close()


@pytest.mark.parametrize(
    "advice",
    [b"", b"1000", b"1000 x\n", b"\xff\n", b"0 " + b"0" * 64 + b"\n", b"9" * 18 + b" " + b"0" * 64 + b"\n", b"-5 a\n"],
)
def test_digests_that_cannot_be_are_no_reason_to_drop_anything(path: Path, advice: bytes) -> None:
    left_behind(path, 1000)
    path.with_name(f"{path.name}.sums").write_bytes(advice)
    part = PartFile(path, NAME, len(BLOB))
    assert part.written == 1000
    part.close()


def test_digests_of_a_part_that_is_gone_are_forgotten(path: Path) -> None:
    left_behind(path, 1000, 2000)
    path.unlink()
    left_behind(path, 500)
    part = PartFile(path, NAME, len(BLOB))
    assert part.written == 500
    part.close()


def test_a_blob_in_one_stretch_leaves_no_digests(path: Path) -> None:
    left_behind(path, len(BLOB))
    assert not path.with_name(f"{path.name}.sums").exists()


# -- what a power cut may find -------------------------------------------------------------------------------------------


def test_bytes_are_synced_before_they_are_acknowledged_and_the_blob_before_it_is_told(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_order(monkeypatch, tmp_path) as calls:
        part = PartFile(path, NAME, len(BLOB))
        part.append(0, BLOB[:1000])
        part.commit()
        part.append(1000, BLOB[1000:])
        part.verify()
        part.adopt(tmp_path / "blob")
        part.close()
    assert calls == [
        *("create blob.part", "sync blob.part 0"),
        *("sync blob.part 1000", "create blob.part.sums", "sync blob.part 3000"),
        *("rename blob.part blob", "unlink blob.part.sums", "sync ."),
    ]


def test_what_an_earlier_process_left_is_synced_before_it_counts(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(BLOB[:1234])
    with disk_order(monkeypatch, tmp_path) as calls:
        part = PartFile(path, NAME, len(BLOB))
    assert part.committed == 1234
    assert calls == ["sync blob.part 1234"]
    part.close()


def test_wrong_bytes_are_gone_on_disk(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PartFile(path, NAME, 1)
    part.append(0, b"x")
    with disk_order(monkeypatch, tmp_path) as calls, pytest.raises(DigestMismatch):
        part.verify()
    assert calls == ["sync blob.part 1", "unlink blob.part", "sync ."]
    part.close()
