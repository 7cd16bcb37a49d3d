"""Finished updates: complete or absent, and there until somebody removes them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.outbox import Outbox, counted, folder_name
from histofed.base import durable, failpoints
from histofed.base.errors import CannotWriteState, TryLater
from histofed.base.ids import sha256
from tests.support.failing_disk import hide
from tests.support.updates import manifest, put, signed


def test_an_update_is_there_after_a_restart(tmp_path: Path) -> None:
    envelope = signed(manifest())
    (tmp_path / "made").write_bytes(b"weights")
    entry = Outbox(tmp_path / "outbox").put(envelope, tmp_path / "made", 2)
    again = Outbox(tmp_path / "outbox").get(manifest().task)
    assert again == entry
    assert again is not None
    assert again.envelope == envelope
    assert (again.sha256, again.bytes) == (sha256(b"weights"), 7)
    assert again.weights.read_bytes() == b"weights"
    assert not (tmp_path / "made").exists()


def test_updates_wait_side_by_side_until_they_are_removed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    first, second = put(outbox, tmp_path, manifest(1)), put(outbox, tmp_path, manifest(2))
    assert [entry.task for entry in outbox.entries()] == [first, second]
    outbox.remove(first)
    outbox.remove(first)
    assert [entry.task for entry in outbox.entries()] == [second]
    assert outbox.get(first) is None


class Killed(BaseException):
    """The process ended here."""


def killed_after(patch: pytest.MonkeyPatch, removals: int) -> None:
    """From here on the process ends when it has removed so many files and folders."""
    left = iter([False] * (removals - 1) + [True])

    def ending(remove: Callable[..., None]) -> Callable[..., None]:
        def removing(*args: Any, **options: Any) -> None:
            remove(*args, **options)
            if next(left):
                raise Killed

        return removing

    for name in ("unlink", "rmdir"):
        patch.setattr(os, name, ending(getattr(os, name)))


@pytest.mark.parametrize("removals", [1, 2, 3])
def test_an_update_that_was_being_removed_is_no_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, removals: int
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    task = put(outbox, tmp_path, manifest())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, removals)
        outbox.remove(task)
    assert counted(tmp_path / "outbox") == (0, 0)
    assert Outbox(tmp_path / "outbox").entries() == ()
    assert not caplog.records
    assert not list((tmp_path / "outbox").iterdir())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def empty(file: Path) -> None:
    file.write_bytes(b"{}")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [cut, empty, Path.unlink, a_folder])
def test_a_damaged_entry_is_set_aside_and_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    first, second = put(outbox, tmp_path, manifest(1)), put(outbox, tmp_path, manifest(2))
    damage(tmp_path / "outbox" / folder_name(first) / "manifest.json")
    assert [entry.task for entry in outbox.entries()] == [second]
    assert len(outbox) == 1, "status tells how many wait"
    assert "cannot be read" in caplog.text and "set aside under outbox/unreadable" in caplog.text
    assert str(tmp_path) not in caplog.text
    assert (tmp_path / "outbox/unreadable" / folder_name(first) / "update.safetensors").read_bytes() == b"weights"
    caplog.clear()
    assert Outbox(tmp_path / "outbox").entries() == outbox.entries()
    assert not caplog.records, "once is enough"
    put(outbox, tmp_path, manifest(1))
    assert outbox.get(first) is not None


def refusing(number: int) -> Callable[[Path], bytes]:
    def read(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    return read


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE])
def test_an_entry_that_cannot_be_read_for_a_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    task = put(outbox, tmp_path, manifest())
    with monkeypatch.context() as moment:
        moment.setattr(Path, "read_bytes", refusing(number))
        for look in (outbox.entries, lambda: outbox.get(task)):
            with pytest.raises(TryLater, match=f"cannot be read now: {os.strerror(number)}; it stays there") as told:
                look()
            assert str(tmp_path) not in str(told.value)
    assert [entry.task for entry in outbox.entries()] == [task]


@pytest.mark.parametrize("look", [Outbox.entries, Outbox.readable, len, lambda outbox: Outbox(outbox._folder)])
def test_an_outbox_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Outbox], object]
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    task = put(outbox, tmp_path, manifest())
    hide(monkeypatch, tmp_path / "outbox", looks=1)
    with pytest.raises(CannotWriteState):
        look(outbox)
    assert [entry.task for entry in outbox.entries()] == [task]


def test_an_entry_that_cannot_be_read_for_a_moment_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    first, second = put(outbox, tmp_path, manifest(1)), put(outbox, tmp_path, manifest(2))
    read = Path.read_bytes

    def reading(path: Path) -> bytes:
        return refusing(errno.EMFILE)(path) if path.parent.name == folder_name(first) else read(path)

    with monkeypatch.context() as moment:
        moment.setattr(Path, "read_bytes", reading)
        assert [entry.task for entry in outbox.readable()] == [second]
        assert outbox.holds(first), "or its task would be dropped as one that nobody wants"
    assert "cannot be read now: Too many open files" in caplog.text
    assert [entry.task for entry in outbox.readable()] == [first, second]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EPERM, errno.ELOOP])
def test_an_entry_that_the_disk_does_not_give_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    task = put(outbox, tmp_path, manifest())
    with monkeypatch.context() as disk:
        disk.setattr(Path, "read_bytes", refusing(number))
        assert outbox.get(task) is None
    assert not outbox.holds(task)
    assert (tmp_path / "outbox/unreadable" / folder_name(task)).is_dir()


def test_a_damaged_entry_is_no_entry_of_its_task_and_a_second_one_takes_its_place(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    for data in (b"older", b"newer"):
        task = put(outbox, tmp_path, manifest(data=data), data)
        cut(tmp_path / "outbox" / folder_name(task) / "manifest.json")
        assert outbox.get(task) is None
    assert (tmp_path / "outbox/unreadable" / folder_name(task) / "update.safetensors").read_bytes() == b"newer"


def test_a_damaged_entry_on_a_full_disk_stays_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    first, second = put(outbox, tmp_path, manifest(1)), put(outbox, tmp_path, manifest(2))
    cut(tmp_path / "outbox" / folder_name(first) / "manifest.json")

    def full(*_: object) -> None:
        raise CannotWriteState("No space left on device")

    monkeypatch.setattr(durable, "adopt", full)
    assert [entry.task for entry in outbox.entries()] == [second]
    assert "it stays where it is: No space left on device" in caplog.text


def test_another_attempt_takes_the_place_of_the_first(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    put(outbox, tmp_path, manifest())
    put(outbox, tmp_path, manifest(data=b"others", attempt=2), b"others")
    (entry,) = outbox.entries()
    assert (entry.attempt, entry.weights.read_bytes()) == (2, b"others")


@pytest.mark.parametrize(
    "boundary", ["replace.before_rename", "replace.after_rename"], ids=["manifest not written", "weights not renamed in"]
)
def test_a_full_disk_leaves_no_half_entry(tmp_path: Path, boundary: str, arm: Callable[[str], None]) -> None:
    outbox = Outbox(tmp_path / "outbox")
    (tmp_path / "made").write_bytes(b"weights")
    arm(f"{boundary}=ENOSPC")
    with pytest.raises(CannotWriteState, match="No space left"):
        outbox.put(signed(manifest()), tmp_path / "made", 2)
    assert outbox.entries() == ()
    assert outbox.get(manifest().task) is None
    assert (tmp_path / "made").read_bytes() == b"weights"
    assert len(Outbox(tmp_path / "outbox")) == 0
    assert not list((tmp_path / "outbox").iterdir()), "the next life removes what nobody may ask for again"


def test_only_traces_of_updates_go_when_the_outbox_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "outbox"
    task = put(Outbox(folder), tmp_path, manifest())
    (folder / "unreadable" / folder_name(manifest(2).task)).mkdir(parents=True)
    (folder / "a note").write_text("of a person")
    before = sorted(folder.rglob("*"))
    assert Outbox(folder).get(task) is not None
    assert sorted(folder.rglob("*")) == before


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Arm failpoints in this process, as HISTOFED_FAILPOINTS does at start."""

    def arm(text: str) -> None:
        monkeypatch.setattr(failpoints, "_armed", failpoints._parse(text))

    return arm
