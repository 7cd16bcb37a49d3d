"""A swap that is interrupted at any rename leaves one of the two states, and the next start makes it the new one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from histofed.backup import swap
from histofed.base import durable, failpoints
from histofed.base.errors import AlreadyThere, BadData, CannotWriteState
from tests.support.disk_order import disk_order

ENTRIES = ("state.db", "state.db-wal", "journal", "blobs")
OLD = {"state.db": b"old", "state.db-wal": b"log", "journal/1": b"old"}
NEW = {"state.db": b"new", "journal/1": b"new", "blobs/x": b"new"}


class Crash(Exception):
    """The process dies here."""


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in ENTRIES
        for path in sorted((folder / name).rglob("*") if (folder / name).is_dir() else [folder / name])
        if path.is_file()
    }


@pytest.fixture
def state(tmp_path: Path) -> Path:
    put(tmp_path, OLD | {"operator/key": b"a person's"})
    put(tmp_path / swap.NEW, NEW)
    return tmp_path


def test_the_new_state_comes_in_and_the_old_one_lies_aside(state: Path) -> None:
    swap.swap(state, ENTRIES, "aside")
    assert content(state) == NEW
    assert content(state / "aside") == OLD
    assert (state / "operator/key").read_bytes() == b"a person's"
    assert sorted(path.name for path in state.iterdir()) == ["aside", "blobs", "journal", "operator", "state.db"]


def test_before_the_decision_the_old_state_counts(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_armed", failpoints._parse("restore.before_swap=EIO"))
    with pytest.raises(CannotWriteState):
        swap.swap(state, ENTRIES, "aside")
    assert swap.settle(state) is None
    assert content(state) == OLD
    assert not (state / swap.NEW).exists()


def test_a_power_cut_finds_the_plan_before_any_rename_and_the_renames_before_the_plan_is_gone(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_order(monkeypatch, state) as calls:
        swap.swap(state, ENTRIES, "aside")
    decided = calls.index("rename .restore.json.DRAWN.tmp restore.json")
    assert calls[decided - 1].startswith("sync .restore.json.DRAWN.tmp")
    assert calls[decided + 1] == "sync ."
    moved = [call for call in calls if call.startswith("rename") and "restore.json" not in call]
    assert moved == [
        *("rename state.db aside/state.db", "rename state.db-wal aside/state.db-wal", "rename journal aside/journal"),
        *("rename restore.new/blobs blobs", "rename restore.new/journal journal", "rename restore.new/state.db state.db"),
    ]
    out, came, forgotten = map(calls.index, (moved[2], moved[3], "unlink restore.json"))
    assert decided < calls.index(moved[0])
    assert calls[out + 1 : came] == ["sync aside", "sync ."], "no name is taken before the old one has left it"
    assert calls[calls.index(moved[-1]) + 1 : forgotten + 2] == ["sync .", "unlink restore.json", "sync ."]


@pytest.mark.parametrize("crash_at", range(1, 7))
def test_from_the_decision_on_the_new_state_counts(state: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int) -> None:
    passed = 0
    adopt = durable.adopt

    def crashing(source: Path, target: Path) -> None:
        nonlocal passed
        passed += 1
        if passed == crash_at:
            raise Crash
        adopt(source, target)

    monkeypatch.setattr(durable, "adopt", crashing)
    with pytest.raises(Crash):
        swap.swap(state, ENTRIES, "aside")
    crash_at = 0
    assert swap.settle(state) == "aside"
    assert content(state) == NEW
    assert content(state / "aside") == OLD
    assert swap.settle(state) is None, "there is nothing more to do"
    assert content(state) == NEW


@pytest.mark.parametrize("point", ["restore.swap_decided", "restore.old_set_aside", "restore.swapped"])
def test_a_crash_between_the_steps(state: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    monkeypatch.setattr(failpoints, "_armed", failpoints._parse(f"{point}=EIO"))
    with pytest.raises(CannotWriteState):
        swap.swap(state, ENTRIES, "aside")
    swap.settle(state)
    assert (content(state), content(state / "aside")) == (NEW, OLD)


def test_an_empty_directory_gets_no_folder_of_an_old_state(tmp_path: Path) -> None:
    put(tmp_path / swap.NEW, NEW)
    swap.swap(tmp_path, ENTRIES, "aside")
    assert content(tmp_path) == NEW
    assert not (tmp_path / "aside").exists()


def test_a_state_is_replaced_only_on_request(state: Path) -> None:
    with pytest.raises(AlreadyThere, match="add --replace"):
        swap.refuse_occupied(state, ENTRIES, replace=False)
    swap.refuse_occupied(state, ENTRIES, replace=True)
    swap.refuse_occupied(state / "operator", ENTRIES, replace=False)


def test_two_restores_within_a_second_keep_both_old_states(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    first = swap.aside_name(moment, tmp_path)
    (tmp_path / first).mkdir()
    assert first == "before-restore-20260102T030405Z"
    assert swap.aside_name(moment, tmp_path) == f"{first}-2"


def test_a_damaged_plan_is_told(tmp_path: Path) -> None:
    (tmp_path / swap.PLAN).write_bytes(b'{"old": 1}')
    for tell in (swap.settle, swap.interrupted, lambda state: swap.make_way(state, replace=False)):
        with pytest.raises(BadData, match="a restore was interrupted here; run the restore again with --replace"):
            tell(tmp_path)


def test_a_damaged_plan_counts_until_the_next_one_takes_its_place(state: Path) -> None:
    """What it said is lost, and a part of the state may lie aside: no daemon is to start on the rest."""
    (state / swap.PLAN).write_bytes(b'{"old": 1}')
    swap.make_way(state, replace=True)
    with pytest.raises(CannotWriteState), swap.preparing(state):
        raise CannotWriteState("there is no room")
    with pytest.raises(BadData):
        swap.settle(state)
    swap.make_way(state, replace=True)
    with swap.preparing(state) as new:
        put(new, NEW)
        swap.swap(state, ENTRIES, "aside")
    assert (content(state), content(state / "aside")) == (NEW, OLD)
    assert not (state / swap.PLAN).exists()


def test_what_was_prepared_in_vain_is_cleared_away(tmp_path: Path) -> None:
    with pytest.raises(BadData), swap.preparing(tmp_path) as new:
        put(new, NEW)
        raise BadData("the file is damaged")
    assert list(tmp_path.iterdir()) == []
