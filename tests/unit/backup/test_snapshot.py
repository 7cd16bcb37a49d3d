"""The room of a snapshot: who may clear it away, and when."""

from __future__ import annotations

from pathlib import Path

from histofed.backup import snapshot


def test_a_killed_backup_leaves_a_room_that_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / snapshot.ROOM / "blobs").mkdir(parents=True)
    snapshot.clear_away(tmp_path)
    assert not (tmp_path / snapshot.ROOM).exists()


def test_the_room_of_a_backup_that_is_being_made_stays(tmp_path: Path) -> None:
    with snapshot.room(tmp_path) as room:
        snapshot.clear_away(tmp_path)
        assert room.exists()


def test_where_no_backup_was_made_nothing_is(tmp_path: Path) -> None:
    snapshot.clear_away(tmp_path)
    assert not list(tmp_path.iterdir())
