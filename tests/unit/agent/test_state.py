"""The agent's memory: small, typed, the same after a restart."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agent.state import SCHEMA, State, TaskInHand
from histofed.audit.history import History
from histofed.audit.verify import Head
from histofed.base.clock import FakeClock, iso
from histofed.base.errors import Damaged, VersionMismatch
from histofed.base.ids import ExperimentId, RoundKey, SiteId, TaskKey, sha256

TASK = TaskKey(RoundKey(ExperimentId("pilot"), 3), "train", SiteId("north"))
A, B = sha256(b"a"), sha256(b"b")


def test_the_instance_is_made_once(tmp_path: Path) -> None:
    first = State(tmp_path / "state.db", FakeClock())
    instance = first.instance
    first.close()
    again = State(tmp_path / "state.db", FakeClock())
    assert again.instance == instance
    assert len(instance) == 32
    again.close()
    other = State(tmp_path / "other.db", FakeClock())
    assert other.instance != instance
    other.close()


def test_the_task_in_hand_survives_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    state = State(tmp_path / "state.db", clock)
    assert state.task_in_hand() is None
    state.take(TASK, 2, A, B)
    state.close()
    again = State(tmp_path / "state.db", clock)
    assert again.task_in_hand() == TaskInHand(TASK, 2, A, B, iso(clock.now()))
    again.put_down()
    assert again.task_in_hand() is None
    again.close()


def test_there_is_only_one_task_in_hand(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db", FakeClock())
    state.take(TASK, 1, A, B)
    other = TaskKey(RoundKey(ExperimentId("pilot"), 4), "train", SiteId("north"))
    state.take(other, 1, A, B)
    held = state.task_in_hand()
    assert held is not None
    assert held.task == other
    state.close()


def test_private_rounds_are_kept_by_experiment(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db", FakeClock())
    assert state.private_round(ExperimentId("pilot")) == 0
    state.set_private_round(ExperimentId("pilot"), 4)
    state.set_private_round(ExperimentId("other"), 1)
    state.set_private_round(ExperimentId("pilot"), 5)
    assert state.private_round(ExperimentId("pilot")) == 5
    assert state.private_round(ExperimentId("other")) == 1
    state.close()


def test_a_commit_survives_a_power_cut(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db", FakeClock())
    assert state._database.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: the log is synced at each commit"
    assert state._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    state.close()


def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    State(tmp_path / "state.db", FakeClock()).close()
    assert (tmp_path / "state.db").stat().st_mode & 0o077 == 0


def test_a_newer_file_is_refused_in_words(tmp_path: Path) -> None:
    State(tmp_path / "state.db", FakeClock()).close()
    with sqlite3.connect(tmp_path / "state.db") as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()
    with pytest.raises(VersionMismatch, match="written by a newer histofed"):
        State(tmp_path / "state.db", FakeClock())


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(Damaged, match=r"state\.db cannot be read .*: stop the daemon, restore a backup$"):
        State(tmp_path / "state.db", FakeClock())


def test_a_file_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    State(tmp_path / "state.db", FakeClock()).close()
    old = sqlite3.connect(tmp_path / "state.db")
    old.executescript("DROP TABLE history; INSERT INTO private_round VALUES ('pilot', 4); PRAGMA user_version = 1;")
    old.close()
    state = State(tmp_path / "state.db", FakeClock())
    assert state.private_round(ExperimentId("pilot")) == 4
    assert state.history(A) is None
    state.note_history(A, History(2, Head(7, B)))
    state.note_history(A, History(1, Head(9, B)))
    state.note_history(A, History(2, Head(6, B)))
    assert state.history(A) == History(2, Head(7, B)), "it never goes back"
    assert state.history(B) is None, "another federation is another history"
    state.close()
